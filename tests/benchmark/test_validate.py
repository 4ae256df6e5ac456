"""`validate`: a classifier's file to its record and the board, held against timm alone."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor

from benchmark import classifier_evaluation, published_classifiers
from benchmark.cli import build_parser, main
from benchmark.commands import validate
from benchmark.published_classifiers import Publication, publication
from leaderboard.record import read_record
from protocols import load_protocol
from protocols.files import sha256_of_file
from tests.benchmark.made_classifiers import (
    PHOTOGRAPHS,
    ROOT,
    TINY,
    as_reference,
    fair300_of_six,
    make_validation_folder,
    small_vit,
    timm_vit_tiny,
)

NAME = "vit_standard_tiny_patch16_224_KCLIP.tar"


@dataclass
class Published:
    """A file in the published form, its six images, and what timm alone makes of them."""

    folder: Path
    logits: Tensor  # (6, 1000)

    @property
    def arguments(self) -> list[str]:
        """The words that measure it."""
        return [
            "validate", str(self.folder / NAME), "--trunk", "vit-t", "--data-root", str(self.folder / "data"),
            "--protocol", str(self.folder / "mine.yaml"), "--work-dir", str(self.folder / "runs"),
            "--device", "cpu",
        ]  # fmt: skip

    @property
    def cell(self) -> Path:
        (folder,) = (self.folder / "runs" / "mine" / "cells").iterdir()
        return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("published")
    photographs = make_validation_folder(folder / "data")
    fair300_of_six(folder)
    model = timm_vit_tiny()
    weights = as_reference(model.state_dict())
    torch.save({"state_dict": weights, "epoch": 299, "arch": "vit_standard"}, folder / NAME)
    transform = create_transform(
        224, is_training=False, interpolation="bicubic", crop_pct=0.9, mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )  # fmt: skip
    with torch.inference_mode():
        logits = [model(transform(Image.open(path).convert("RGB"))[None]) for path in photographs]
    done = Published(folder, torch.cat(logits))
    assert main([*done.arguments, "--batch", "5"]) == 0
    return done


def test_the_logits_are_timms(published: Published) -> None:
    classifier, asked = validate._asked(build_parser("validate").parse_args(published.arguments[1:]))
    batches = classifier_evaluation.evaluation_batches(asked.images, asked.recipe, asked.protocol.data)
    with torch.inference_mode():
        logits = torch.cat([classifier.model.eval()(batch) for batch in batches])
    assert classifier.key == "state_dict"
    assert logits.shape == (PHOTOGRAPHS, 1000)
    torch.testing.assert_close(logits, published.logits, rtol=0, atol=1e-5)


def test_the_record_and_its_predictions(published: Published) -> None:
    record = read_record(published.cell)
    assert record is not None
    assert record.cell_id == published.cell.name
    assert record.stage == "validate"
    assert record.status == "done"
    assert record.compliance.status == "imported"
    digest = sha256_of_file(published.folder / NAME)
    assert any(digest in deviation for deviation in record.compliance.deviations)
    assert record.resolved["checkpoint"] == {
        "file": NAME, "sha256": digest, "key": "state_dict", "pooling": "patch-mean",
        "reported_top1_percent": None, "reported_by": None,
    }  # fmt: skip
    assert set(record.protocol.slices) == {"data", "trunk:vit-t", "evaluation:finetune@vit-t"}
    with np.load(published.cell / "predictions.npz", allow_pickle=False) as archive:
        rows = {name: archive[name] for name in archive.files}
    assert [name[-13:] for name in rows["image_ids"]] == [f"{n:08d}.JPEG" for n in range(PHOTOGRAPHS)]
    ordered = published.logits.argsort(dim=1, descending=True)
    assert rows["predicted"].tolist() == ordered[:, 0].tolist()
    assert len(set(rows["predicted"])) > 1
    assert rows["most_likely"].tolist() == ordered[:, :5].tolist()
    assert rows["labels"].tolist() == list(range(PHOTOGRAPHS))
    assert 0 < record.metrics["top1_percent"].value < 100
    right = (ordered == torch.arange(PHOTOGRAPHS)[:, None]).float()
    assert record.metrics["top1_percent"].value == pytest.approx(100 * float(right[:, 0].mean()))
    assert record.metrics["top5_percent"].value == pytest.approx(100 * float(right[:, :5].sum(1).mean()))
    assert record.metrics["top1_percent"].n == PHOTOGRAPHS


def test_it_is_not_measured_twice_unless_asked(
    published: Published, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (published.cell / "record.json").read_bytes()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(classifier_evaluation, "evaluate", never)
        assert main(published.arguments) == 0
        shown = capsys.readouterr().out
        assert "measured before, --redo measures it again: " in shown
        assert "the paper reports 75.5 % of a file of this name, on 50,000 images of imagenet-1k" in shown
        with pytest.raises(AssertionError, match="measured again"):
            main([*published.arguments, "--redo"])
    assert (published.cell / "record.json").read_bytes() == before
    predictions = (published.cell / "predictions.npz").read_bytes()
    # The paper's number stands beside the same images alone: here these six pass for all.
    of_six = publication().model_copy(update={"images": PHOTOGRAPHS})
    monkeypatch.setattr("benchmark.validation.publication", lambda: of_six)
    assert main([*published.arguments, "--redo", "--workers", "2"]) == 0
    assert "reported 75.5 % (arXiv 2306.07346, Table 1): difference -" in capsys.readouterr().out
    record = read_record(published.cell)
    assert record is not None
    assert record.artefacts == json.loads(before)["artefacts"]
    assert record.runtime["workers"] == 2
    assert record.resolved["checkpoint"]["reported_top1_percent"] == 75.5
    assert (published.cell / "predictions.npz").read_bytes() == predictions
    (published.cell / "record.json").write_bytes(before)


def test_other_class_names_are_not_compared(
    published: Published, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A label is a place among the class folders: under other names it may mean another class."""
    of_six = publication().model_copy(update={"images": PHOTOGRAPHS})
    monkeypatch.setattr("benchmark.validation.publication", lambda: of_six)
    last = max((published.folder / "data" / "imagenet-1k" / "val").iterdir())
    renamed = last.rename(last.with_name("zebra"))
    try:
        words = [*published.arguments, "--work-dir", str(published.folder / "other")]
        assert main(words) == 0
    finally:
        renamed.rename(last)
    shown = " ".join(capsys.readouterr().out.split())
    assert "classes are not ImageNet's 1,000 WordNet ids" in shown
    assert "in its 1,000 classes, with vit-t: not compared" in shown
    assert "difference" not in shown


