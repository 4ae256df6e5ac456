"""Sees what code does while a stranger's file is read: programs, connections, and files changed elsewhere.

Python reports these to audit hooks, whoever does them, before they happen. A hook stays for good: there is
one, and it looks only while somebody watches.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import HarnessError
from tests.untrusted.poison import acting

RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn",
        "socket.connect", "socket.bind", "socket.getaddrinfo", "ctypes.dlopen",
        "webbrowser.open")  # fmt: skip
# Event -> which of its arguments are paths that it changes.
CHANGES = {
    "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.mkdir": (0,), "os.link": (1,),
    "os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,),
    "shutil.rmtree": (0,), "shutil.copyfile": (1,), "shutil.move": (0, 1), "shutil.unpack_archive": (1,),
}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

MOST_SECONDS, MOST_MB = 30.0, 500  # of a loaded machine; the bombs would take minutes, or tens of gigabytes

_watches: list[_Watch] = []
_is_hooked = False


class _Watch:
    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.seen: list[str] = []

    def look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in RUNS:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING and not self._may_change(path):
                self.seen.append(f"open {path!r} to write")
        elif event in CHANGES:
            paths = [arguments[at] for at in CHANGES[event]]
            self.seen += [f"{event} {path!r}" for path in paths if not self._may_change(path)]

    def _may_change(self, path: Any) -> bool:
        """In the folder; a descriptor was a path when it was opened; bytecode and devices are no files."""
        if not isinstance(path, str | bytes | os.PathLike):
            return True
        real = os.path.realpath(os.fsdecode(path))
        return (
            real.startswith((f"{self.folder}/", "/dev/"))
            or real == self.folder
            or "__pycache__" in real
            or (Path(real).parent == Path(tempfile.gettempdir()).resolve() and "torch" not in real)
        )


@contextmanager
def nothing_escapes(folder: Path) -> Iterator[None]:
    """AssertionError at the end if a program was run, a connection made, or a file changed that is not in
    `folder`."""
    global _is_hooked
    if not _is_hooked:
        sys.addaudithook(_hook)
        _is_hooked = True
    watch = _Watch(folder)
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.remove(watch)
    assert not watch.seen, watch.seen


@contextmanager
def refused_shortly(
    folder: Path, match: str | None = None, error: type[Exception] = HarnessError, most_lines: int = 6
) -> Iterator[None]:
    """Within it a HarnessError of a few plain lines, soon, in little memory, and nothing done elsewhere."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with nothing_escapes(folder), pytest.raises(error, match=match) as told:
        yield
    assert time.monotonic() - started < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MOST_MB
    text = str(told.value)
    assert len(text) <= 700
    assert text.count("\n") < most_lines
    assert not acting(text)
    assert "Traceback" not in text


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for watch in _watches:
        watch.look(event, arguments)
