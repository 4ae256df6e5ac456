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
    """Raised by SIGTERM once `listen` was called."""

    def __init__(self) -> None:
        self.raised = False
        self._deferred = False

    def listen(self) -> None:
        """Take SIGTERM; ignore SIGINT and SIGHUP, which a terminal sends to every process of its group."""
        signal.signal(signal.SIGTERM, self._raise)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
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
        """End the stage here."""
        raise Interrupted(where)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised = True
        if not self._deferred:
            self.interrupt("outside training")
