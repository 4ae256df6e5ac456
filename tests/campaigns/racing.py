"""Processes that start one cell at once, with a stage that notes when it begins and ends in its place."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmark.job import Job
from benchmark.layout import LOCK_NAME
from benchmark.plan import Cell, make_plan, select
from benchmark.runtime import Runtime
from benchmark.stage import CellContext, StageResult
from benchmark.survey import present_sources
from protocols import load_protocol
from protocols.schema import Protocol
from tests.error_settings import TINY

RUNTIME = Runtime(device="cpu", jobs=1, threads=1)


def random_trunk() -> tuple[Protocol, Cell]:
    """A cell of tiny that needs no other."""
    protocol = load_protocol(str(TINY))
    (cell,) = make_plan(protocol, select(protocol, methods=["scratch"], evaluations=["linear-probe"]))
    return protocol, cell


class Images:
    """What a record says of the images; there are none."""

    data_set, name, digest = "made", "test", "d"

    def __len__(self) -> int:
        return 0


@dataclass(frozen=True)
class Race:
    """`diary` gets a line, at once, for every beginning and end; the first to begin dies if `first_dies`."""

    work_dir: Path
    diary: Path
    seed: int
    first_dies: bool = False
    folder_goes: bool = False

    def note(self, word: str) -> int:
        """Append `word` and this process's id; how many lines stood there before."""
        descriptor = os.open(self.diary, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        before = len(self.diary.read_text().splitlines())
        os.write(descriptor, f"{word} {os.getpid()}\n".encode())
        os.close(descriptor)
        return before

    def stage(self, context: CellContext) -> StageResult:
        """In the place of a training."""
        before = self.note("begins")
        time.sleep(0.02)
        if self.first_dies and before == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.folder_goes and before == 0:
            shutil.rmtree(context.folder)
            context.folder.mkdir()
            (context.folder / LOCK_NAME).touch()
        (context.folder / "made.bin").write_bytes(b"made")
        self.note("ends")
        return StageResult(
            metrics={}, data=Images(), seconds=1.0, images_seen=1, train_flops=0.0,  # type: ignore[arg-type]
            artefacts={"made.bin": "a" * 64},
        )  # fmt: skip


def start(rank: int, port: int, races: list[Race]) -> None:
    """Run the cell of each race in turn, as the others do; exits with 0 if every code was among 0 and 75."""
    from benchmark import provenance, worker
    from benchmark.peers import Peers

    protocol, cell = random_trunk()
    sources = present_sources()
    # Once for all races of this process, which forks: they take longer than a race.
    provenance.environment()
    provenance.git_state()
    worker.present_sources = lambda: sources
    codes = set()
    for race in races:
        child = os.fork()
        if child == 0:
            worker.STAGES[cell.stage] = race.stage  # type: ignore[index]
            time.sleep(random.Random(f"{race.seed} {rank}").choice((0.0, 0.0, 0.01, 0.03)))
            job = Job(
                cell=cell, protocol=protocol, runtime=RUNTIME, work_dir=race.work_dir, slot=0, sources=sources
            )
            os._exit(worker.run_here(job, Peers()))
        codes.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.exit(0 if codes <= {0, worker.LOCKED, -signal.SIGKILL} else 1)
