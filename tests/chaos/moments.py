"""A moment that no clock has to hit: the n-th change of a file by a process, just before it happens.

Python tells every file that it opens, renames or removes to audit hooks. Between two changes of files a
process only computes: killed before each change in turn, it has been killed in every gap there is. Nothing
of this is in the harness; `startup/sitecustomize.py` installs it where the environment asks for it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

FOLDER = "FAIR_MIM_CHAOS_FOLDER"  # changes below it count
BEFORE = "FAIR_MIM_CHAOS_BEFORE"  # the number of the change that a process does not live to make
FIRED = "FAIR_MIM_CHAOS_FIRED"  # a file that comes to be with the kill: there is one, not one in each process
LISTING = "FAIR_MIM_CHAOS_LISTING"  # or: a file that gets a line for every change
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Event -> which of its arguments is a path, and which the descriptor of the folder it is relative to.
_CHANGES = {
    "os.rename": (1, 3), "os.remove": (0, 1), "os.mkdir": (0, 2), "os.rmdir": (0, 1), "os.link": (1, 3),
    "os.symlink": (1, 2), "os.truncate": (0, -1),
}  # fmt: skip


def changed(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The path that is about to be changed; None for what changes no file."""
    if event == "open":
        path, _, flags = arguments
        is_named = isinstance(path, str | bytes | os.PathLike)
        return os.fsdecode(path) if is_named and isinstance(flags, int) and flags & _WRITING else None
    if event not in _CHANGES:
        return None
    where, beside = _CHANGES[event]
    path, holder = arguments[where], arguments[beside] if beside >= 0 else -1
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    if holder != -1:  # shutil.rmtree names files so
        return os.path.join(os.readlink(f"/proc/self/fd/{holder}"), os.fsdecode(path))
    return os.fsdecode(path)


def watch_changes(
    folder: Path, *, before: int = 0, fired: Path | None = None, listing: Path | None = None
) -> None:
    """Kill this process, or a fork of it, just before its change number `before` below `folder` (from 1).

    Not if the file `fired` is there, which the kill leaves. A `listing` gets one line for each change. There
    is no way back from this: hooks stay as long as the process.
    """
    root, counted = str(folder) + os.sep, 0
    told = os.open(listing, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if listing else None

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal counted
        path = changed(event, arguments)
        if path is None or not os.path.abspath(path).startswith(root):
            return
        counted += 1
        if told is not None:
            os.write(told, f"{os.getpid()} {counted} {event} {os.path.abspath(path)[len(root) :]}\n".encode())
        if counted == before and (fired is None or not fired.exists()):
            if fired is not None:
                fired.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def watch_as_asked() -> None:
    """What the environment asks for; nothing without it."""
    given = {name: Path(os.environ[name]) for name in (FOLDER, FIRED, LISTING) if name in os.environ}
    if FOLDER in given:
        before = int(os.environ.get(BEFORE, "0"))
        watch_changes(given[FOLDER], before=before, fired=given.get(FIRED), listing=given.get(LISTING))
