"""Real disks that are small or read-only, where mounts are allowed; and file systems that keep no locks."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmark.checkpoint import load_newest, save_checkpoint
from benchmark.cli import main
from benchmark.disk_trouble import disk_trouble
from benchmark.record_cell import note_attempt
from tests.benchmark.test_run import TINY
from tests.disks.small_disk import mount, on_a_disk_of_its_own

NO_LOCKS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS]


def words(work_dir: Path, *before: str) -> list[str]:
    return [*before, "--protocol", str(TINY), "--work-dir", str(work_dir), "--device", "cpu"]


def trouble_of(act: Callable[[], None], folder: Path) -> str:
    try:
        act()
    except OSError as error:
        return str(disk_trouble(error, folder))
    return "no trouble"


def test_a_full_disk_keeps_the_last_whole_checkpoint(tmp_path: Path) -> None:
    """A checkpoint here is 42 KB, and at a time there are three: the third does not fit."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()

    def save(step: int) -> None:
        save_checkpoint(folder, step, {"weight": torch.full((10_000,), float(step))})

    def work() -> None:
        mount(folder, "-t", "tmpfs", "-o", "size=120k", "none")
        save(10)
        save(20)
        said = trouble_of(lambda: save(30), tmp_path)
        assert said.startswith(
            f"{folder / 'step-000000030.pt'}: No space left on device; {tmp_path.name} is "
        )
        assert "saved up to step 20; make room, and give the same command again" in said
        assert sorted(path.suffix for path in folder.iterdir()) == [".pt", ".pt", ".sha256", ".sha256"]
        newest = load_newest(folder)
        assert newest is not None
        assert newest["step"] == 20
        mount(folder, "-o", "remount,size=200k")
        save(30)
        newest = load_newest(folder)
        assert newest is not None
        assert newest["step"] == 30

    on_a_disk_of_its_own(work)


def test_a_read_only_work_dir_is_read_and_not_run_in(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cells = tmp_path / "tiny" / "cells"

    def work() -> None:
        mount(tmp_path, "-t", "tmpfs", "none")
        cells.mkdir(parents=True)
        mount(tmp_path, "-o", "remount,ro")
        assert main(["status", *words(tmp_path)[:4]]) == 0
        assert main(words(tmp_path)) == 2
        said = trouble_of(lambda: note_attempt(cells, event="start"), cells)
        assert said.startswith(f"{cells / 'attempts.jsonl'}: Read-only file system; "), said

    on_a_disk_of_its_own(work)
    out, err = capfd.readouterr()
    assert "to do" in out
    (line,) = [line for line in err.splitlines() if line]
    assert line.startswith(f"error: work dir {tmp_path} cannot be used: ")
    assert "--work-dir" in line


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_file_system_without_locks_is_said_plainly(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert main(words(tmp_path)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    lock = tmp_path / "tiny" / ".lock"
    assert line.startswith(f"error: {lock}: its file system keeps no locks ({os.strerror(number)}), and ")
    assert "have it mounted with locks" in line
    assert "--work-dir" in line
    assert not list((tmp_path / "tiny").glob("cells/*/attempts.jsonl")), "no cell was begun"