def test_the_board_shows_it(published: Published, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--protocol", str(published.folder / "mine.yaml"), "--work-dir", str(published.folder / "runs")]
    assert main(["report", *words]) == 0
    assert "Published classifiers, evaluated as they are" in capsys.readouterr().out
    page = (published.folder / "runs" / "mine" / "leaderboard" / "index.html").read_text()
    assert f"<td>{NAME}</td>" in page.replace(' class="long"', "")


def test_the_papers_files() -> None:
    paper = publication()
    assert isinstance(paper, Publication)
    assert {name: (one.trunk, one.tokenizer, one.top1_percent) for name, one in paper.files.items()} == {
        "vit_standard_tiny_patch16_224_KCLIP.tar": ("vit-t", "k-clip", 75.5),
        "vit_standard_tiny_patch16_224_VQKD.tar": ("vit-t", "vq-kd", 74.5),
        "vit_standard_small_patch16_224_KCLIP.tar": ("vit-s", "k-clip", 82.1),
        "vit_standard_small_patch16_224_VQKD.tar": ("vit-s", "vq-kd", 82.2),
        "vit_standard_base_patch16_224_KCLIP.tar": ("vit-b", "k-clip", 83.6),
        "vit_standard_base_patch16_224_VQKD.tar": ("vit-b", "vq-kd", 84.4),
    }  # fmt: skip
    fair300 = load_protocol("fair300")
    assert {one.trunk for one in paper.files.values()} == set(fair300.trunks)
    assert (fair300.data.name, fair300.data.test.count) == (paper.data_set, paper.images)
    same = {"data_set": "imagenet-1k", "images": 50000}
    assert paper.top1_percent(NAME, trunk="vit-t", **same) == 75.5
    assert paper.top1_percent(NAME, trunk="vit-s", **same) is None
    assert paper.top1_percent("other.tar", trunk="vit-t", **same) is None
    assert paper.top1_percent(NAME, trunk="vit-t", data_set="cifar-10", images=50000) is None
    assert paper.top1_percent(NAME, trunk="vit-t", data_set="imagenet-1k", images=49999) is None


def test_the_page_of_docs_lists_the_papers_files_and_their_commands() -> None:
    page = (ROOT / "docs" / "validate.md").read_text()
    for name, one in publication().files.items():
        assert f"| `{name}` | {one.trunk} | {one.tokenizer} | {one.top1_percent} |" in page
        assert f"python run_benchmark.py validate {name} --trunk {one.trunk} --data-root DIR" in page
    assert published_classifiers.publication().source.split(",")[0].removeprefix("arXiv ") in page


# On the tests' own protocol, which needs no data ---------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that measure `weights.pth` in the current folder."""
    monkeypatch.chdir(tmp_path)
    torch.save(small_vit().state_dict(), "weights.pth")
    return ["validate", "weights.pth", "--trunk", "vit-tiny-test", "--protocol", str(TINY), "--device", "cpu"]


def measured(*, work_dir: str = "runs") -> dict[str, Any]:
    (path,) = Path(work_dir).glob("tiny/cells/*/record.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_reading_processes_and_batches_move_no_bit(small: list[str]) -> None:
    digests = set()
    for number, more in enumerate(
        (["--batch", "250"], ["--batch", "1"], ["--batch", "33", "--workers", "2"])
    ):
        assert main([*small, *more, "--work-dir", f"runs{number}"]) == 0
        record = measured(work_dir=f"runs{number}")
        assert record["metrics"]["top1_percent"]["n"] == record["data_set"]["n"] == 203
        digests.add(record["artefacts"]["predictions.npz"])
    assert len(digests) == 1


def test_another_file_or_precision_is_another_cell(small: list[str]) -> None:
    assert main(small) == 0
    assert main([*small, "--precision", "bf16"]) == 0
    torch.save(small_vit(layer_scale=None).state_dict(), "weights.pth")
    assert main(small) == 0
    records = [json.loads(path.read_text()) for path in Path("runs/tiny/cells").glob("*/record.json")]
    assert len({record["cell_id"] for record in records}) == 3
    assert sorted(record["runtime"]["precision"] for record in records) == ["bf16", "fp32", "fp32"]
    assert sum("has no layer scale" in record["compliance"]["deviations"] for record in records) == 1


def test_ctrl_c_ends_with_130_and_keeps_nothing(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = classifier_evaluation.evaluation_batches

    def interrupted(*given: Any, **named: Any) -> Iterator[Tensor]:
        yield next(iter(whole(*given, **named)))
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(classifier_evaluation, "evaluation_batches", interrupted)
        assert main(small) == 130
    assert not list(Path("runs/tiny/cells").iterdir())
    assert main(small) == 0


def test_damaged_results_are_said_and_redone(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small) == 0
    (path,) = Path("runs").glob("tiny/cells/*/predictions.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert main(small) == 2
    assert "is not the file that its record names; restore it, or give the same" in capsys.readouterr().err
    assert main([*small, "--redo"]) == 0
    assert path.read_bytes() == whole


def test_one_process_at_a_time(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small) == 0
    (folder,) = Path("runs/tiny/cells").iterdir()
    capsys.readouterr()
    with validate._exclusive(folder):
        assert main([*small, "--redo"]) == 2
    assert "another process measures this file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--trunk", "vit-t"], "unknown trunk 'vit-t'"),
        (["--batch", "0"], "--batch must be 1 or more, got 0"),
        (["--workers", "-1"], "--workers must be 0 or more, got -1"),
        (["--protocol", "fair300", "--trunk", "vit-t"], "--data-root DIR"),
        (["--key", "model"], "--key model names no entry with weights"),
        (["--work-dir", "weights.pth"], "is not a folder"),
        (
            ["--pooling", "class-token"],
            "missing: norm.weight (16,), norm.bias (16,); unexpected: fc_norm.weight",
        ),
    ],
)
def test_what_was_asked_for_wrongly(
    small: list[str], changes: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*small, *changes]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("error: ")
    assert len(shown.splitlines()) == 1


