"""A polite stop: SIGTERM ends a stage at once, but a training loop only after it has saved its step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from benchmark.die_with_parent import die_with_parent


class Interrupted(BaseException):
    """The stage was asked to stop; what it had is on disk. No library's `except Exception` may take it."""


def leave_to_the_loop(worker: int) -> None:
    """In a process that reads images: SIGTERM to all processes of a cell is its training loop's to answer.

    Without its reading processes it could not come to the end of its step, and would fail, not save itself.
    If that process is killed, this one ends with it: it was forked, and would keep its GPU's memory in use.
    """
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Its parent's own SIGTERM counts: with that, multiprocessing ends what is left, and then waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class StopFlag:
    """Raised by SIGTERM once `listen` was called; `number` is the first signal that raised it."""

    def __init__(self) -> None:
        self.raised = False
        self.number = int(signal.SIGTERM)
        self._deferred = self._has_interrupted = False

    def listen(self, *, is_alone: bool = False) -> None:
        """Take SIGTERM; ignore SIGINT and SIGHUP, which a terminal sends to every process of its group.

        A process that is alone, without a harness that would end it politely, takes those two as well; but
        not SIGHUP under nohup.
        """
        is_told_to_stay = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGTERM, self._raise)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._raise if is_alone else signal.SIG_IGN)
        if is_told_to_stay:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, the flag is only raised: the loop reads it between steps and calls `interrupt`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def interrupt(self, where: str) -> NoReturn:
        """End the stage here; signals that come after this change nothing."""
        self._has_interrupted = True
        raise Interrupted(where)

    def obey(self, where: str) -> None:
        """Interrupted here if a signal has come."""
        if self.raised:
            self.interrupt(where)

    def close(self) -> None:
        """How the cell ends is decided: signals change nothing from here."""
        self._has_interrupted = True

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self.raised:
            self.raised, self.number = True, number
        if not self._deferred and not self._has_interrupted:
            self.interrupt("outside training")
