"""Work in a fork that is killed before its first, second, third ... change of a file: no gap is left out."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.chaos.moments import watch_changes


def killed_before(change: int, folder: Path, work: Callable[[], None]) -> bool:
    """Do `work` in a fork that is killed just before change number `change` below `folder`.

    False if it came to its end before, as it does with 0. Its exceptions fail this process's test.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            watch_changes(folder, before=change)
            work()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def every_gap(
    folder: Path, work: Callable[[], None], begin: Callable[[], None], *, first: int = 1, step: int = 1
) -> Iterator[int]:
    """After `begin`, `work` was killed before change `first`, then, begun anew, `first + step`, and so on."""
    change = first
    begin()
    while killed_before(change, folder, work):
        yield change
        change += step
        begin()
