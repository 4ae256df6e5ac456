"""A whole run whose cells meet a full disk: it ends with one sentence, and the same command ends it well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark.cli import main
from tests.benchmark.test_run import TINY, run
from tests.disks.small_disk import cells_full_after

pytestmark = pytest.mark.usefixtures("boards_without_drawings")
WORDS = ("--methods", "mim", "--evaluations", "linear-probe", "--set", "pretraining.epochs=2")


def recorded(work_dir: Path) -> dict[str, str]:
    return {
        path.parent.name.partition("-")[0]: json.loads(path.read_text())["status"]
        for path in sorted((work_dir / "tiny" / "cells").glob("*/record.json"))
    }


def test_a_full_disk_ends_the_run_with_a_sentence_and_nothing_is_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tokenize", "--protocol", str(TINY), "--work-dir", str(tmp_path), "--device", "cpu"]) == 0
    with cells_full_after(40_000):  # room for records, not for a checkpoint
        full = run(tmp_path, *WORDS)
    assert full.returncode == 2
    (line,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    (folder,) = (tmp_path / "tiny" / "cells").glob("pretrain-*")
    file = folder / "checkpoints" / "step-000000016.pt"
    assert line == (
        f"error: cell {folder.name} was ended by its disk: {file}: File too large; what was finished before "
        "is kept; raise the limit of a file's size (ulimit -f), and give the same command again"
    )
    assert recorded(tmp_path) == {"tokenise": "done"}
    assert "was ended by" not in (folder / "log").read_text()
    assert str(file) in (folder / "log").read_text(), "where there is room the log says it, too"
    assert not [path.name for path in (folder / "checkpoints").glob(".*")], "nothing more fills the disk"
    again = run(tmp_path, *WORDS)
    assert again.returncode == 0, again.stderr
    assert recorded(tmp_path) == {"linear": "done", "pretrain": "done", "tokenise": "done"}
