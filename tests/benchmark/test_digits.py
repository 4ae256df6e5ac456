"""The embedded digits: that they are the published ones, how grey levels are scaled, where the split lies."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from benchmark import data
from benchmark.data import open_images, open_part, open_split
from benchmark.image_part import ArrayPart
from benchmark.inputs import EMBEDDED_SETS, missing_inputs
from benchmark.plan import make_plan
from benchmark.selection import select
from protocols import load_protocol
from protocols.errors import HarnessError

# Of scikit-learn 1.9.1's sklearn/datasets/data/digits.csv.gz, unpacked: a line has 64 levels and the label.
CSV_SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"


def split(name: str) -> ArrayPart:
    part = open_split("digits", name)
    assert isinstance(part, ArrayPart)
    return part


def levels(arrays: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Grey levels 0 to 16 of pixels 0 to 255."""
    return np.rint(arrays.astype(np.float64) * 16 / 255).astype(np.int64)


def test_they_are_scikit_learns_to_the_byte_in_its_order() -> None:
    lines = [
        ",".join(map(str, [*image.ravel(), label]))
        for part in (split("train"), split("test"))
        for image, label in zip(levels(part.arrays), part.labels, strict=True)
    ]
    text = "".join(f"{line}\n" for line in lines)
    assert hashlib.sha256(text.encode()).hexdigest() == CSV_SHA256


def test_the_first_thousand_are_for_training() -> None:
    train, test = split("train"), split("test")
    assert (len(train), len(test)) == (1000, 797)
    assert train.classes == test.classes == tuple("0123456789")
    assert (train.image_ids[0], test.image_ids[-1]) == ("train/0000000", "test/0000796")
    assert np.bincount(train.labels).min() > 90
    assert np.bincount(test.labels).min() > 70


def test_sixteen_grey_levels_become_the_nearest_of_255() -> None:
    exact = np.arange(17) * 255 / 16
    present = np.unique(np.concatenate([split(name).arrays for name in ("train", "test")]))
    assert (len(present), present[0], present[-1]) == (17, 0, 255)
    assert np.abs(present - exact).max() <= 0.5


def test_an_image_fills_the_size_of_the_protocol() -> None:
    """8 x 8 by the shared geometry, bicubic, and not in a frame."""
    protocol = load_protocol("mini")
    part = open_part("digits", "test", protocol.transfer_sets["digits"].test)
    pixels = part.first(3).pixels(protocol.data.image_size)
    assert pixels.shape == (3, 3, 28, 28)
    image = Image.fromarray(part.arrays[1]).convert("RGB").resize((28, 28), Image.Resampling.BICUBIC)
    assert np.array_equal(pixels[1], np.asarray(image).transpose(2, 0, 1))
    found = open_images("digits", ["test/0000002"])
    assert np.array_equal(np.asarray(found.image(0)), part.arrays[2])


def test_nothing_is_missing_for_them() -> None:
    protocol = load_protocol("mini")
    choice = select(protocol, methods=["scratch"], evaluations=["digits"], views=["none"])
    (cell,) = make_plan(protocol, choice)
    assert dict(cell.slices).keys() == {"data", "trunk:vit-mini", "evaluation:digits", "transfer_set:digits"}
    assert missing_inputs(cell, protocol, data_root=None) == []
    assert "digits" in EMBEDDED_SETS


def test_every_embedded_set_has_a_reader() -> None:
    assert set(EMBEDDED_SETS) == set(data.READERS)


@pytest.mark.parametrize("fault", ["damaged", "gone"])
def test_a_file_that_is_not_the_embedded_one_is_named(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "damaged":
        content = bytearray((data.EMBEDDED / "digits.npz").read_bytes())
        content[1000] ^= 1
        (tmp_path / "digits.npz").write_bytes(content)
    monkeypatch.setattr(data, "EMBEDDED", tmp_path)
    said = "SHA-256 differs" if fault == "damaged" else "missing from the checkout"
    with pytest.raises(HarnessError, match=f"digits.npz.*{said}.*git checkout benchmark/embedded/digits.npz"):
        open_split("digits", "train")
