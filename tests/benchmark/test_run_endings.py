"""How a run ends that does not go well: signals, failed cells, a work dir that cannot be one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.benchmark.test_run import command, records, run, wait_for

pytestmark = pytest.mark.usefixtures("boards_without_drawings")


LONG = ("--methods", "mim", "--evaluations", "linear-probe", "--set", "pretraining.epochs=400")


def wait_for_training(work_dir: Path) -> None:
    wait_for(lambda: bool(list((work_dir / "tiny" / "cells").glob("pretrain-*/metrics.jsonl"))))


def check_ending(work_dir: Path, errors: str) -> None:
    assert "The same command goes on from here" in errors
    assert "Traceback" not in errors
    (folder,) = (work_dir / "tiny" / "cells").glob("pretrain-*")
    assert list(folder.glob("checkpoints/step-*.sha256")), "the step was saved"
    assert not (folder / "record.json").exists()
    assert not Path(f"/proc/{training_process(folder)}").exists()


def training_process(folder: Path) -> int:
    start, *_ = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    return int(start["pid"])


def test_a_terminals_signal_saves_says_how_to_go_on_and_leaves_nobody(tmp_path: Path) -> None:
    harness = subprocess.Popen(
        command(tmp_path, *LONG),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_training(tmp_path)
    started = time.monotonic()
    os.killpg(harness.pid, signal.SIGINT)
    _, errors = harness.communicate(timeout=60)
    assert time.monotonic() - started < 15
    assert harness.returncode == 130
    check_ending(tmp_path, errors)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_other_signals_do_the_same(tmp_path: Path, number: int, code: int) -> None:
    """The harness is this process. A terminal that is closed tells the training as well."""
    sent: list[float] = []

    def send() -> None:
        wait_for_training(tmp_path)
        sent.append(time.monotonic())
        if number == signal.SIGHUP:
            (folder,) = (tmp_path / "tiny" / "cells").glob("pretrain-*")
            os.kill(training_process(folder), number)
        os.kill(os.getpid(), number)

    before = signal.signal(number, lambda *_: None)  # of a harness that does not listen
    try:
        sender = threading.Thread(target=send)
        sender.start()
        done = run(tmp_path, *LONG)
        sender.join()
    finally:
        signal.signal(number, before)
    assert time.monotonic() - sent[0] < 15
    assert done.returncode == code
    check_ending(tmp_path, done.stderr)


def test_a_failed_cell_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    """A learning rate that diverges: mim fails, its children are skipped, scratch is done."""
    arguments = ["--methods", "scratch", "mim", "--evaluations", "linear-probe"]
    broken = [*arguments, "--set", "pretraining.peak_lr=1e30", "--set", "pretraining.clip_grad_norm=1e30"]
    done = run(tmp_path, *broken)
    assert done.returncode == 1
    by_stage = {(r["stage"], r["method"] and r["method"]["name"]): r for r in records(tmp_path).values()}
    failed = by_stage["pretrain", "mim"]
    assert failed["status"] == "failed"
    assert failed["error"].startswith("diverged at step ")
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
    again_failed = records(tmp_path)[failed["cell_id"]]
    assert len(again_failed["attempts"]) == 2
    assert again_failed["error"] == failed["error"], "it ends the same way"


def test_work_dir_that_cannot_be_used(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = run(blocked)
    assert done.returncode == 2
    assert "cannot be used" in done.stderr
    assert os.path.isfile(blocked)
