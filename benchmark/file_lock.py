"""A lock on an open file, between processes of one machine, and of several where the file system has it."""

from __future__ import annotations

import fcntl
from typing import IO, Any

from protocols.errors import HarnessError


def try_lock(file: IO[Any], *, shared: bool = False) -> bool:
    """Take the lock, which the kernel drops with its owner; False if another process holds it.

    HarnessError on a file system that keeps no locks, where two processes could write the same files.
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
    return True
