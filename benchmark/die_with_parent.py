"""A process that must not outlive the one that started it: the kernel ends it. Linux; loads no torch."""

from __future__ import annotations

import ctypes
import os
import signal

_SET_PDEATHSIG = 1  # PR_SET_PDEATHSIG of prctl(2)
PARENT_VARIABLE = "FAIR_MIM_PARENT"


def die_with_parent() -> None:
    """From now on SIGKILL ends this process when its parent ends, however that happens.

    A launcher that is killed would otherwise leave its processes training, able to write checkpoints beside
    those of the next start. `PARENT_VARIABLE` in the environment names the parent, which may be gone by now.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    expected = os.environ.pop(PARENT_VARIABLE, None)
    if expected is not None and os.getppid() != int(expected):
        os.kill(os.getpid(), signal.SIGKILL)
