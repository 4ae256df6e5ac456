"""Runs a plan's cells side by side, each in fresh processes, parents before children.

A cell of one process is forked from a server (forked_cell.py); torchrun starts the processes of a cell that
has several (launched_cell.py).
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal
from typing import Protocol as Interface

from benchmark.disk_trouble import DISK, LastWords
from benchmark.file_lock import held_lock, in_brackets, owner_of, try_lock
from benchmark.forked_cell import start_forked
from benchmark.job import Job
from benchmark.launched_cell import LaunchedCell
from benchmark.layout import FEATURES_NAME, LOCK_NAME, LOG_NAME, TOKENS_NAME, cell_folder
from benchmark.plan import Cell
from benchmark.record_cell import write_cell_record
from benchmark.runtime import Runtime, visible_gpus
from benchmark.stopping import check_stopped, stopped_by_signals
from benchmark.survey import present_sources
from leaderboard.record import Compliance, Record, read_record, write_record
from protocols.errors import HarnessError
from protocols.files import remove_leftovers
from protocols.schema import Protocol

POLL_SECONDS = 0.25
GRACE_SECONDS = 60.0  # for a step of a large model and its checkpoint; torchrun itself insists after 30
DYING_SECONDS = 10.0  # that a cell which has ended may still hold its lock
ATTEMPTS = 3
LOCKED = 75
USAGE, VIOLATION = 2, 3  # what cannot end otherwise when it is started again


class Display(Interface):
    """What shows the progress of running cells."""

    def running(self, cells: Sequence[Cell], finished: int, total: int) -> None:
        """Called a few times a second with what runs now."""
        ...

    def ended(self, cell: Cell, record: Record) -> None:
        """Called once for every cell that ended in this run."""
        ...


@dataclass(frozen=True)
class Placement:
    """How cells that need several processes run: `of` gives a cell's runtime, `words` the words that follow
    `run_benchmark.py` in each of its processes."""

    of: Callable[[Cell], Runtime]
    words: Callable[[Cell, Runtime], list[str]]


@dataclass
class _Running:
    cell: Cell
    process: ForkServerProcess | LaunchedCell
    slots: tuple[int, ...]


def execute(
    plan: Sequence[Cell],
    protocol: Protocol,
    runtime: Runtime,
    work_dir: Path,
    *,
    display: Display,
    redo_failed: bool = False,
    redo_stale: bool = False,
    stale: Collection[str] = (),
    data_root: Path | None = None,
    placement: Placement | None = None,
) -> list[Record]:
    """Run what is not done yet; returns one record for every cell of the plan, in its order.

    Without `placement` every cell takes one slot, and the runtime as it is.

    With `redo_stale` the cells whose ids are in `stale` run again, and so does every cell whose parent is
    made anew by this run; trainings begun with other code or parents begin again. Raises Stopped after
    ending its children when a signal arrives, and HarnessError if the work dir cannot be used or another
    run is using it.
    """
    with _exclusive(work_dir / protocol.name), stopped_by_signals():
        for folder in (TOKENS_NAME, FEATURES_NAME, f"{protocol.name}/leaderboard"):
            remove_leftovers(work_dir / folder)
        return _Execution(
            plan, protocol, runtime, work_dir, display, redo_failed, redo_stale, frozenset(stale), data_root,
            placement,
        ).run()  # fmt: skip


class _Execution:
    def __init__(
        self,
        plan: Sequence[Cell],
        protocol: Protocol,
        runtime: Runtime,
        work_dir: Path,
        display: Display,
        redo_failed: bool,
        redo_stale: bool,
        stale: frozenset[str],
        data_root: Path | None,
        placement: Placement | None,
    ) -> None:
        self.plan, self.protocol, self.runtime, self.work_dir = plan, protocol, runtime, work_dir
        self.redo_stale = redo_stale
        self.data_root = data_root
        self.placement = placement
        self.gpus = visible_gpus() if placement is not None and runtime.device == "cuda" else ()
        # The code as it is now, before any of it is loaded.
        self.sources = present_sources()
        self.display = display
        self.records: dict[str, Record] = {}
        self.known: dict[str, Record] = {}
        self.starts: dict[str, int] = {}
        self.live: list[_Running] = []
        self.last_words = LastWords()
        # A cell's weight is the longest chain of work that hangs on it: long chains start first.
        self.weight: dict[str, float] = {}
        for cell in reversed(plan):
            self.weight[cell.id] = self.weight.get(cell.id, 0.0) + cell.train_flops
            for parent in cell.parents:
                self.weight[parent] = max(self.weight.get(parent, 0.0), self.weight[cell.id])
        for cell in plan:
            record = read_record(cell_folder(work_dir, protocol.name, cell.id))
            settled = record is not None and (
                record.status == "done" or (record.status == "failed" and not redo_failed)
            )
            if record is not None:
                self.known[cell.id] = record
            if record is not None and settled and not (redo_stale and cell.id in stale):
                self.known[cell.id] = self.records[cell.id] = self._as_clean(cell, record)
        # A cell that was finished with other flags need not fit these, unless its parent is made anew.
        self.runtimes = {
            cell.id: placement.of(cell)
            if placement and (redo_stale or cell.id not in self.records)
            else runtime
            for cell in plan
        }
        most = max((one.processes for one in self.runtimes.values()), default=1) if placement else 1
        self.slots = max(runtime.jobs, most)

    def run(self) -> list[Record]:
        try:
            while len(self.records) < len(self.plan):
                check_stopped()
                self.display.running([one.cell for one in self.live], len(self.records), len(self.plan))
                self._skip_orphans()
                self._start_ready()
                forked = [one.process for one in self.live if not isinstance(one.process, LaunchedCell)]
                wait([process.sentinel for process in forked], timeout=POLL_SECONDS)
                self._collect()
        finally:
            self._end_children()
            self.last_words.close()
        return [self.records[cell.id] for cell in self.plan]

    def _start_ready(self) -> None:
        waiting = [cell for cell in self.plan if cell.id not in self.records and not self._is_live(cell)]
        ready = [cell for cell in waiting if all(self._is_done(parent) for parent in cell.parents)]
        ready.sort(key=lambda cell: -self.weight[cell.id])
        free = sorted(set(range(self.slots)) - {slot for one in self.live for slot in one.slots})
        for cell in ready:
            slots = self._slots_for(cell, free)
            if slots is None:
                return  # nothing overtakes a cell that waits for its slots
            free = [slot for slot in free if slot not in slots]
            self.starts[cell.id] = self.starts.get(cell.id, 0) + 1
            self.live.append(_Running(cell, self._spawn(cell, slots), slots))

    def _slots_for(self, cell: Cell, free: Sequence[int]) -> tuple[int, ...] | None:
        """Free slots for its processes, each with a GPU of its own; None while there are not enough."""
        wanted = self.runtimes[cell.id].processes if self.placement else 1
        # --jobs may put several slots on a GPU.
        of_gpu = {slot % len(self.gpus): slot for slot in reversed(free)} if self.gpus else {}
        usable = sorted(of_gpu.values()) if wanted > 1 and self.gpus else free
        return tuple(usable[:wanted]) if wanted <= len(usable) else None

    def _spawn(self, cell: Cell, slots: tuple[int, ...]) -> ForkServerProcess | LaunchedCell:
        runtime = self.runtimes[cell.id]
        if self.placement is not None and runtime.processes > 1:
            return LaunchedCell(
                self.placement.words(cell, runtime),
                processes=runtime.processes,
                threads=runtime.threads,
                log=cell_folder(self.work_dir, self.protocol.name, cell.id) / LOG_NAME,
                devices=[self.gpus[slot % len(self.gpus)] for slot in slots] if self.gpus else [],
                last_words=self.last_words.path,
            )
        return start_forked(
            Job(
                cell=cell,
                protocol=self.protocol,
                runtime=runtime,
                work_dir=self.work_dir,
                slot=slots[0],
                sources=self.sources,
                redo_stale=self.redo_stale,
                data_root=self.data_root,
                known=self.known.get(cell.id),
                last_words=self.last_words.path,
            )
        )

    def _collect(self) -> None:
        for one in [one for one in self.live if one.process.exitcode is not None]:
            self.live.remove(one)
            is_launched = isinstance(one.process, LaunchedCell)
            record = read_record(cell_folder(self.work_dir, self.protocol.name, one.cell.id))
            code = one.process.exitcode
            # The child removes an older record before it starts, so a record is this attempt's; what
            # became of the process after it was done does not matter.
            if record is not None and (record.status == "done" or (record.status == "failed" and code == 1)):
                self._settle(one.cell, record)
            elif code == DISK:
                # No failure of this cell, and the others would meet the same: nothing is recorded.
                folder = cell_folder(self.work_dir, self.protocol.name, one.cell.id)
                said = self.last_words.heard() or f"a disk failed it; see {folder / LOG_NAME}"
                raise HarnessError(f"cell {one.cell.id} was ended by its disk: {said}")
            elif code is not None and (
                code < 0 or code > 128 or code == LOCKED or (is_launched and code not in (USAGE, VIOLATION))
            ):
                # Killed from outside: it starts again, from its checkpoint, but not for ever. torchrun's own
                # troubles, of which no process has a record, may pass as well.
                # Others that work on the same cell could not follow a second start.
                attempts = ATTEMPTS if self.runtime.processes == 1 else 1
                if self.starts[one.cell.id] >= attempts and code == LOCKED:
                    self._settle(one.cell, self._left_to_another(one.cell))
                elif self.starts[one.cell.id] >= attempts:
                    error = f"its process {_ending(code)} {attempts} times; see its log"
                    self._settle(one.cell, self._write(one.cell, "failed", error, was_killed=True))
            else:
                error = f"its process ended with code {code} and left no record; see its log"
                self._settle(one.cell, self._write(one.cell, "failed", error, was_killed=True))

    def _skip_orphans(self) -> None:
        for cell in self.plan:
            bad = [parent for parent in cell.parents if self._has_ended_badly(parent)]
            if bad and cell.id not in self.records:
                earlier = read_record(cell_folder(self.work_dir, self.protocol.name, cell.id))
                if earlier is not None and earlier.status == "done":
                    # It was to be made anew; what it was made from before still stands in its record.
                    self.records[cell.id] = earlier
                    continue
                record = self._write(cell, "skipped", f"cell {bad[0]}, which this one needs, did not succeed")
                self._settle(cell, record)

    def _write(
        self, cell: Cell, status: Literal["failed", "skipped"], error: str, *, was_killed: bool = False
    ) -> Record:
        """The cell's record, on disk too unless another process runs the cell: then that one writes it."""
        folder = cell_folder(self.work_dir, self.protocol.name, cell.id)
        with held_lock(folder / LOCK_NAME, seconds=DYING_SECONDS if status == "failed" else 0.0) as lock:
            return write_cell_record(
                cell,
                self.protocol,
                self.runtimes[cell.id],
                self.work_dir,
                status=status,
                error=error,
                peak_memory_bytes=0,
                was_killed=was_killed,
                is_kept=lock is not None,
            )

    def _left_to_another(self, cell: Cell) -> Record:
        """For this run alone: what becomes of the cell is recorded by the process that has it."""
        lock = cell_folder(self.work_dir, self.protocol.name, cell.id) / LOCK_NAME
        error = (
            f"another process{in_brackets(owner_of(lock))} runs this cell; nothing is recorded here, and the "
            "same command goes on when that process has ended"
        )
        return write_cell_record(
            cell, self.protocol, self.runtimes[cell.id], self.work_dir, status="failed", error=error,
            peak_memory_bytes=0, is_kept=False,
        )  # fmt: skip

    def _settle(self, cell: Cell, record: Record) -> None:
        self.records[cell.id] = record
        self.display.ended(cell, record)
        if not self.redo_stale:
            return
        digest = record.artefact_digest
        for child in self.plan:
            known = self.records.get(child.id)
            # What it was made from is no longer there: it is made anew, too. What failed waits for its flag.
            if known is None or known.status != "done":
                continue
            if known.parents.get(cell.id, digest) != digest:
                del self.records[child.id]

    def _as_clean(self, cell: Cell, record: Record) -> Record:
        """A cell that was explored under --set and is now the protocol's own is what the id says: clean."""
        if cell.is_modified or record.status != "done" or record.compliance.status != "modified":
            return record
        clean = record.model_copy(update={"compliance": Compliance(status="clean")})
        return write_record(cell_folder(self.work_dir, self.protocol.name, cell.id), clean)

    def _is_live(self, cell: Cell) -> bool:
        return any(one.cell.id == cell.id for one in self.live)

    def _is_done(self, cell_id: str) -> bool:
        return cell_id in self.records and self.records[cell_id].status == "done"

    def _has_ended_badly(self, cell_id: str) -> bool:
        return cell_id in self.records and self.records[cell_id].status != "done"

    def _end_children(self) -> None:
        """Ask politely, so that training saves its step; then insist."""
        # Asked of multiprocessing: a signal may have come between a child's start and its place in `live`.
        children: list[BaseProcess | LaunchedCell] = [*multiprocessing.active_children()]
        children += [one.process for one in self.live if isinstance(one.process, LaunchedCell)]
        for child in children:
            child.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for child in children:
            while child.exitcode is None and time.monotonic() < deadline:
                child.join(min(1.0, deadline - time.monotonic()))
                if not isinstance(child, LaunchedCell) and child.exitcode is None:
                    child.terminate()  # again: it may have been too young to hear of the first one
        for child in children:
            if child.exitcode is None:
                child.kill()
                child.join()


def _ending(code: int) -> str:
    killed_by = -code if code < 0 else code - 128  # as the system says it, or as a shell or elastic.py does
    if killed_by == signal.SIGKILL:
        return "was killed by SIGKILL (out of memory? then give fewer --jobs or --workers, and --redo-failed)"
    if killed_by in set(signal.Signals):
        return f"was killed by {signal.Signals(killed_by).name}"
    return f"ended with code {code}"


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """One run at a time in one work dir; the kernel drops the lock with its owner."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_NAME).open("a")
    except OSError as error:
        raise HarnessError(f"work dir {folder.parent} cannot be used: {error.strerror}") from None
    with lock:
        if not try_lock(lock):
            owner = in_brackets(owner_of(folder / LOCK_NAME))
            raise HarnessError(
                f"another run{owner} is using {folder}; wait for it, end it, or give another --work-dir"
            )
        yield
