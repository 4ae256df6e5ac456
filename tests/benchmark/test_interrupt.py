"""What a signal may and may not cut short, and what is checked before anything starts."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark import data
from benchmark.cli import main
from benchmark.interrupt import Interrupted, StopFlag
from tests.benchmark import engine_run

ROOT = Path(__file__).parent.parent.parent
TINY = str(ROOT / "tests" / "tiny.yaml")


@pytest.fixture
def stop() -> Iterator[StopFlag]:
    """A listening flag; the process's own handlers come back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    flag = StopFlag()
    flag.listen()
    yield flag
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_ends_a_stage_where_it_stands(stop: StopFlag) -> None:
    with pytest.raises(Interrupted, match="outside training"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_no_library_may_swallow_it(stop: StopFlag) -> None:
    with pytest.raises(Interrupted), contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGTERM)


def test_within_deferred_it_only_raises_the_flag(stop: StopFlag) -> None:
    with stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.raised
    with pytest.raises(Interrupted, match="at step 3"):
        stop.interrupt("at step 3")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_terminals_signals_are_left_to_the_harness(stop: StopFlag, number: int) -> None:
    os.kill(os.getpid(), number)
    assert not stop.raised


def test_who_reads_for_a_killed_process_ends_with_it() -> None:
    """Its output is at an end once nobody holds it any more."""
    code = (
        "import os, signal, time\n"
        "from benchmark.interrupt import leave_to_the_loop\n"
        "ready, ready_too = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.close(ready)\n"
        "    leave_to_the_loop(0)\n"
        "    os.write(ready_too, b'1')\n"
        "    time.sleep(20)\n"
        "os.close(ready_too)\n"
        "assert os.read(ready, 1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    assert time.monotonic() - started < 15


def test_a_missing_data_file_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "EMBEDDED", tmp_path)
    data._embedded_file.cache_clear()
    arguments = ["--protocol", TINY, "--work-dir", str(tmp_path / "runs")]
    assert main(arguments) == 2
    assert "fashion_mnist_12k.npz is missing from the checkout; restore it" in capsys.readouterr().err
    (tmp_path / "fashion_mnist_12k.npz").write_bytes(b"something else")
    assert main(arguments) == 2
    assert "SHA-256 differs" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_signal_to_all_processes_of_a_cell_leaves_those_that_read_images_to_its_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SignalledAt(engine_run.StopAt):
        """As Slurm may do, and `kill -TERM -GROUP`: the reading processes get the signal, too."""

        @property
        def raised(self) -> bool:
            self.looks += 1
            readers = multiprocessing.active_children()
            assert readers
            if self.looks == 3:
                # From another process: their parent's own signal ends them.
                subprocess.run(["kill", "-TERM", *(str(reader.pid) for reader in readers)], check=True)
                time.sleep(0.2)
            return self.looks == 5

        @raised.setter
        def raised(self, value: bool) -> None:
            assert not value

    monkeypatch.setattr(engine_run, "StopAt", SignalledAt)
    assert engine_run.run(tmp_path, "mim", drop_path=0.0, workers=2) == {}
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*.pt")] == ["step-000000005.pt"]
