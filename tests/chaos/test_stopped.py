"""A signal ends a command once, however it comes, and every command then says how to go on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from benchmark import cli, elastic, forked_cell, worker
from benchmark.cli import main
from benchmark.die_with_parent import PARENT_VARIABLE
from benchmark.interrupt import Interrupted, StopFlag
from benchmark.job import Job
from benchmark.peers import Peers
from benchmark.plan import make_plan, select
from benchmark.runtime import Runtime
from benchmark.stage import CellContext
from benchmark.stopping import STOPPING, Stopped, check_stopped, stopped_by_signals
from leaderboard.record import read_record
from protocols import load_protocol
from protocols.errors import HarnessError
from tests.benchmark import engine_run
from tests.benchmark.engine_run import TINY

ROOT = Path(__file__).parent.parent.parent
RUNTIME = Runtime(device="cpu", jobs=1, threads=1)


@pytest.fixture
def stop() -> StopFlag:
    """A flag that takes all three signals, as in a cell that nobody else would end."""
    flag = StopFlag()
    flag.listen(is_alone=True)
    return flag


def signal_me(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOPPING)
def test_whatever_a_command_does_a_signal_ends_it_with_its_code_and_a_line_that_says_how_to_go_on(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signal.signal(number, lambda *_: None)  # whoever runs this may ignore it, under nohup

    def run(options: Namespace) -> int:
        with contextlib.suppress(Exception):  # as libraries do
            signal_me(number)
        return 0

    command = SimpleNamespace(SUMMARY="", DESCRIPTION="", add_arguments=lambda parser: None, run=run)
    monkeypatch.setattr(cli, "load_command", lambda name: command)
    assert main(["report"]) == 128 + number
    errors = capsys.readouterr().err
    assert f"stopped by {number.name}" in errors
    assert "The same command goes on from here" in errors


def test_signals_after_the_first_do_not_disturb_the_ending() -> None:
    ended = []

    def command() -> None:
        try:
            signal_me(signal.SIGINT)
        finally:
            for number in STOPPING:
                signal_me(number)
            ended.append("all of it")

    with pytest.raises(Stopped, match="SIGINT"), stopped_by_signals():
        command()
    assert ended == ["all of it"]


def test_a_signal_that_python_drops_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised while an object is freed goes nowhere: the harness looks again."""

    class Freed:
        def __del__(self) -> None:
            signal_me(signal.SIGTERM)

    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: dropped.append(one.exc_type))

    def look_again() -> None:
        Freed()
        assert dropped == [Stopped]
        check_stopped()

    with pytest.raises(Stopped, match="SIGTERM"), stopped_by_signals():
        look_again()


def test_a_terminal_that_has_gone_does_not_change_the_exit_code() -> None:
    """What would be printed on it is an error, now and once more while the interpreter ends."""
    program = """if True:
        import os, signal
        from benchmark.stopping import exits_by_signals
        with exits_by_signals():
            print("half a table")
            os.kill(os.getpid(), signal.SIGHUP)
    """
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as gone:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, stdout=gone, stderr=gone, timeout=60, check=False,
            env=buffered, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )  # fmt: skip
    assert done.returncode == 128 + signal.SIGHUP


def test_a_command_whose_reader_has_gone_does_not_end_as_one_that_has_done_its_work() -> None:
    """`run ... 2>&1 | head -1` once ended with 0 before its first cell."""
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "run_benchmark.py", "list", "protocols"]
    done = subprocess.run(words, cwd=ROOT, stdout=write, stderr=write, timeout=60, check=False)
    os.close(write)
    assert done.returncode == 128 + signal.SIGPIPE


def test_a_reader_that_goes_while_a_table_is_shown_is_one_that_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """rich takes the error, and ends the program with 1: "some cell failed"."""

    def run(options: Namespace) -> int:
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w", closefd=False) as gone:
            Console(file=gone).print("[1/3] done")
        return 0

    monkeypatch.setattr(sys.stdout, "fileno", lambda: os.open(os.devnull, os.O_WRONLY), raising=False)
    command = SimpleNamespace(SUMMARY="", DESCRIPTION="", add_arguments=lambda parser: None, run=run)
    monkeypatch.setattr(cli, "load_command", lambda name: command)
    assert main(["status"]) == 128 + signal.SIGPIPE


