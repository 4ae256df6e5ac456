"""`scheduler: local`: submitit's local executor runs the same cells, one by one, without a Slurm."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmark.cluster_queue import Ledger, ledger_path, read_ledger
from benchmark.commands.deviations import chosen_cells
from tests.benchmark.submitting import cluster_file, options_of, submit_open

ROOT = Path(__file__).parent.parent.parent
STAND_IN = Path(__file__).parent / "stand_in_cell.py"

CHOICE = ("--methods", "mim", "--evaluations", "linear-probe")
WAIT_SECONDS = 240.0


def wait_for_process(pid: int) -> None:
    """Until submitit's controller, a child of this process that nobody waits for, has ended."""
    deadline = time.monotonic() + WAIT_SECONDS
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def record(work_dir: Path, stage: str) -> dict[str, Any]:
    (path,) = (work_dir / "tiny" / "cells").glob(f"{stage}-*/record.json")
    return json.loads(path.read_text())


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_parent_and_its_child_run_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The parent makes tokens; its child, which only has to come later, trains nothing."""
    work_dir, told = tmp_path / "runs", tmp_path / "told"
    python = f"env PYTHONPATH={ROOT} {sys.executable} {STAND_IN} {told}"
    file = cluster_file(tmp_path, scheduler="local", setup=["export OMP_NUM_THREADS=1"], python=python)
    told.mkdir()
    tokens, *_ = chosen_cells(options_of(work_dir, file, *CHOICE))[2]
    (told / f"{tokens.id}.real").touch()
    assert submit_open(work_dir, file, *CHOICE, stages=("tokenise", "pretrain")) == 0
    assert "2 cells submitted" in capsys.readouterr().out

    assert submit_open(work_dir, file, *CHOICE, stages=("tokenise", "pretrain")) == 0
    assert "0 cells submitted, 2 in the queue already" in capsys.readouterr().out

    ledger = read_ledger(ledger_path(work_dir, "tiny")) or Ledger()
    (process,) = {entry.job for entry in ledger.cells.values()}
    assert process is not None
    wait_for_process(int(process))
    parent, child = record(work_dir, "tokenise"), record(work_dir, "pretrain")
    assert parent["status"] == child["status"] == "done"
    assert parent["metrics"]["codebook_size"]["value"] == 16
    assert list(child["parents"]) == [parent["cell_id"]]
    assert parent["attempts"][0]["ended"] <= child["attempts"][0]["started"]

    assert submit_open(work_dir, file, *CHOICE, stages=("tokenise", "pretrain")) == 0
    assert "0 cells submitted, 2 done" in capsys.readouterr().out
