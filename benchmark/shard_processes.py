"""The same work on many shards, in processes that share them. Linux; loads no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

from benchmark.die_with_parent import die_with_parent
from protocols.errors import HarnessError

Result = TypeVar("Result")
SHARD_SECONDS = 1800.0  # the longest that one of all shards at work may take to be finished


def in_processes(work: Callable[[int], Result], shards: Sequence[int], *, workers: int) -> Iterator[Result]:
    """`work` of every shard, as they end, in `workers` forked processes; 0: in this one, in order.

    A HarnessError or OSError of a process is raised here. However this ends, its processes end with it.
    """
    if not workers:
        yield from map(work, shards)
        return
    # Forked: what `work` knows of the images need not be sent to every process.
    context = multiprocessing.get_context("fork")
    running: dict[Connection, BaseProcess] = {}
    try:
        for rank in range(min(workers, len(shards))):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_run, args=(work, shards[rank::workers], sender, os.getpid()), daemon=True
            )
            process.start()
            sender.close()
            running[receiver] = process
        while running:
            ready = wait(list(running), timeout=SHARD_SECONDS)
            if not ready:
                pids = ", ".join(str(one.pid) for one in running.values())
                raise HarnessError(
                    f"the reading processes {pids} finished nothing for {SHARD_SECONDS:g} s: look whether "
                    "the disk or network that holds the images answers; what was finished is kept: give "
                    "the command again"
                )
            for receiver in [one for one in ready if isinstance(one, Connection)]:
                try:
                    result = receiver.recv()
                except EOFError:
                    _check_end(running.pop(receiver))
                    receiver.close()
                    continue
                if isinstance(result, Exception):
                    raise result
                yield result
    finally:
        for left in running.values():
            left.kill()  # one that is stopped takes no other signal, and would be waited for
        for receiver, left in running.items():
            left.join()
            receiver.close()


def _run(work: Callable[[int], object], shards: Sequence[int], sender: Connection, parent: int) -> None:
    # A terminal sends these to all of its processes: the first one decides, and ends the others.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent()
    if os.getppid() != parent:
        return  # it was gone before the line above
    for shard in shards:
        try:
            result: object = work(shard)
        except (HarnessError, OSError) as error:
            result = error
        sender.send(result)


def _check_end(process: BaseProcess) -> None:
    process.join()
    if process.exitcode:
        how = (
            f"was killed by {signal.Signals(-process.exitcode).name} (out of memory?)"
            if process.exitcode < 0
            else f"ended with code {process.exitcode}; its message stands above"
        )
        raise HarnessError(f"a reading process {how}; what was finished is kept: give the command again")