def test_a_command_under_nohup_outlives_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stopped_by_signals():
        signal_me(signal.SIGHUP)
    flag = StopFlag()
    flag.listen(is_alone=True)
    signal_me(signal.SIGHUP)
    assert not flag.raised


def test_the_program_answers_signals_from_its_first_import_on() -> None:
    """Before its command is known; a command line that would end with 2 is stopped by then."""
    code = (
        "import os, runpy, signal, sys\n"
        "class Importing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'benchmark.cli':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Importing())\n"
        "sys.argv = ['run_benchmark.py', 'nonsense']\n"
        "runpy.run_path('run_benchmark.py', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 130, done.stderr
    assert "The same command goes on from here" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("ending", [HarnessError("the record is damaged"), 1, 2])
def test_an_error_that_a_library_made_of_a_signal_is_that_signal(
    ending: Exception | int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """pydantic's patterns are matched by no Python: what a handler raises there is a mismatch."""

    def run(options: Namespace) -> int:
        with contextlib.suppress(BaseException):
            signal_me(signal.SIGTERM)
        if isinstance(ending, Exception):
            raise ending
        return ending

    command = SimpleNamespace(SUMMARY="", DESCRIPTION="", add_arguments=lambda parser: None, run=run)
    monkeypatch.setattr(cli, "load_command", lambda name: command)
    assert main(["merge"]) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err


@pytest.fixture
def context(tmp_path: Path, stop: StopFlag) -> CellContext:
    """A cell that can be run here."""
    protocol = load_protocol(str(TINY))
    cell = next(cell for cell in make_plan(protocol, select(protocol)) if cell.stage == "tokenise")
    runtime = Runtime(device="cpu", jobs=1, threads=1)
    made = CellContext(cell=cell, protocol=protocol, runtime=runtime, work_dir=tmp_path, stop=stop)
    made.folder.mkdir(parents=True)
    return made


def test_a_cell_that_fails_of_a_signal_is_interrupted_and_no_failure(
    context: CellContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(context: CellContext) -> None:
        with contextlib.suppress(BaseException):
            signal_me(signal.SIGTERM)
        raise ValueError("a pattern did not match")

    monkeypatch.setitem(worker.STAGES, "tokenise", stage)
    with pytest.raises(Interrupted):
        worker.run_cell(context)
    assert read_record(context.folder) is None


def test_a_record_that_is_being_written_is_written(
    context: CellContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write(*_: object, status: str, **__: object) -> None:
        signal_me(signal.SIGTERM)
        written.append(status)

    monkeypatch.setitem(worker.STAGES, "tokenise", lambda context: None)
    monkeypatch.setattr(worker, "write_cell_record", write)
    assert worker.run_cell(context) == 0
    assert written == ["done"]


def test_what_a_kill_left_half_written_goes_when_the_cell_is_begun_again(
    context: CellContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = context.folder / ".predictions.npz.elsewhere-123"
    left.write_bytes(b"half of")
    seen = []

    def run_cell(context: CellContext, **_: object) -> int:
        seen.append(left.exists())
        return 0

    monkeypatch.setattr(worker, "run_cell", run_cell)
    monkeypatch.setattr(worker, "_redirect_output", lambda log, *, rank: None)
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: None)
    job = Job(cell=context.cell, protocol=context.protocol, runtime=context.runtime, slot=0,
              work_dir=context.work_dir, sources=context.sources)  # fmt: skip
    assert worker.run_here(job, Peers()) == 0
    assert seen == [False]


@pytest.mark.parametrize("number", STOPPING)
def test_a_second_signal_leaves_a_cell_time_to_note_the_first(stop: StopFlag, number: signal.Signals) -> None:
    noted = []

    def cell() -> None:
        try:
            signal_me(signal.SIGTERM)
        except Interrupted:
            signal_me(number)
            noted.append(number)
            raise

    with pytest.raises(Interrupted):
        cell()
    assert noted == [number]
    assert stop.number == signal.SIGTERM, "the exit code is the first one's"


def test_a_cell_whose_end_is_decided_is_not_ended_another_way(stop: StopFlag) -> None:
    with stop.deferred():
        stop.close()
    signal_me(signal.SIGTERM)


def test_a_training_that_is_stopped_in_its_last_step_saves_it_and_does_not_go_on_to_measure(
    tmp_path: Path,
) -> None:
    steps = 16
    assert engine_run.run(tmp_path, "mim", drop_path=0.0, stop_at=steps) == {}
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*.pt")] == [f"step-{steps:09d}.pt"]
    assert engine_run.run(tmp_path, "mim", drop_path=0.0)["images_seen"]


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """None is running, and the one that a test starts imports little and ends with the test."""
    stop = forkserver._forkserver._stop  # type: ignore[attr-defined]
    monkeypatch.setattr(forked_cell, "IMPORTED", forked_cell.IMPORTED[:1])
    stop()
    yield
    stop()


def server_has(field: str, number: int) -> bool:
    """Whether a field of signals (SigIgn, SigBlk) of the server's status has this one."""
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = [int(line.split()[1], 16) for line in lines if line.startswith(f"{field}:")]
    return bool(mask >> (number - 1) & 1)


@pytest.mark.usefixtures("no_server")
def test_the_server_that_cells_are_forked_from_outlives_signals_to_all_processes_of_a_job() -> None:
    """It would take its cells with it before they have saved their step."""
    forked_cell.fork_server(RUNTIME)
    assert all(server_has("SigIgn", number) or server_has("SigBlk", number) for number in STOPPING)


@pytest.mark.usefixtures("no_server")
def test_so_does_one_that_is_started_because_the_last_has_just_died(monkeypatch: pytest.MonkeyPatch) -> None:
    """multiprocessing finds that out while it starts a process, and starts the next server by itself.

    That has forked a cell here: it has imported what it imports first.
    """
    server = forked_cell.fork_server(RUNTIME)
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    monkeypatch.setattr(forked_cell, "fork_server", lambda runtime: server)
    monkeypatch.setattr(forked_cell, "run_in_child", id)
    job = SimpleNamespace(runtime=RUNTIME, cell=SimpleNamespace(id="cell"))
    process = forked_cell.start_forked(job)  # type: ignore[arg-type]
    process.join()
    assert process.exitcode == 0
    for number in STOPPING:
        assert server_has("SigIgn", number)
        assert not server_has("SigBlk", number), "cells inherit that, and would not be stopped"
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    assert b"PYTHONSAFEPATH=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def test_a_signal_to_the_harness_is_not_lost_while_it_starts_a_server() -> None:
    """At once or a moment later, by whether another thread can take it."""

    def start() -> None:
        with stopped_by_signals(), forked_cell._given_to_a_server():
            signal_me(signal.SIGTERM)

    with pytest.raises(Stopped):
        start()


def test_the_server_that_cells_are_forked_from_ends_with_the_harness_whatever_it_does() -> None:
    """One that imports torch, or is stopped, does not notice by itself that nobody needs it any more."""
    harness = """if True:
        import os, signal, time
        from multiprocessing import forkserver
        from pathlib import Path
        from benchmark import forked_cell
        from benchmark.runtime import Runtime
        forked_cell.IMPORTED = forked_cell.IMPORTED[:1]
        server = forked_cell.fork_server(Runtime(device="cpu", jobs=1, threads=1))
        server.Process(target=int).start()
        pid = forkserver._forkserver._forkserver_pid
        os.kill(pid, signal.SIGSTOP)
        while ") T " not in Path(f"/proc/{pid}/stat").read_text():
            time.sleep(0.01)
        print(pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with subprocess.Popen([sys.executable, "-c", harness], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
    server, deadline = Path(f"/proc/{pid}/stat"), time.monotonic() + 60
    try:
        while server.exists() and ") Z " not in server.read_text():
            assert time.monotonic() < deadline, "the server is left"
            time.sleep(0.01)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_processes_of_torchrun_know_whose_end_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that torchrun starts in the moment of its own end finds it gone."""
    import torch.distributed.run

    told = []
    monkeypatch.setattr(elastic, "die_with_parent", lambda: None)
    monkeypatch.setenv(PARENT_VARIABLE, "")  # so that what is set below is undone
    monkeypatch.delenv(PARENT_VARIABLE)
    monkeypatch.setattr(torch.distributed.run, "main", lambda: told.append(os.environ.get(PARENT_VARIABLE)))
    elastic.main()
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    assert told == [str(os.getpid())]
