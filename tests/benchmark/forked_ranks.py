"""Processes of one training, forked from a server that has imported torch: they start in milliseconds."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmark.forked_cell import fork_server
from benchmark.runtime import Runtime

RUNTIME = Runtime(device="cpu", jobs=1, threads=1)


def in_processes(
    target: Callable[..., None], *arguments: Any, processes: int, seconds: float = 240, code: int = 0
) -> None:
    """Run `target(rank, port, *arguments)` as every rank at once; each must end with `code`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = fork_server(RUNTIME)
    ranks = [server.Process(target=target, args=(rank, port, *arguments)) for rank in range(processes)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(seconds)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert codes == [code] * processes


def run_command(rank: int, port: int, processes: int, words: Sequence[str]) -> None:
    """A command of the harness as one of the processes that a launcher without a store of its own starts."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    from benchmark.cli import main

    sys.exit(main(words))
