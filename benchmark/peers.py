"""Several processes at one cell: who they are, and how they wait for each other and pass on short texts.

A launcher (torchrun, or anything that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) starts them.
They meet at a key-value store; no collective can hang, since every wait also looks whether the cell has
ended. Results go through files alone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from benchmark.disk_trouble import DiskTrouble
from protocols.errors import HarnessError

POLL_SECONDS = 0.2
LEAVE_SECONDS = 30.0
CONNECT = timedelta(seconds=300)
WAIT_SECONDS = 86_400.0  # the longest is for the first process to fit a codebook, or to read all images alone
_OVER, _FAILED, _DISK = "over", "failed", "disk"


class CellEnded(Exception):
    """The cell that this process helps with has ended without it."""


@dataclass(frozen=True)
class Peers:
    """This process among the `processes` of one cell; alone where there is no store."""

    rank: int = 0
    processes: int = 1
    store: dist.Store | None = None

    def wait_for_all(self, where: str) -> None:
        """Return when every process has come to `where`. CellEnded if the cell ended first."""
        self.gather(where, [])

    def gather(self, where: str, texts: list[str]) -> list[str]:
        """Everybody's texts, by rank, for everybody. CellEnded if the cell ended first."""
        if self.store is None:
            return texts
        self.store.set(f"{where}/{self.rank}", json.dumps(texts))
        found: list[str] = []
        for rank in range(self.processes):
            self.wait(f"{where}/{rank}")
            found += json.loads(self.store.get(f"{where}/{rank}"))
        return found

    def wait(self, key: str) -> None:
        """Return when somebody has set `key`.

        CellEnded if the cell ended first, HarnessError if another process said that it failed, or has said
        nothing for a day.
        """
        assert self.store is not None
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.store.check([key]):
            self.check()
            if time.monotonic() > deadline:
                raise HarnessError(
                    f"another process of this cell did not come to {key!r} within {WAIT_SECONDS / 3600:g} h: "
                    "it hangs, or its machine is gone; end it, and give the command again with --redo-failed"
                )
            time.sleep(POLL_SECONDS)

    def of_cell(self, cell_id: str) -> Peers:
        """The same processes, with keys of their own for the cell `cell_id`."""
        if self.store is None:
            return self
        return Peers(self.rank, self.processes, dist.PrefixStore(cell_id, self.store))

    def begin(self) -> None:
        """The first process is at work on this cell: the others may join."""
        if self.store is not None:
            self.store.set("begun", "")

    def end(self) -> None:
        """This cell, or with keys of no cell all of them, is over, however it ended."""
        if self.store is not None:
            # A store that is gone has nobody left who could be told.
            with suppress(dist.DistError, RuntimeError):
                self.store.set(_OVER, "")

    def wait_for_end(self) -> None:
        """Return when the first process has called `end`, or when the store has gone with it."""
        with suppress(dist.DistError, RuntimeError):
            while not self.has_ended():
                time.sleep(POLL_SECONDS)

    def fail(self, reason: str, *, is_of_disk: bool = False) -> None:
        """Whoever waits for this process learns that it has failed, and why."""
        if self.store is not None:
            with suppress(dist.DistError, RuntimeError):
                self.store.set(_DISK if is_of_disk else _FAILED, f"rank {self.rank}: {reason[:2000]}")

    def check(self) -> None:
        """CellEnded if the cell has ended, HarnessError if another process of it failed, or its disk."""
        if self.store is not None:
            if self.store.check([_DISK]):
                raise DiskTrouble(self.store.get(_DISK).decode())
            if self.store.check([_FAILED]):
                raise HarnessError(f"another process of this cell failed: {self.store.get(_FAILED).decode()}")
            if self.store.check([_OVER]):
                raise CellEnded("elsewhere")

    def has_begun(self) -> bool:
        """True once `begin` was called."""
        return self.store is not None and self.store.check(["begun"])

    def has_ended(self) -> bool:
        """True once `end` was called."""
        return self.store is not None and self.store.check([_OVER])


def launched() -> Peers:
    """This process among those that a launcher started, connected; alone without a launcher.

    HarnessError for an environment that makes no sense, or a meeting point that cannot be reached.
    """
    processes, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if processes == 1:
        return Peers()
    if not rank < processes:
        raise HarnessError(f"the environment's RANK {rank} is not below its WORLD_SIZE {processes}")
    address, port = _meeting_point()
    try:
        store: dist.Store = dist.TCPStore(address, port, is_master=False, timeout=CONNECT)
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise HarnessError(
            f"no process answers at MASTER_ADDR {os.environ['MASTER_ADDR']}, MASTER_PORT "
            f"{os.environ.get('MASTER_PORT')} ({str(error).splitlines()[0]}); start with torchrun"
        ) from None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Peers(rank, processes, dist.PrefixStore(f"attempt-{attempt}", store))


@contextmanager
def hosting() -> Iterator[None]:
    """Within, the processes' meeting point exists: here, in rank 0, where the launcher has none itself."""
    is_ours = (
        _number("WORLD_SIZE", 1) > 1
        and _number("RANK", 0) == 0
        and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    )
    host = None
    if is_ours:
        address, port = _meeting_point()
        try:
            host = dist.TCPStore(address, port, is_master=True, wait_for_workers=False)
        except (dist.DistError, RuntimeError, ValueError) as error:
            raise HarnessError(
                f"the processes cannot meet at MASTER_ADDR {address}, MASTER_PORT {port} "
                f"({str(error).splitlines()[0]}); give another port"
            ) from None
    try:
        yield
    finally:
        del host


def leave_together(peers: Peers) -> None:
    """Rank 0 stays until the others have left, or for half a minute: the store goes with it."""
    if peers.store is None:
        return
    with suppress(dist.DistError, RuntimeError):
        left, deadline = peers.store.add("left", 1), time.monotonic() + LEAVE_SECONDS
        while peers.rank == 0 and left < peers.processes and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            left = peers.store.add("left", 0)


def _meeting_point() -> tuple[str, int]:
    address, port = os.environ.get("MASTER_ADDR", ""), _number("MASTER_PORT", 0)
    if not address or not port:
        raise HarnessError(
            "WORLD_SIZE is set without MASTER_ADDR and MASTER_PORT; start with torchrun, or unset WORLD_SIZE"
        )
    return address, port


def local_rank() -> int:
    """This process's number on its machine, which chooses its GPU; 0 without a launcher."""
    return _number("LOCAL_RANK", 0)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise HarnessError(f"the environment's {name} is {text!r}; it must be a number")
    return int(text)
