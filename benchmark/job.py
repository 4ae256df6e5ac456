"""What a child process is asked to do; importing this loads no torch, running it does."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.plan import Cell
from benchmark.plugins import load_plugins, loaded_plugins
from benchmark.runtime import Runtime
from leaderboard.record import Record
from protocols.errors import HarnessError
from protocols.schema import Protocol


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell and where to run it. `slot` numbers the GPU of a machine with several.

    `sources` are the digests of the code as the run began; `redo_stale` drops checkpoints that come from
    other code, or other parents, than there are now. `known` is the cell's record as it was when this run
    was decided on. `last_words` is where the process says what a disk did to it (benchmark/disk_trouble.py).
    `plugins` are files and folders that the process loads first.
    """

    cell: Cell
    protocol: Protocol
    runtime: Runtime
    work_dir: Path
    slot: int
    sources: Mapping[str, str]
    data_root: Path | None = None
    redo_stale: bool = False
    known: Record | None = None
    last_words: str = ""
    plugins: tuple[str, ...] = field(default_factory=loaded_plugins)


def run_in_child(job: Job) -> None:
    """The target of a child process: always ends by SystemExit with the worker's exit codes."""
    # The server that it is forked from ignores it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from benchmark.worker import run_job

    try:
        load_plugins(job.plugins)
    except HarnessError as error:
        # It was changed since the run loaded it: the worker refuses a cell whose code it is, and records it.
        print(f"error: {error}", file=sys.stderr)
    run_job(job)
