"""The short form of `python -m tests.chaos`: the real command line, killed at drawn moments."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from benchmark.job import Job
from benchmark.peers import Peers
from benchmark.plan import make_plan, select
from benchmark.runtime import Runtime
from benchmark.survey import present_sources
from benchmark.worker import run_here  # imported once, not in every fork
from leaderboard.record import read_record, write_record
from protocols import load_protocol
from tests.benchmark.test_run import TINY, run
from tests.chaos import attempt
from tests.chaos.attempt import Attempt, Moment, check_ending
from tests.chaos.campaign import References, disturb
from tests.chaos.processes import MARK, marked, wait_until_gone
from tests.chaos.stages import PACK, STAGES, command
from tests.chaos.sweep import killed_before
from tests.chaos.table import table
from tests.chaos.wholeness import MAY_DIFFER, comparable, faults, leftovers, missing

pytestmark = pytest.mark.usefixtures("boards_without_drawings")
LONG = ("--methods", "scratch", "--evaluations", "finetune", "--set", "evaluations.finetune.epochs=20")
FIRST_GAP, EVERY = 7, 14  # of some fifty changes
SAVING = ("--checkpoint-seconds", "0", "--quiet")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning, and its board."""
    work_dir = tmp_path_factory.mktemp("undisturbed") / "runs"
    assert run(work_dir, *LONG, "--quiet").returncode == 0
    return work_dir


def fine_tuning(work_dir: Path) -> Path | None:
    """The folder of the cell, once there is one."""
    return next(iter((work_dir / "tiny" / "cells").glob("finetune-*")), None)


def told(work_dir: Path) -> int:
    """When the cell last wrote down how its training goes; 0 before that."""
    folder = fine_tuning(work_dir)
    path = folder / "metrics.jsonl" if folder else None
    return path.stat().st_mtime_ns if path and path.exists() else 0


def process_of_the_cell(work_dir: Path) -> int:
    folder = fine_tuning(work_dir)
    assert folder is not None
    lines = (folder / "attempts.jsonl").read_text().splitlines()
    return int([line for line in lines if '"start"' in line][-1].rpartition('"pid": "')[2].rstrip('"}'))


