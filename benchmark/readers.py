"""Processes that read and make batches ahead of those who use them: one that dies or hangs is an error."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from benchmark.interrupt import leave_to_the_loop
from protocols.errors import HarnessError

Item = TypeVar("Item")
READER_SECONDS = 600.0  # the longest that one batch may take to come
_ENDING_SECONDS = 5.0
_STUCK = {"T": "stopped", "D": "waiting for a disk or network"}
_DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (is killed by signal|exited unexpectedly)")
_LATE = re.compile(r"DataLoader timed out")


def read(
    items: Dataset[Item], *, order: Sequence[int], workers: int, pin_memory: bool = False
) -> Iterator[Item]:
    """`items` in this order, made in `workers` further processes (0: in this one, when asked for).

    HarnessError, with the process ids, if one of those processes dies or does not give anything for
    READER_SECONDS. However this ends, they end with it.
    """
    loader = DataLoader(
        items,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        # A cell's own start method would begin each of them with an interpreter and a copy of everything.
        multiprocessing_context="fork" if workers else None,
        pin_memory=pin_memory,
        # Each keeps two items: a whole step of several micro-batches could fill the memory.
        prefetch_factor=2 if workers else None,
        timeout=READER_SECONDS if workers else 0,
        worker_init_fn=leave_to_the_loop,
        # A loader draws a seed even where nothing is random: not from the generator that others draw from.
        generator=torch.Generator(),
    )
    others = set(multiprocessing.active_children())
    reads = iter(loader)
    readers = [one for one in multiprocessing.active_children() if one not in others]
    while True:
        try:
            with named_readers():
                item = next(reads, None)
        except ReaderHangs as hangs:
            states = _end(readers)
            raise ReaderHangs(f"{hangs}; its processes: {states}; {_LATE_REMEDY}") from None
        except BaseException:
            _end(readers)  # torch would ask them to end, and wait for seconds
            raise
        if item is None:
            return
        try:
            yield item
        except GeneratorExit:
            _end(readers)  # nobody asks for more
            raise


class ReaderHangs(HarnessError):
    """Nothing has come from the reading processes for too long."""


_LATE_REMEDY = (
    "look whether the disk or network that holds the images answers; the command again, with "
    "--redo-failed, goes on from the last checkpoint"
)


@contextmanager
def named_readers() -> Iterator[None]:
    """Within, torch's word on a reading process that died, which comes at any moment, is a HarnessError."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        dead = _DEAD.search(text)
        if dead is not None:
            signalled = re.search(r"by signal: ([\w ]+)", text)
            how = f"was killed ({signalled[1]})" if signalled else "ended"
            why = "out of memory, unless somebody ended it; then take"
            if signalled and signalled[1] == "Bus error":
                why = "shared memory (/dev/shm) is full; give it more (containers: --shm-size), or take"
            raise HarnessError(
                f"the reading process {dead[1].strip()} {how}: {why} fewer --workers, or smaller "
                "micro-batches (--accumulation); the command again, with --redo-failed, goes on from the "
                "last checkpoint"
            ) from None
        if _LATE.search(text):
            raise ReaderHangs(f"no batch came from the reading processes for {READER_SECONDS:g} s") from None
        raise


def _end(readers: Sequence[BaseProcess]) -> str:
    """Kill them, for what is stopped takes no other signal and would be waited for; say what they did."""
    states = ", ".join(f"pid {one.pid} ({_state(one)})" for one in readers)
    for _ in range(2):  # torch raises, once, wherever this process is when it hears that one was killed
        for one in readers:
            with suppress(RuntimeError):
                one.kill()
                one.join(_ENDING_SECONDS)
    return states


def _state(process: BaseProcess) -> str:
    """What the kernel says it is doing."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "gone"
    return _STUCK.get(fields[0], "at work, or waiting")
