"""A polite stop: SIGTERM ends a stage at once, but a training loop only after it has saved its step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Interrupted(BaseException):
    """The stage was asked to stop; what it had is on disk. No library's `except Exception` may take it."""


class StopFlag:
    """Raised by SIGTERM once `listen` was called; `number` is the signal that raised it."""

    def __init__(self) -> None:
        self.raised = False
        self.number = int(signal.SIGTERM)
        self._deferred = False

    def listen(self, *, is_alone: bool = False) -> None:
        """Take SIGTERM; ignore SIGINT and SIGHUP, which a terminal sends to every process of its group.

        A process that is alone, without another that would end it politely, takes those two as well.
        """
        signal.signal(signal.SIGTERM, self._raise)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._raise if is_alone else signal.SIG_IGN)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, the flag is only raised: the loop reads it between steps and calls `interrupt`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def interrupt(self, where: str) -> NoReturn:
        """End the stage here."""
        raise Interrupted(where)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised, self.number = True, number
        if not self._deferred:
            self.interrupt("outside training")
