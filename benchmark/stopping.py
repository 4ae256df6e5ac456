"""A command that a person, a terminal or a system stops: one exception, once, whatever the signal.

Imports next to nothing: signals count from the first moment of a command (run_benchmark.py).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GOES_ON = "nothing that was finished is lost.\nThe same command goes on from here."


class Stopped(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived; `exit_code` is what the command line returns.

    No library's `except Exception` may take it.
    """

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__(signal.Signals(number).name)

    @property
    def line(self) -> str:
        """What a command says that knows no more of how it goes on."""
        return f"\nstopped by {self}; {GOES_ON}"

    def say(self) -> None:
        """Say so, unless the terminal is what has gone."""
        with suppress(OSError):
            print(self.line, file=sys.stderr)


class _Taken:
    """The signal that was taken, if any, while `stopped_by_signals` is in force."""

    def __init__(self) -> None:
        self.is_listening = False
        self.number: int | None = None


_taken = _Taken()


def check_stopped() -> None:
    """Stopped if a signal was taken before: Python drops what is raised while it frees an object."""
    if _taken.is_listening and _taken.number is not None:
        raise Stopped(_taken.number)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP become Stopped in the main thread; what comes after the first is ignored.

    A command under nohup keeps ignoring SIGHUP. Within another use of it this changes nothing.
    """
    if _taken.is_listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in STOPPING}

    def stop(number: int, frame: FrameType | None) -> None:
        if _taken.number is None:
            _taken.number = number
            raise Stopped(number)

    _taken.is_listening, _taken.number = True, None
    for number, handler in previous.items():
        if number != signal.SIGHUP or handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        _taken.is_listening = False
        for number, handler in previous.items():
            # What a cell has put in the place of these handlers is for the rest of the process.
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)


@contextmanager
def exits_by_signals() -> Iterator[None]:
    """Around a whole program: stopped before its command listens, and not disturbed when that has ended."""
    try:
        with stopped_by_signals():
            try:
                yield
            finally:
                # The exit code is decided; a signal must not change it while the interpreter ends.
                for number in STOPPING:
                    signal.signal(number, signal.SIG_IGN)
    except Stopped as stopped:
        stopped.say()
        sys.exit(stopped.exit_code)
    finally:
        # Nor must what can no longer be printed, on a terminal that has gone.
        for stream in (sys.stdout, sys.stderr):
            _forget_if_closed(stream)


def _forget_if_closed(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
