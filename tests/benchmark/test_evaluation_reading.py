"""Evaluations read every image once and in order, whoever reads it: the same bits from other processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark import classification
from benchmark.classification import evaluation_batches
from benchmark.data import open_split
from benchmark.image_files import DamagedImage
from benchmark.transforms import normalise
from protocols import load_protocol
from protocols.errors import HarnessError
from tests.benchmark.imagenet_folder import COUNT, make_imagenet

PROTOCOL = load_protocol(str(Path(__file__).parent.parent / "full.yaml"))
RECIPE, DATA = PROTOCOL.evaluations["finetune"], PROTOCOL.data


@pytest.mark.parametrize("fraction", [None, 0.9], ids=["square", "crop"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_bits_in_the_same_order_each_once(
    fraction: float | None, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_imagenet(tmp_path)
    images = open_split("imagenet-1k", "train", data_root=tmp_path).first(COUNT - 1)
    recipe = RECIPE.model_copy(update={"evaluation_crop_fraction": fraction})
    monkeypatch.setattr(classification, "PIECE", 4)
    torch.manual_seed(3)
    batches = list(evaluation_batches(images, recipe, DATA, batch=10, workers=workers))
    after = torch.rand(())
    assert [len(batch) for batch in batches] == [10, 10, 10, 10, 7]
    whole = torch.cat(list(evaluation_batches(images, recipe, DATA, batch=COUNT)))
    assert torch.equal(torch.cat(batches), whole)
    if fraction is None:
        expected = normalise(torch.from_numpy(images.pixels(DATA.image_size)), DATA.mean, DATA.std)
        assert torch.equal(whole, expected)
    # No draw of others moves.
    torch.manual_seed(3)
    assert torch.equal(torch.rand(()), after)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_wherever_it_was_read(workers: int, tmp_path: Path) -> None:
    folder = make_imagenet(tmp_path)
    images = open_split("imagenet-1k", "train", data_root=tmp_path)
    (folder / images.image_ids[17]).write_bytes(b"no image")
    with pytest.raises(DamagedImage, match=f"^{images.image_ids[17]} cannot be read as an image"):
        list(evaluation_batches(images, RECIPE, DATA, workers=workers))
    assert np.array_equal(images.labels[[0, 17]], [0, 1])


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_reading_process_says_arrives_as_it_was_said(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_imagenet(tmp_path)
    images = open_split("imagenet-1k", "train", data_root=tmp_path)

    def image(*_: object) -> None:
        raise HarnessError("the archive changed since it was listed; give the command again")

    monkeypatch.setattr(type(images), "image", image)
    with pytest.raises(HarnessError, match=r"^the archive changed since it was listed; give the command"):
        list(evaluation_batches(images, RECIPE, DATA, workers=workers))