def test_an_unknown_trunk_is_said_before_a_missing_file(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("weights.pth").unlink()
    assert main(small) == 2
    assert "weights.pth: no such file; give the file of a fine-tuned classifier" in capsys.readouterr().err
    assert main([*small, "--trunk", "vit-t"]) == 2
    assert "unknown trunk 'vit-t'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (b"junk", [], "weights.pth: is no file of weights that torch or safetensors write, or it is damaged"),
        (
            None,
            ["--protocol", "fair300", "--trunk", "vit-t", "--data-root", "x"],
            "width 16 and 2 blocks, and --trunk vit-t has",
        ),
        (None, ["--pooling", "class-token"], "does not fit this trunk: missing: norm.weight"),
    ],
    ids=["junk", "another trunk", "another pooling"],
)
def test_the_file_is_looked_at_before_any_image_is_listed(
    small: list[str],
    content: bytes | None,
    changes: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("listed")

    monkeypatch.setattr(validate, "open_split", never)
    with pytest.raises(AssertionError, match="listed"):
        main(small)
    if content is not None:
        Path("weights.pth").write_bytes(content)
    assert main([*small, *changes]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_images_that_are_not_there(published: Published, capsys: pytest.CaptureFixture[str]) -> None:
    """The data root has 1,000 images, and the paper's protocol wants 50,000: a fork may want fewer."""
    words = [*published.arguments, "--work-dir", str(published.folder / "unused")]
    assert main([*words, "--protocol", "fair300"]) == 2
    assert (
        "test of protocol fair300 wants images 0 to 50000 of test, which has 1000 in 1000 classes; complete "
        "the data set, or fork the protocol with a smaller data.test.count (see docs/validate.md)"
    ) in capsys.readouterr().err
    assert main([*words, "--data-root", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (published.folder / "unused").exists()


def test_the_docs_trial_on_few_images_loads(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "validate.md").read_text()
    out = tmp_path / "trial.yaml"
    assert "run_benchmark.py fork fair300 trial --out trial.yaml" in page
    assert main(["fork", "fair300", "trial", "--out", str(out)]) == 0
    (count,) = re.findall(r"`(count: \{value: \d+, source: .+\})`", page)
    text, changes = re.subn(r"count: \{value: 50000, source: .+\}", count, out.read_text())
    assert changes == 1
    out.write_text(text)
    assert load_protocol(str(out)).data.test.count == 2000
