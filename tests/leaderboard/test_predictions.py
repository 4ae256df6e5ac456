"""Reading predictions: digest, form, agreement with the record; pairing two cells by image id."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from leaderboard.predictions import Predictions, paired_correct, read_predictions
from leaderboard.record import PREDICTIONS_NAME, Metric
from protocols.errors import HarnessError
from protocols.files import sha256_of_file


def _rewrite(campaign: Any, record: Any, **rows: Any) -> Any:
    stream = io.BytesIO()
    np.savez(stream, **rows)
    path = campaign.cells / record.cell_id / PREDICTIONS_NAME
    path.write_bytes(stream.getvalue())
    return record.model_copy(update={"artefacts": {PREDICTIONS_NAME: sha256_of_file(path)}})


def _predictions(cell_id: str, ids: list[str], labels: list[int], predicted: list[int]) -> Predictions:
    return Predictions(
        cell_id=cell_id, image_ids=np.array(ids), labels=np.array(labels), predicted=np.array(predicted)
    )


@pytest.fixture
def probe(campaign: Any) -> Any:
    return campaign.cell("p", "linear-probe", method="scratch", correct=50)


def test_reads_what_was_written(campaign: Any, probe: Any) -> None:
    read = read_predictions(campaign.cells, probe)
    assert read is not None
    assert read.image_ids.shape == (200,)
    assert int((read.labels == read.predicted).sum()) == 50
    assert read_predictions(campaign.cells, probe.model_copy(update={"artefacts": {}})) is None


def test_damaged_and_missing_files(campaign: Any, probe: Any) -> None:
    path = campaign.cells / "p" / PREDICTIONS_NAME
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    with pytest.raises(HarnessError, match="damaged or was replaced"):
        read_predictions(campaign.cells, probe)
    path.write_bytes(b"not an archive")
    named = probe.model_copy(update={"artefacts": {PREDICTIONS_NAME: sha256_of_file(path)}})
    with pytest.raises(HarnessError, match="cannot be read"):
        read_predictions(campaign.cells, named)
    path.unlink()
    with pytest.raises(HarnessError, match="missing") as missing:
        read_predictions(campaign.cells, probe)
    assert str(missing.value).endswith(f"delete the folder {campaign.cells / 'p'} and run again")


def test_a_pickle_is_not_opened(campaign: Any, probe: Any) -> None:
    ids, labels = np.array([object()], dtype=object), np.array([1])
    named = _rewrite(campaign, probe, image_ids=ids, labels=labels, predicted=labels)
    with pytest.raises(HarnessError, match="cannot be read"):
        read_predictions(campaign.cells, named)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"image_ids": np.array(["a"]), "labels": np.array([1])}, "cannot be read"),
        ({"image_ids": np.array([1]), "labels": np.array([1]), "predicted": np.array([1])}, "are expected"),
        ({"image_ids": np.array(["a"]), "labels": np.array([1.0]), "predicted": np.array([1])}, "expected"),
        ({"image_ids": np.array(["a"]), "labels": np.array([1]), "predicted": np.array([1, 2])}, "equal"),
        (
            {"image_ids": np.array(["a", "a"]), "labels": np.array([1, 1]), "predicted": np.array([1, 1])},
            "twice",
        ),
        (
            {"image_ids": np.array(["a"]), "labels": np.array([1]), "predicted": np.array([1])},
            "but the record",
        ),
    ],
)
def test_wrong_content(campaign: Any, probe: Any, rows: dict[str, Any], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        read_predictions(campaign.cells, _rewrite(campaign, probe, **rows))


def test_top1_of_the_record_must_agree(campaign: Any, probe: Any) -> None:
    metric = Metric(value=25.3, n=200, unit="%")
    with pytest.raises(HarnessError, match=r"25\.0000 % top-1 of 200 images, but the record states 25\.3"):
        read_predictions(campaign.cells, probe.model_copy(update={"metrics": {"top1_percent": metric}}))


def test_cell_id_cannot_leave_the_work_folder(campaign: Any, probe: Any) -> None:
    with pytest.raises(HarnessError, match="not a cell id"):
        read_predictions(campaign.cells, probe.model_copy(update={"cell_id": "../p"}))


def test_pairs_by_id_not_by_position() -> None:
    a = _predictions("a", ["x", "y", "z"], [0, 1, 2], [0, 1, 0])
    b = _predictions("b", ["z", "x", "y"], [2, 0, 1], [2, 1, 1])
    correct_a, correct_b = paired_correct(a, b)
    assert correct_a.tolist() == [True, True, False]
    assert correct_b.tolist() == [False, True, True]


def test_unequal_images_or_labels_are_errors() -> None:
    a = _predictions("a", ["x", "y"], [0, 1], [0, 1])
    with pytest.raises(HarnessError, match="cells a and b cannot be paired: 2 and 2 images, 1 in both"):
        paired_correct(a, _predictions("b", ["x", "w"], [0, 1], [0, 1]))
    with pytest.raises(HarnessError, match="1 of 2 images have different labels"):
        paired_correct(a, _predictions("b", ["y", "x"], [1, 2], [1, 2]))
