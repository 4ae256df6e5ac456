"""Files of every kind on a full disk: the error names the one that was written, and what was there stays."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark.checkpoint import load_newest, save_checkpoint, save_weights
from benchmark.disk_trouble import DiskTrouble, LastWords, disk_trouble, reading, say_last
from benchmark.encoding import TokenShards
from benchmark.metrics import newest_metrics
from benchmark.record_cell import note_attempt, read_attempts
from leaderboard.report import _write as write_board
from protocols.files import append_line, remove_leftovers, write_atomically
from tests.disks.small_disk import full_after
from tests.tokenizers.made_stores import MadeIds, write_made
from tokenizers.feature_file import FeatureFile
from tokenizers.shards import Shards

LINE = {"step": 1, "steps": 9, "seconds": 1.0, "images_per_second": 2.0, "loss": 3.0}


def checkpoint(folder: Path, value: int) -> None:
    save_checkpoint(folder, value, {"weight": torch.full((3000,), float(value))})


def weights(folder: Path, value: int) -> None:
    save_weights(folder / "backbone.safetensors", {"weight": torch.full((3000,), float(value))})


def text(folder: Path, value: int) -> None:
    """record.json, begun.json, predictions.npz, the manifest of a pack: all are written in this way."""
    write_atomically(folder / "record.json", f"{value}" * 9000)


def board(folder: Path, value: int) -> None:
    write_board(folder, {"index.html": f"{value}" * 9000})


def shard(folder: Path, value: int) -> None:
    shards = Shards(folder, images=40, identity={}, size=40)
    shards.prepare()
    tokens = TokenShards(shards, patches=200)
    tokens.write(0, np.full((40, 200), value, dtype=np.uint16), seconds=0)


def store(folder: Path, value: int) -> None:
    write_made(folder / f"store-{value}", MadeIds(2000)[:1000])


WRITERS = [checkpoint, weights, text, board, shard, store]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_full_disk_is_named_and_what_was_there_stays(
    write: Callable[[Path, int], None], tmp_path: Path
) -> None:
    write(tmp_path, 1)
    before = content(tmp_path)
    with full_after(2000), pytest.raises(OSError, match="File too large") as raised:
        write(tmp_path, 2)
    named = Path(str(raised.value.filename))
    assert named.is_relative_to(tmp_path)
    assert named.suffix in (".pt", ".safetensors", ".json", ".html", ".npy", ".txt"), "no temporary name"
    left = content(tmp_path)
    assert before.items() <= left.items(), "what was whole stays whole"
    assert not [name for name in left.keys() - before.keys() if Path(name).name.startswith(".")]
    write(tmp_path, 2)
    assert content(tmp_path) != before


def test_a_file_that_is_filled_in_place_has_no_whole_shard_then(tmp_path: Path) -> None:
    def features(folder: Path) -> FeatureFile:
        return FeatureFile(folder, images=4, patches=4, width=400, rows=16, seed=0, identity={})

    file, rows = features(tmp_path), torch.ones(4, 4, 400)
    file.prepare()
    with full_after(2000), pytest.raises(OSError, match="File too large"):
        file.write(0, [rows])
    assert file.shards.open_shards() == [0]
    file.write(0, [rows])
    assert (np.asarray(file.features()) == 1).all()


def test_a_disk_that_was_full_before_leaves_what_is_newest_and_whole(tmp_path: Path) -> None:
    """Step 30 was not finished; going on from 20, the next two that are kept are whole ones."""
    for step in (10, 20, 30):
        checkpoint(tmp_path, step)
    (tmp_path / "step-000000030.sha256").unlink()
    checkpoint(tmp_path, 25)
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["step-000000020.pt", "step-000000025.pt"]
    newest = load_newest(tmp_path)
    assert newest is not None
    assert newest["step"] == 25


def test_a_line_that_was_cut_short_does_not_run_into_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, json.dumps(LINE))
    with (
        full_after(path.stat().st_size + 20),
        pytest.raises(OSError, match=r"File too large.*metrics\.jsonl"),
    ):
        append_line(path, json.dumps(LINE | {"step": 2}))
    assert not path.read_bytes().endswith(b"\n"), "half a line is there"
    assert newest_metrics(tmp_path) == LINE
    append_line(path, json.dumps(LINE | {"step": 3}))
    assert newest_metrics(tmp_path) == LINE | {"step": 3}
    assert len(path.read_bytes().splitlines()) == 3


def test_an_attempt_that_was_cut_short_costs_no_other(tmp_path: Path) -> None:
    note_attempt(tmp_path, event="start", pid="1")
    note_attempt(tmp_path, event="interrupted")
    room = (tmp_path / "attempts.jsonl").stat().st_size + 20
    with full_after(room), pytest.raises(OSError, match="File too large"):
        note_attempt(tmp_path, event="start", pid="2")
    note_attempt(tmp_path, event="start", pid="3")
    found = read_attempts(tmp_path, ending="done")
    assert [one.outcome for one in found] == ["interrupted", "done"]


def test_leftovers_of_killed_processes_go_and_nothing_else(tmp_path: Path) -> None:
    inside = tmp_path / "checkpoints" / "encoding"
    inside.mkdir(parents=True)
    leftovers = [tmp_path / ".record.json.node-7", inside / ".00001.npy.node-1.example.org-71"]
    others = [tmp_path / name for name in ("record.json", ".lock", ".hidden-file", ".store.unfinished-77")]
    for path in (*leftovers, *others[:3]):
        path.write_text("")
    others[3].mkdir()
    remove_leftovers(tmp_path)
    assert all(path.exists() for path in leftovers), "somebody may be writing them"
    os.utime(leftovers[0], (1, 1))
    remove_leftovers(tmp_path)
    assert [path.exists() for path in leftovers] == [False, True]
    remove_leftovers(tmp_path, older_than=0.0)
    assert [path.exists() for path in leftovers] == [False, False]
    assert all(path.exists() for path in others)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO])
def test_trouble_of_a_disk_is_told_from_failures_wherever_it_stands(number: int, tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoints", 30)
    try:
        try:
            raise OSError(number, os.strerror(number), "/w/file")
        except OSError:
            raise RuntimeError("a library's own words") from None
    except RuntimeError as error:
        trouble = disk_trouble(error, tmp_path)
    assert trouble is not None
    said = f"/w/file: {os.strerror(number)}; {tmp_path.name} is saved up to step 30; "
    assert str(trouble).startswith(said)
    assert str(trouble).count("; ") == 2, "and the remedy"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, "gone", "x"), OSError("no number"), ValueError("28")]
)
def test_other_errors_are_failures_of_their_cell(error: Exception, tmp_path: Path) -> None:
    assert disk_trouble(error, tmp_path) is None


def test_a_disk_that_cannot_be_read_is_named_also_from_another_process() -> None:
    said = "^train/a: Input/output error while it was read; look at the disk"
    with pytest.raises(DiskTrouble, match=said) as raised, reading("train/a"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    # As torch makes it anew from a data loader's process.
    again = DiskTrouble(f"Caught DiskTrouble in ...\nbenchmark.disk_trouble.DiskTrouble: {raised.value}\n")
    assert str(again) == str(raised.value)
    with pytest.raises(FileNotFoundError), reading("train/a"):
        raise FileNotFoundError(errno.ENOENT, "gone")


def test_last_words_need_no_disk(tmp_path: Path) -> None:
    words = LastWords()
    try:
        assert words.heard() is None
        with full_after(0):
            say_last(words.path, "a sentence\nof two lines")
            say_last(words.path, "x" * 10_000)
        assert words.heard() == "a sentence of two lines"
    finally:
        words.close()
    say_last(words.path, "nobody listens")
    (tmp_path / "other").write_text("kept")
    say_last(str(tmp_path / "other"), "this is no pipe")
    assert (tmp_path / "other").read_text() == "kept"
