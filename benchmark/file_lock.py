"""A lock on an open file, between processes of one machine, and of several where the file system has it.

The kernel has the lock and drops it with its owner, however that ends. What the file says of its owner is for
messages alone: it may be a dead one's, and decides nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from weakref import WeakSet

from protocols.errors import HarnessError

MOST_OWNER_BYTES = 4096
MOST_WORDS = 200  # of a command, in characters
_held: WeakSet[IO[Any]] = WeakSet()


def try_lock(file: IO[Any], *, shared: bool = False) -> bool:
    """Take the lock, which the kernel drops with its owner; False if another process holds it.

    An exclusive lock's file, opened to append, then names this process. HarnessError on a file system that
    keeps no locks, where two processes could write the same files.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise HarnessError(
            f"{file.name}: its file system keeps no locks ({error.strerror}), and without them two processes "
            "could write the same cell; have it mounted with locks (Lustre: -o flock; NFS: without nolock), "
            "or give a --work-dir on another"
        ) from None
    if not shared:
        _held.add(file)
        with suppress(OSError):  # a full disk keeps the lock from nobody
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), _this_process(), 0)
    return True


@contextmanager
def held_lock(path: Path, *, seconds: float = 0.0) -> Iterator[IO[Any] | None]:
    """Hold the lock of `path`, in a folder that is made; None if another process keeps it for `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as lock:
            # Who deletes the file, or its folder, leaves a lock that nobody else will ever meet.
            if try_lock(lock) and is_in_place(lock):
                yield lock
                return
        if time.monotonic() >= deadline:
            yield None
            return
        time.sleep(0.1)


def is_in_place(file: IO[Any]) -> bool:
    """False if the file was deleted, or replaced, since it was opened: then others lock another one."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except FileNotFoundError:
        return False


def owner_of(path: Path) -> str:
    """`process 4123 on node7, since 2026-01-02 10:02 UTC: COMMAND`, as the file says; empty if it does not.

    To be asked where the lock was found taken: a file's text outlives its owner.
    """
    try:
        with path.open("rb") as stream:
            owner = json.loads(stream.read(MOST_OWNER_BYTES))
        number, host, since, command = (owner[name] for name in ("pid", "host", "since", "command"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return _printable(f"process {number} on {host}, since {since}: {command}")


def in_brackets(owner: str) -> str:
    """` (OWNER)`, to follow a noun; empty without an owner."""
    return f" ({owner})" if owner else ""


def _this_process() -> bytes:
    words = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    owner = {
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": words if len(words) <= MOST_WORDS else words[:MOST_WORDS] + " ...",
    }
    return (json.dumps(owner) + "\n").encode()


def _printable(text: str) -> str:
    """Whoever may write the file may write anything, a terminal's commands included."""
    return "".join(one if one.isprintable() else "?" for one in text)[: 2 * MOST_WORDS]


def _leave_to_parent() -> None:
    """A forked child shares its parent's locks, and would hold them for as long as it outlives the parent."""
    for file in list(_held):
        with suppress(OSError, ValueError):
            file.close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
