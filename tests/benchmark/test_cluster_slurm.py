"""A real Slurm of one node, where the machine can run one: arrays, dependencies, requeueing, the queue."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmark.cli import main
from tests.benchmark.slurm_daemons import NoSlurm, slurm_of_one_node
from tests.benchmark.submitting import TINY, cluster_file, words_of

ROOT = Path(__file__).parent.parent.parent
STAND_IN = Path(__file__).parent / "stand_in_cell.py"
CHOICE = ("--methods", "mim", "pim", "--evaluations", "linear-probe")
WAIT_SECONDS = 180.0  # of a machine that has other work, too; a few are used


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    try:
        with slurm_of_one_node(tmp_path_factory.mktemp("slurm")):
            yield
    except NoSlurm as reason:
        pytest.skip(f"no Slurm: {reason}")


def cells(work_dir: Path) -> dict[str, dict[str, Any]]:
    """What `status --json` says of every cell, by its stage and method."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        main(["status", "--protocol", str(TINY), "--work-dir", str(work_dir), *CHOICE, "--json"])
    found = json.loads(shown.getvalue())["cells"]
    return {" ".join([one["stage"], one["row"].split("/")[0]]): one for one in found}


def wait_for(work_dir: Path, holds: Callable[[dict[str, dict[str, Any]]], bool]) -> dict[str, dict[str, Any]]:
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds(found := cells(work_dir)):
        states = {name: (one["state"], one["job"]) for name, one in found.items()}
        assert time.monotonic() < deadline, queue_as_it_is() + f"\n{states}"
        time.sleep(0.3)
    return found


def queue_as_it_is() -> str:
    """All that Slurm says of its jobs, for a test that failed."""
    done = subprocess.run(
        ["scontrol", "show", "job"], capture_output=True, text=True, timeout=20, check=False
    )
    return done.stdout + done.stderr


def slurm_command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=20)


@pytest.mark.usefixtures("slurm")
def test_cells_run_in_order_are_requeued_and_never_submitted_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir, told = tmp_path / "runs", tmp_path / "told"
    told.mkdir()
    python = f"env PYTHONPATH={ROOT} {sys.executable} {STAND_IN} {told}"
    file = cluster_file(tmp_path, python=python, array_parallelism=4)
    at_first = cells(work_dir)
    assert not any(one["job"] for one in at_first.values())
    waits = told / f"{at_first['pretrain mim']['id']}.waits"
    fails = told / f"{at_first['pretrain pim']['id']}.fails"
    waits.touch()
    fails.touch()

    assert main(words_of(work_dir, file, *CHOICE)) == 0
    shown = capsys.readouterr().out
    assert "afterok:" in shown
    assert "aftercorr:" in shown
    assert "5 cells submitted" in shown

    # MIM's pre-training is held on its node, PIM's fails: its probe leaves the queue, MIM's goes on waiting.
    found = wait_for(
        work_dir,
        lambda now: (
            now["pretrain mim"]["job"]["state"] == "RUNNING"
            and now["pretrain pim"]["state"] == "failed"
            and now["linear-probe pim"]["job"]["state"] == "CANCELLED"
        ),
    )
    assert found["tokenise k-pixel"]["state"] == "done"
    assert found["pretrain mim"]["state"] == "running"
    assert found["linear-probe pim"]["job"]["reason"] == "DependencyNeverSatisfied"
    assert found["linear-probe mim"]["state"] == "to do"
    waiting = found["linear-probe mim"]["job"]
    assert (waiting["state"], waiting["reason"]) == ("PENDING", "Dependency")
    main(["status", "--protocol", str(TINY), "--work-dir", str(work_dir), *CHOICE])
    text = capsys.readouterr().out
    assert "queue: 1 running, 1 waiting (Dependency)" in text
    assert "left the queue without a record" in text

    assert main(words_of(work_dir, file, *CHOICE)) == 0
    assert "0 cells submitted, 2 in the queue already, 1 done" in capsys.readouterr().out

    # What Slurm does before a preemption or the end of the time: SIGTERM to the step, not to the script.
    job = found["pretrain mim"]["job"]["job"]
    slurm_command("scancel", "--signal=TERM", job)
    found = wait_for(work_dir, lambda now: now["pretrain mim"]["job"]["state"] == "PENDING")
    assert found["pretrain mim"]["job"]["job"] == job
    waits.unlink()
    found = wait_for(work_dir, lambda now: now["linear-probe mim"]["state"] == "done")
    assert found["pretrain mim"]["state"] == "done"

    folder = work_dir / "tiny" / "cells" / found["pretrain mim"]["id"]
    log = (folder / f"slurm-{job}.out").read_text()
    assert log.count(f"stands in for {found['pretrain mim']['id']}") == 2, (
        "both attempts, in the cell's folder"
    )
    assert "requeued at" in log
    record = json.loads((folder / "record.json").read_text())
    assert [one["outcome"] for one in record["attempts"]] == ["interrupted", "done"]

    # PIM again, with the probe that needs it.
    fails.unlink()
    assert main(words_of(work_dir, file, *CHOICE, "--redo-failed")) == 0
    assert "2 cells submitted, 3 done" in capsys.readouterr().out
    found = wait_for(work_dir, lambda now: all(one["state"] == "done" for one in now.values()))
    assert found["pretrain pim"]["job"]["job"] != job


@pytest.mark.usefixtures("slurm")
def test_what_sbatch_refuses_is_told_and_not_remembered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = tmp_path / "runs"
    file = cluster_file(tmp_path, partition="nonesuch")
    assert main(words_of(work_dir, file, *CHOICE)) == 2
    told = capsys.readouterr().err
    assert "error: sbatch refused an array: sbatch: error: invalid partition specified: nonesuch" in told
    assert not any(one["job"] for one in cells(work_dir).values())
