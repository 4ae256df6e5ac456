"""Packs whose pixels, or the sums that they are held against, are no longer as they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmark import packing
from benchmark.image_part import ArrayPart, ImagePart
from benchmark.packed import PIXELS_NAME, SUMS_NAME, UnusablePack, open_pack, read_manifest, row_sum
from benchmark.packing import Packing
from protocols.files import write_atomically
from tests.disks.test_damage import damages

IMAGES, SIZE = 6, 5  # rows of 75 bytes: no whole number of words


def part() -> ImagePart:
    pixels = np.random.default_rng(0).integers(256, size=(IMAGES, SIZE, SIZE), dtype=np.uint8)
    return ArrayPart(
        data_set="made",
        name="pretraining",
        classes=("one",),
        sample_ids=np.arange(IMAGES),
        image_ids=tuple(f"train/{index}" for index in range(IMAGES)),
        labels=np.zeros(IMAGES, dtype=np.int64),
        arrays=pixels,
    )


def make(work_dir: Path, *, verify: bool = False) -> list[str]:
    """As the command does it; gives what it said."""
    pack, said = Packing(part(), size=SIZE, work_dir=work_dir), list[str]()
    with pack.exclusive():
        if verify:
            pack.verify(workers=0, progress=lambda _: None, say=said.append)
        if not pack.is_whole():
            pack.make(workers=0, progress=lambda _: None, say=said.append)
    return said


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(packing, "PACK_SHARD_IMAGES", 4)
    make(tmp_path)
    return Packing(part(), size=SIZE, work_dir=tmp_path).folder


def test_a_changed_byte_is_seen_where_it_is_read(folder: Path, tmp_path: Path) -> None:
    pixels = folder / PIXELS_NAME
    content = bytearray(pixels.read_bytes())
    for at in (1, 71, 75):  # in a row's first word, its last, and in the bytes behind the last whole one
        changed = content.copy()
        changed[-at - 2 * 75] ^= 16
        pixels.write_bytes(changed)
        pack = open_pack(part(), size=SIZE, work_dir=tmp_path)
        whole = pack.read(np.array([0, 1, 2, 4, 5]))
        assert whole.shape == (5, 3, SIZE, SIZE)
        with pytest.raises(UnusablePack, match=r"pixels\.npy: damaged: the image at position 3 .* --verify"):
            pack.read(np.arange(IMAGES))
    assert "made anew: shard 0 of 2" in make(tmp_path, verify=True)[0]
    assert pixels.read_bytes() == content
    assert np.array_equal(
        open_pack(part(), size=SIZE, work_dir=tmp_path).read(np.array([3])), part_pixels()[3:4]
    )


def part_pixels() -> np.ndarray:
    images = [np.asarray(part().image(index).convert("RGB")) for index in range(IMAGES)]
    return np.stack(images).transpose(0, 3, 1, 2)


def test_damaged_sums_are_refused_and_made_anew(folder: Path, tmp_path: Path) -> None:
    path = folder / SUMS_NAME
    content = path.read_bytes()
    ways: dict[str, Callable[[bytes], bytes]] = dict(damages(len(content)))
    for name, change in ways.items():
        path.write_bytes(change(content))
        with pytest.raises(UnusablePack, match=r"sums\.npy: damaged: .* --verify"):
            open_pack(part(), size=SIZE, work_dir=tmp_path)
        if name in ("empty", "garbage"):
            assert make(tmp_path, verify=True), name
            assert path.read_bytes() == content
    path.unlink(missing_ok=True)
    assert make(tmp_path, verify=True)
    assert path.read_bytes() == content


def test_a_pack_from_before_there_were_sums_is_read_as_it_was(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    old = manifest.model_copy(update={"sums": ""}).sealed()
    write_atomically(folder / "manifest.json", old.model_dump_json(exclude={"sums"}))
    (folder / SUMS_NAME).unlink()
    assert read_manifest(folder) == old
    assert make(tmp_path, verify=True) == []
    pack = open_pack(part(), size=SIZE, work_dir=tmp_path)
    assert np.array_equal(pack.read(np.arange(IMAGES)), part_pixels())


def test_any_one_changed_bit_changes_the_sum() -> None:
    row = np.random.default_rng(1).integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)
    whole, seen = row_sum(row), set()
    for byte in range(row.size):
        for bit in range(8):
            row.reshape(-1)[byte] ^= 1 << bit
            seen.add(row_sum(row) != whole)
            row.reshape(-1)[byte] ^= 1 << bit
    assert seen == {True}
    assert row_sum(row) == whole