def has_begun(work_dir: Path) -> bool:
    folder = fine_tuning(work_dir)
    path = folder / "attempts.jsonl" if folder else None
    return bool(path and path.exists() and '"start"' in path.read_text())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_whoever_is_killed_the_same_command_ends_with_the_same_bits(
    undisturbed: Path, tmp_path: Path
) -> None:
    """The cell is killed, then the server that it is forked from; then the harness is stopped."""
    work_dir = tmp_path / "runs"
    orphans: list[int] = []
    over = threading.Event()

    def next_step() -> None:
        """Let the cell go on, a moment at a time, until it has told of steps since: it is left stopped."""
        before = told(work_dir)
        wait_for(lambda: told(work_dir) not in (before, 0) or goes_on(process_of_the_cell(work_dir)))

    def disturb_it() -> None:
        wait_for(lambda: has_begun(work_dir))
        next_step()
        os.kill(process_of_the_cell(work_dir), signal.SIGKILL)
        next_step()
        first = process_of_the_cell(work_dir)
        server = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(server, signal.SIGTERM)  # is none of its business
        os.kill(server, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{first}").exists() or "Z" in state_of(first))
        next_step()
        orphans.append(process_of_the_cell(work_dir))
        os.kill(orphans[0], signal.SIGCONT)
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    disturber = threading.Thread(target=disturb_it)
    disturber.start()
    stopped = run(work_dir, *LONG, *SAVING)
    over.set()
    disturber.join()
    assert stopped.returncode == 130
    assert "The same command goes on from here" in stopped.stderr
    assert not Path(f"/proc/{orphans[0]}").exists()
    assert faults(work_dir, undisturbed) == []
    assert missing(work_dir, undisturbed)
    assert run(work_dir, *LONG, *SAVING, "--workers", "1", "--jobs", "1").returncode == 0
    assert faults(work_dir, undisturbed) + missing(work_dir, undisturbed) + leftovers(work_dir) == []


def goes_on(pid: int) -> bool:
    """For a hundredth of a second, however late this process gets to look; never what was asked for."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)
        os.kill(pid, signal.SIGSTOP)
    return False


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_cell_is_killed_in_every_few_gaps_between_two_changes_of_files(
    undisturbed: Path, tmp_path: Path
) -> None:
    """A whole cell, from its folder to its record: what goes on makes the same, and nothing half is read."""
    protocol = load_protocol(str(TINY))
    selection = select(protocol, methods=["scratch"], evaluations=["finetune"])
    (cell,) = [one for one in make_plan(protocol, selection) if one.stage == "finetune"]
    runtime = Runtime(device="cpu", jobs=1, threads=1, checkpoint_seconds=0)

    def work(work_dir: Path) -> Callable[[], None]:
        job = Job(cell=cell, protocol=protocol, runtime=runtime, work_dir=work_dir, slot=0,
                  sources=present_sources())  # fmt: skip

        def here() -> None:
            raise SystemExit(run_here(job, Peers()))

        return here

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert not killed_before(0, whole, work(whole))
    gaps = 0
    for change in range(FIRST_GAP, 400, EVERY):
        shutil.rmtree(killed, ignore_errors=True)
        if not killed_before(change, killed, work(killed)):
            break
        gaps += 1
        assert faults(killed, whole) == [], change
        assert not killed_before(0, killed, work(killed))
        assert faults(killed, whole) + missing(killed, whole) + leftovers(killed) == [], change
    assert gaps > 2


def test_commands_are_killed_at_drawn_moments_and_lose_nothing(tmp_path: Path) -> None:
    """`pack`, as it is typed, with another number of processes each time; and what the table says of it."""
    (stage,) = [one for one in STAGES if one.name == "pack"]
    references = References(folder=tmp_path / "undisturbed", say=lambda text: None)
    work_dir = references.folder / "one"
    work_dir.mkdir(parents=True)
    words = command(PACK, work_dir=work_dir, bundle=references.bundle)
    assert attempt.start(words, None, work_dir=work_dir).code == 0
    ways = [("change", "KILL"), ("harness", "INT"), ("worker", "KILL")]
    (tmp_path / "killed").mkdir()
    kills = disturb(stage, ways, references, random.Random(4), tmp_path / "killed")
    assert [kill.lost for kill in kills] == [[]] * len(kills)
    assert kills[0].landed
    assert f"| **all** |  | {len(kills)} | {sum(kill.landed for kill in kills)} |" in table(kills)


def test_what_is_lost_is_seen(undisturbed: Path, tmp_path: Path) -> None:
    """A record, a prediction and a checkpoint that are not as they were; a file that is not there."""
    work_dir = tmp_path / "runs"
    shutil.copytree(undisturbed, work_dir)
    assert faults(work_dir, undisturbed) + missing(work_dir, undisturbed) == []
    folder = fine_tuning(work_dir)
    assert folder is not None
    record = read_record(folder)
    assert record is not None
    same = record.model_copy(update={"cost": record.cost.model_copy(update={"wall_seconds": 1e6})})
    assert comparable(same) == comparable(record)
    assert set(MAY_DIFFER) >= {"attempts", "cost.wall_seconds"}
    write_record(folder, record.model_copy(update={"artefacts": {}}))
    assert any("its record is not that" in fault for fault in faults(work_dir, undisturbed))
    (folder / "predictions.npz").write_bytes(b"PK")
    assert any("predictions.npz: other bytes" in fault for fault in faults(work_dir, undisturbed))
    (folder / "predictions.npz").unlink()
    assert any("predictions.npz: missing" in fault for fault in missing(work_dir, undisturbed))
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "step-000000001.sha256").write_text("0" * 64)
    assert any("its checkpoint is not whole" in fault for fault in faults(work_dir, undisturbed))


def test_a_wrong_ending_and_whoever_is_left_are_seen(tmp_path: Path) -> None:
    told = Moment(target="harness", number=signal.SIGINT)
    for code, errors in ((1, attempt.GOES_ON), (130, "stopped"), (130, f"Traceback {attempt.GOES_ON}")):
        ended = Attempt(code=code, landed=True, seconds=1.0, errors=errors)
        check_ending(ended, told)
        assert ended.faults, errors
    good = Attempt(code=130, landed=True, seconds=1.0, errors=attempt.GOES_ON)
    check_ending(good, told)
    assert good.faults == []
    child = os.fork()
    if child == 0:
        os.execve("/bin/sleep", ["sleep", "60"], {MARK: "left behind"})
    wait_for(lambda: [one.pid for one in marked("left behind")] == [child])
    assert [one.pid for one in wait_until_gone("left behind", seconds=0)] == [child]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert wait_until_gone("left behind", seconds=30) == []
