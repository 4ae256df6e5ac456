"""The processes of one campaign: who is who among them, and whether any is left. Linux, from /proc alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "FAIR_MIM_CHAOS"  # in the environment of all of them, whoever started them
TARGETS = ("harness", "group", "server", "cell", "worker", "torchrun", "rank")


@dataclass(frozen=True)
class Process:
    """One of them, as it is now."""

    pid: int
    parent: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.pid} ({' '.join(self.words)[:120]})"


def marked(mark: str) -> list[Process]:
    """The running processes that have `mark` in their environment; the dead, not yet buried, have none."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if wanted not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            status = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended, or is another user's
            continue
        if status[0] not in "ZX":
            found.append(Process(int(entry.name), int(status[1]), tuple(words)))
    return found


def those(target: str, harness: int, mark: str) -> list[int]:
    """The process ids that `target` means now, by number; none while there are none."""
    found = sorted(marked(mark), key=lambda one: one.pid)

    def children(parents: Sequence[int], text: str = "") -> list[int]:
        return [one.pid for one in found if one.parent in parents and text in " ".join(one.words)]

    servers, launchers = children([harness], "forkserver"), children([harness], "benchmark.elastic")
    cells, ranks = children(servers), children(launchers, "run_benchmark.py")
    # `pack`, and `tokenize --fit`, read in children of their own; other children bear another program's name.
    readers = [*children([*cells, *ranks]), *children([harness], "run_benchmark.py")]
    return {
        "harness": [harness], "group": [harness], "server": servers, "cell": cells, "worker": readers,
        "torchrun": launchers, "rank": ranks,
    }[target]  # fmt: skip


def send(number: int, pid: int, *, to_group: bool) -> bool:
    """Send the signal; False if nobody was there any more."""
    try:
        (os.killpg if to_group else os.kill)(pid, number)
    except ProcessLookupError:
        return False
    return True


def is_listening(pid: int) -> bool:
    """True if the process takes SIGTERM, or ignores it at its end: an interpreter needs a moment for that."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    taken = [int(line.split()[1], 16) for line in lines if line.startswith(("SigCgt:", "SigIgn:"))]
    return any(mask >> (signal.SIGTERM - 1) & 1 for mask in taken)


def wait_until_gone(mark: str, *, seconds: float) -> list[Process]:
    """Who of them is left when all have gone, or after `seconds`: the kernel's signals take a moment."""
    deadline = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
