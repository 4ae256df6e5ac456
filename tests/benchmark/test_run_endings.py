"""How a run ends that does not go well: signals, failed cells, a work dir that cannot be one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.benchmark.test_run import command, records, run, wait_for


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_says_how_to_go_on_and_leaves_nobody(tmp_path: Path, number: int, code: int) -> None:
    long = ["--methods", "mim", "--evaluations", "linear-probe", "--set", "pretraining.epochs=400"]
    harness = subprocess.Popen(
        command(tmp_path, *long),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: bool(list((tmp_path / "tiny" / "cells").glob("pretrain-*/metrics.jsonl"))))
    started = time.monotonic()
    if number == signal.SIGTERM:
        harness.send_signal(number)
    else:
        os.killpg(harness.pid, number)  # as a terminal does
    _, errors = harness.communicate(timeout=60)
    assert time.monotonic() - started < 15
    assert harness.returncode == code
    assert "The same command goes on from here" in errors
    assert "Traceback" not in errors
    (folder,) = (tmp_path / "tiny" / "cells").glob("pretrain-*")
    assert list(folder.glob("checkpoints/step-*.sha256")), "the step was saved"
    assert not (folder / "record.json").exists()


def test_a_failed_cell_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    """A learning rate that diverges: mim fails, its children are skipped, scratch is done."""
    arguments = ["--methods", "scratch", "mim", "--evaluations", "linear-probe"]
    broken = [*arguments, "--set", "pretraining.peak_lr=1e30", "--set", "pretraining.clip_grad_norm=1e30"]
    done = run(tmp_path, *broken)
    assert done.returncode == 1
    by_stage = {(r["stage"], r["method"] and r["method"]["name"]): r for r in records(tmp_path).values()}
    failed = by_stage["pretrain", "mim"]
    assert failed["status"] == "failed"
    assert "TrainingDiverged: the loss is nan at step" in failed["error"]
    assert by_stage["linear-probe", "mim"]["status"] == "skipped"
    assert failed["cell_id"] in by_stage["linear-probe", "mim"]["error"]
    assert by_stage["linear-probe", "scratch"]["status"] == "done"
    again = run(tmp_path, *broken)
    assert again.returncode == 1
    assert "Traceback" not in again.stderr
    assert "--redo-failed" in again.stderr
    assert "linear probe" in again.stdout, "the board is shown all the same"
    assert len(records(tmp_path)[failed["cell_id"]]["attempts"]) == 1, "failed cells wait for --redo-failed"
    redone = run(tmp_path, *broken, "--redo-failed")
    assert redone.returncode == 1
    assert len(records(tmp_path)[failed["cell_id"]]["attempts"]) == 2


def test_work_dir_that_cannot_be_used(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = run(blocked)
    assert done.returncode == 2
    assert "cannot be used" in done.stderr
    assert os.path.isfile(blocked)
