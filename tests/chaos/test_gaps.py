"""What is written in several steps, killed between any two of them: files, checkpoints, boards, packs."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from benchmark import packing
from benchmark.checkpoint import load_newest, save_checkpoint
from benchmark.data import open_part
from benchmark.packing import Packing
from leaderboard.report import _write as write_board
from protocols.files import write_atomically
from protocols.schema import Part
from tests.benchmark.imagenet_folder import COUNT, make_imagenet
from tests.chaos.sweep import every_gap, killed_before


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed takes nothing along that the system already has."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Deadly(str):
    """Kills whoever turns it into bytes: when the file is open, and empty."""

    def encode(self, *_: object, **__: object) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_file_that_is_being_written_again_stays_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, "old")
    assert killed_before(0, tmp_path, lambda: write_atomically(path, Deadly("new")))
    assert path.read_text() == "old"
    for _ in every_gap(tmp_path, lambda: write_atomically(path, "new"), lambda: None):
        assert path.read_text() in ("old", "new")
    assert path.read_text() == "new"


def test_a_checkpoint_that_was_saved_is_there_whatever_happens_to_the_next(tmp_path: Path) -> None:
    folder, saved = tmp_path / "checkpoints", tmp_path / "saved"

    def train() -> None:
        """Four steps, the third of which drops the first; each is said to be saved once it is."""
        for step in range(1, 5):
            save_checkpoint(folder, step, {"weights": torch.full((3,), step)})
            descriptor = os.open(saved, os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, b".")
            os.close(descriptor)

    def begin() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        saved.write_bytes(b"")

    gaps = 0
    for gap in every_gap(tmp_path, train, begin, step=2):
        gaps = gap
        found, steps = load_newest(folder), len(saved.read_bytes())
        assert (found or {"step": 0})["step"] in (steps, steps + 1)
        assert found is None or found["weights"].tolist() == [found["step"]] * 3
    assert gaps > 20
    assert load_newest(folder)["step"] == 4  # type: ignore[index]


def test_a_board_that_is_being_replaced_is_complete_when_the_command_is_given_again(tmp_path: Path) -> None:
    folder = tmp_path / "leaderboard"
    old = {"index.html": "old page", "gone.svg": "of earlier records"}
    new: dict[str, str | bytes] = {"index.html": "new page", "fresh.svg": "figure"}

    def begin() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        write_board(folder, old)

    def there() -> dict[str, str]:
        return {path.name: path.read_text() for path in folder.glob("[!.]*") if path.suffix != ".json"}

    for _ in every_gap(tmp_path, lambda: write_board(folder, new), begin):
        for name, text in there().items():
            assert text in (old.get(name), new.get(name)), "no file is half one board's, half another's"
        write_board(folder, new)
        assert there() == new
    assert there() == new


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packing:
    monkeypatch.setattr(packing, "PACK_SHARD_IMAGES", 20)
    make_imagenet(tmp_path / "data")
    images = open_part(
        "imagenet-1k", "pretraining", Part(split="train", count=COUNT), data_root=tmp_path / "data"
    )
    return Packing(images, size=28, work_dir=tmp_path / "runs")


def test_a_pack_is_there_only_when_it_is_whole(pack: Packing, tmp_path: Path) -> None:
    work_dir = tmp_path / "runs"

    def make() -> None:
        with pack.exclusive():
            assert pack.make(workers=0, progress=lambda _: None, say=lambda _: None) == []

    def begin() -> None:
        shutil.rmtree(work_dir, ignore_errors=True)

    make()
    expected = (pack.folder / "pixels.npy").read_bytes()
    seen = {True: 0, False: 0}
    for gap in every_gap(work_dir, make, begin, step=3):
        seen[pack.is_whole()] += 1
        if not pack.is_whole():
            make()
        assert (pack.folder / "pixels.npy").read_bytes() == expected, gap
    assert seen[False] > 3


def test_a_marker_of_a_shard_says_that_its_rows_are_on_disk(
    pack: Packing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that decodes ends in the middle of its rows: their shard is open."""
    whole, calls = packing.square_pixels, 0

    def deadly(image: object, size: int) -> object:
        nonlocal calls
        calls += 1
        if calls == 25:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(image, size)  # type: ignore[arg-type]

    def make() -> None:
        monkeypatch.setattr(packing, "square_pixels", deadly)
        pack.make(workers=0, progress=lambda _: None, say=lambda _: None)

    with pack.exclusive():
        assert killed_before(0, tmp_path / "runs", make)
        assert [shard for shard in range(3) if pack.shards.is_done(shard)] == [0]
