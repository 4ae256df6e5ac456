"""Cells of two processes under torchrun, as `--gpus-per-cell 2` starts them: killed anywhere, they go on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest

from benchmark.cell_command import cell_arguments
from benchmark.cli import build_parser, main
from benchmark.commands.deviations import chosen_cells
from benchmark.plan import Cell
from benchmark.runtime import Runtime
from leaderboard.record import Record, read_record
from tests.benchmark.forked_ranks import in_processes, run_command
from tests.benchmark.test_run import command, wait_for

# Long enough to be killed in the middle; the paths that each process drops are drawn by its rank.
SELECTION = ("--methods", "mapet", "--evaluations", "linear-probe", "--set", "pretraining.epochs=24")
TWO = ("--gpus-per-cell", "2", "--checkpoint-seconds", "0", "--quiet")


def options_of(work_dir: Path, *arguments: str) -> Namespace:
    options: Namespace = build_parser("run").parse_args(command(work_dir, *SELECTION, *arguments)[2:])
    return options


def the_cell(work_dir: Path, stage: str, *arguments: str) -> Cell:
    (cell,) = [cell for cell in chosen_cells(options_of(work_dir, *arguments))[2] if cell.stage == stage]
    return cell


def record_of(work_dir: Path, cell: Cell) -> Record:
    record = read_record(work_dir / "tiny" / "cells" / cell.id)
    assert record is not None
    return record


def run_as_two(work_dir: Path, cell: Cell, *arguments: str, code: int = 0) -> Record:
    """Run the cell as two processes to its end."""
    runtime = Runtime(device="cpu", jobs=2, threads=1)
    words = cell_arguments(options_of(work_dir, *arguments), cell.id, runtime)
    in_processes(run_command, 2, words, processes=2, code=code)
    return record_of(work_dir, cell)


def processes_of(work_dir: Path, cell: Cell) -> list[int]:
    """Processes that torchrun runs the cell with in `work_dir`, torchrun's own first."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0") if entry.name.isdecimal() else []
        except OSError:  # it has just ended
            continue
        if str(work_dir) in words and cell.id in words:
            found.append(("benchmark.elastic" not in words, int(entry.name)))
    return [number for _, number in sorted(found)]


def newest_step(work_dir: Path, cell: Cell) -> int:
    saved = (work_dir / "tiny" / "cells" / cell.id / "checkpoints").glob("step-*.sha256")
    return max((int(path.stem.removeprefix("step-")) for path in saved), default=0)


@pytest.fixture(scope="module")
def tokenised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work dir in which the tokens are made and nothing is trained."""
    work_dir = tmp_path_factory.mktemp("tokenised")
    assert main(["tokenize", *command(work_dir, "--quiet")[2:]]) == 0
    return work_dir


@pytest.fixture(scope="module")
def whole(tokenised: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work dir in which two processes have pre-trained, undisturbed."""
    work_dir = tmp_path_factory.mktemp("whole") / "runs"
    shutil.copytree(tokenised, work_dir)
    run_as_two(work_dir, the_cell(work_dir, "pretrain"))
    return work_dir


def test_killed_processes_leave_nobody_and_what_goes_on_ends_with_the_same_bits(
    tokenised: Path, whole: Path, tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(tokenised, parts)
    cell = the_cell(whole, "pretrain")
    undisturbed = record_of(whole, cell)
    assert undisturbed.status == "done"
    assert undisturbed.runtime["processes"] == 2

    harness = subprocess.Popen(command(parts, *SELECTION, *TWO), stdout=subprocess.DEVNULL)
    wait_for(lambda: newest_step(parts, cell) > 0)
    _, *trainers = processes_of(parts, cell)
    assert len(trainers) == 2
    # One of them alone, as by the system when memory is short: the other one's broken connection is no
    # failure of the cell, and the harness starts it again.
    os.kill(trainers[1], signal.SIGKILL)
    wait_for(lambda: not set(trainers) & set(processes_of(parts, cell)))
    step = newest_step(parts, cell)
    wait_for(lambda: newest_step(parts, cell) > step)
    assert len(processes_of(parts, cell)) == 3
    harness.kill()  # the parent of all, alone; torchrun is killed by that, and so are its processes
    harness.wait(30)
    wait_for(lambda: not processes_of(parts, cell))

    resumed = run_as_two(parts, cell)
    assert resumed.artefacts == undisturbed.artefacts, "SHA-256 of the trunk and of the method's weights"
    assert resumed.metrics == undisturbed.metrics
    assert [one.outcome for one in resumed.attempts] == ["interrupted", "interrupted", "done"]


def test_every_stage_of_two_processes_is_recorded_once(whole: Path) -> None:
    pretrained = record_of(whole, the_cell(whole, "pretrain"))
    probed = run_as_two(whole, the_cell(whole, "linear-probe"))
    for record in (pretrained, probed):
        assert record.status == "done"
        assert [one.outcome for one in record.attempts] == ["done"]
    assert probed.metrics["top1_percent"].n == 203, "each evaluated image once"


def test_what_fails_in_one_process_is_the_record_of_all(tokenised: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "failing"
    shutil.copytree(tokenised, work_dir)
    diverging = ("--set", "pretraining.peak_lr=1e30", "pretraining.clip_grad_norm=1e30")
    failed = run_as_two(work_dir, the_cell(work_dir, "pretrain", *diverging), *diverging, code=1)
    assert failed.status == "failed"
    assert (failed.error or "").startswith("diverged at step ")
    assert (work_dir / failed.protocol.name / "cells" / failed.cell_id / "diverged.json").is_file()
    assert len(failed.attempts) == 1
