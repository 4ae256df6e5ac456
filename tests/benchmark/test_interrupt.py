"""What a signal may and may not cut short, and what is checked before anything starts."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark import data
from benchmark.cli import main
from benchmark.interrupt import Interrupted, StopFlag

TINY = str(Path(__file__).parent.parent / "tiny.yaml")


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


def test_a_missing_data_file_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "EMBEDDED", tmp_path)
    data._fashion_file.cache_clear()
    arguments = ["--protocol", TINY, "--work-dir", str(tmp_path / "runs")]
    assert main(arguments) == 2
    assert "fashion_mnist_12k.npz is missing from the checkout; restore it" in capsys.readouterr().err
    (tmp_path / "fashion_mnist_12k.npz").write_bytes(b"something else")
    assert main(arguments) == 2
    assert "SHA-256 differs" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
