"""Submits what is open of a plan to a cluster, once: nothing that is queued, running or done goes out again.

The command returns when everything is in the queue; records, and the ledger with squeue, say what became of
it, and the same command again submits what is left. benchmark/cluster_arrays.py says which cells share an
array, cluster_script.py what a task runs, cluster_queue.py what the queue holds.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmark.cluster_arrays import Array, make_arrays
from benchmark.cluster_arrays import Task as ArrayTask
from benchmark.cluster_file import ClusterFile, minutes_of
from benchmark.cluster_queue import Entry, Ledger, Queue, ledger_path, read_ledger, read_queue, write_ledger
from benchmark.cluster_script import (
    CELL,
    LOG_PATTERN,
    Unsure,
    executor_of,
    local_command,
    sbatch_command,
    script_of,
    submit_script,
    whole_script,
)
from benchmark.file_lock import try_lock
from benchmark.layout import cell_folder
from benchmark.plan import Cell
from benchmark.runtime import Runtime
from benchmark.survey import CellState
from protocols.errors import HarnessError
from protocols.files import write_atomically
from protocols.schema import Protocol

if TYPE_CHECKING:
    import submitit

WordsOf = Callable[[str, Runtime], list[str]]


@dataclass(frozen=True)
class Open:
    """`cells` to submit, in the plan's order; `queued` are in the queue; `held` counts others by reason."""

    cells: tuple[Cell, ...]
    queued: tuple[Cell, ...]
    done: tuple[Cell, ...]
    held: Mapping[str, int]


@dataclass(frozen=True)
class Submitted:
    """One array that went out, or would: `job` is its id, `script` the batch script, `command` its sbatch."""

    array: Array
    job: str
    script: str
    command: tuple[str, ...]


def open_cells(
    states: Sequence[CellState], queue: Queue, *, redo_failed: bool = False, redo_stale: bool = False
) -> Open:
    """Which cells of a survey a submission takes, as a run on one machine would take them."""
    cells: dict[str, Cell] = {}
    queued: dict[str, Cell] = {}
    ready: set[str] = set()  # done, or on the way: children need not wait for more
    done: list[Cell] = []
    held: dict[str, int] = {}
    for one in states:
        cell, has_result = one.cell, one.record is not None and one.record.status == "done"
        reason = ""
        if one.state == "done":
            done.append(cell)  # though its task may not have left the queue yet
        elif queue.is_active(cell.id):
            queued[cell.id] = cell
        elif one.state == "running":
            reason = "running outside the queue"
        elif one.state == "damaged" or (one.state == "blocked" and one.missing):
            reason = f"{one.state} (status says why)"
        elif one.state == "failed" and not redo_failed:
            reason = "failed (--redo-failed)"
        elif one.state == "stale" and not redo_stale:
            reason = "stale (--redo-stale)"
        elif not all(parent in ready for parent in cell.parents):
            reason = "waiting for a cell that is not submitted"
        else:
            cells[cell.id] = cell
        if reason:
            held[reason] = held.get(reason, 0) + 1
        if not reason or (has_result and one.state == "stale"):
            ready.add(cell.id)
    return Open(tuple(cells.values()), tuple(queued.values()), tuple(done), held)


class Submission:
    """One call's arrays: made from what is open, then shown or submitted.

    `words_of` gives the words after run_benchmark.py for a cell's id and runtime.
    """

    def __init__(
        self,
        protocol: Protocol,
        work_dir: Path,
        cluster: ClusterFile,
        *,
        python: str,
        runtime_of: Callable[[Cell], Runtime],
        words_of: WordsOf,
    ) -> None:
        self.protocol, self.work_dir, self.cluster = protocol, work_dir.absolute(), cluster
        self.python, self.words_of = cluster.python or shlex.quote(python), words_of
        self.runtime_of = runtime_of
        self.ledger_path = ledger_path(self.work_dir, protocol.name)
        self.cells_folder = cell_folder(self.work_dir, protocol.name, "x").parent

    def queue(self, *, is_dry: bool = False) -> Queue:
        """The queue's tasks of this run. HarnessError if it cannot be asked, unless nothing is submitted."""
        queue = read_queue(read_ledger(self.ledger_path) or Ledger())
        if queue.problem and not is_dry:
            raise HarnessError(
                f"{queue.problem}, and cells were submitted before ({self.ledger_path}): without the queue "
                "they could be submitted twice. Give the command where squeue answers; if none of them is "
                "queued any more, delete that file"
            )
        active = [cell_id for cell_id, task in queue.tasks.items() if task.is_active]
        others = [one for one in active if queue.ledger.cells[one].scheduler != self.cluster.scheduler]
        if others and not is_dry:
            was = queue.ledger.cells[others[0]].scheduler
            raise HarnessError(
                f"{len(others)} of the run's cells were submitted with scheduler: {was}, and are not over "
                f"({queue.tasks[others[0]].name}); what waits there cannot be waited for with scheduler: "
                f"{self.cluster.scheduler}: let them end, or end them, first"
            )
        return queue

    def arrays(self, cells: Sequence[Cell], queue: Queue) -> list[Array]:
        """The arrays of `cells`; those in the queue are known by their jobs' ids."""
        return make_arrays(
            cells,
            self.cluster,
            queued={
                name: ArrayTask(task.job, task.index) for name, task in queue.tasks.items() if task.is_active
            },
            runtime_of=self._runtime_of,
            name_of=lambda title: f"{self.protocol.name}-{title}-{secrets.token_hex(4)}",
        )

    def shown(self, arrays: Sequence[Array], queue: Queue) -> list[Submitted]:
        """What `submit` would do, without doing anything; JOB1 stands for the id of the first array."""
        jobs = {task.job: task.job for task in queue.tasks.values()}
        shown = []
        for number, array in enumerate(arrays, start=1):
            folder = self._folder(array)
            script = self._script(array, jobs)
            command = sbatch_command(array, jobs, str(folder / "submission.sh"))
            jobs[array.name] = f"JOB{number}"
            shown.append(Submitted(array, jobs[array.name], script, tuple(command)))
        return shown

    def submit(self, arrays: Sequence[Array], queue: Queue) -> Iterator[Submitted]:
        """Submit one array after another, each in the ledger before its job can start."""
        ledger = self._reconciled(queue)
        jobs = {task.job: task.job for task in queue.tasks.values()}
        for array in arrays:
            folder = self._folder(array)
            for index, cell in array.cells.items():
                cell_folder(self.work_dir, self.protocol.name, cell.id).mkdir(parents=True, exist_ok=True)
                # Slurm writes a task's output to FOLDER/INDEX/..., and so into the cell's own folder.
                folder.mkdir(parents=True, exist_ok=True)
                (folder / str(index)).symlink_to(Path("..", "..", "cells", cell.id))
            write_ledger(self.ledger_path, _with(ledger, array, scheduler="slurm", job=None))
            script = self._script_body(array)
            executor = self._executor(array, jobs)
            try:
                job = submit_script(script, executor)
            except Unsure:
                raise  # noted without a job's id, it is looked for by its name
            except HarnessError:
                write_ledger(self.ledger_path, ledger)
                raise
            jobs[array.name] = job
            ledger = _with(ledger, array, scheduler="slurm", job=job)
            write_ledger(self.ledger_path, ledger)
            command = sbatch_command(array, jobs, str(folder / f"{job}_submission.sh"))
            yield Submitted(array, job, whole_script(script, executor), tuple(command))

    def submit_locally(self, arrays: Sequence[Array], queue: Queue) -> str:
        """Start one process of this machine that runs the cells in order; returns its id."""
        import submitit

        if any(task.reason == "local" for task in queue.tasks.values()):
            raise HarnessError(
                "the cells of an earlier call (scheduler: local) are still running one by one; status shows "
                "where they are; wait for them, or end that process"
            )
        name = f"{self.protocol.name}-local-{secrets.token_hex(4)}"
        folder = self.work_dir / self.protocol.name / "cluster" / name
        write_atomically(folder / "cells.sh", self.local_script(arrays, name))
        ledger = self._reconciled(queue)
        executor = submitit.LocalExecutor(folder=folder)
        minutes = sum(minutes_of(array.request.time) * len(array.cells) for array in arrays)
        executor.update_parameters(timeout_min=minutes)
        command = submitit.helpers.CommandFunction(["bash", str(folder / "cells.sh")])
        job = executor.submit(command).job_id
        for array in arrays:
            ledger = _with(ledger, array, scheduler="local", job=job)
        write_ledger(self.ledger_path, ledger)
        return job

    def local_script(self, arrays: Sequence[Array], name: str) -> str:
        """The cells in order, parents first; one whose parent did not succeed is passed over."""
        lines = [
            "#!/bin/bash",
            *self.cluster.setup,
            "declare -A failed",
            "attempt() {",
            '    local cell=$1 parents=$2 parent; shift 2; mkdir -p "$cells/$cell"',
            "    for parent in $parents; do",
            '        if [ -n "${failed[$parent]}" ]; then failed[$cell]=1; return; fi',
            "    done",
            f'    "$@" >> "$cells/$cell/{name}.out" 2>&1 || failed[$cell]=1',
            "}",
            f"cells={shlex.quote(str(self.cells_folder))}",
        ]
        for array in arrays:
            words = self.words_of(CELL, array.runtime)
            lines += [
                f"attempt {cell.id} {shlex.quote(' '.join(cell.parents))} "
                + local_command(array, words, cell.id, python=self.python)
                for cell in array.cells.values()
            ]
        return "\n".join([*lines, '[ "${#failed[@]}" -eq 0 ]', ""])

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One submission of a run at a time."""
        self.cells_folder.mkdir(parents=True, exist_ok=True)  # by which a work dir is known as one
        with (self.ledger_path.parent / ".cluster.lock").open("a") as lock:
            if not try_lock(lock):
                raise HarnessError(
                    f"another submission of {self.ledger_path.parent} is going on; wait for it"
                )
            yield

    def _runtime_of(self, cell: Cell) -> Runtime:
        runtime, request = self.runtime_of(cell), self.cluster.of_stage(cell.stage)
        # As on one machine: a cell has one thread on CPUs, and its GPU's share of them beside a GPU.
        threads = request.cpus_per_process if request.gpus_per_node else 1
        return runtime.model_copy(update={"device": request.device, "threads": threads})

    def _folder(self, array: Array) -> Path:
        return self.work_dir / self.protocol.name / "cluster" / array.name

    def _script_body(self, array: Array) -> str:
        words = self.words_of(CELL, array.runtime)
        return script_of(array, words, python=self.python)

    def _executor(self, array: Array, jobs: Mapping[str, str]) -> submitit.SlurmExecutor:
        folder = self._folder(array)
        output = str(folder).replace("%", "%%") + f"/%a/{LOG_PATTERN}"  # % is Slurm's in an output's name
        return executor_of(array, folder=folder, output=output, working_folder=Path.cwd(), jobs=jobs)

    def _script(self, array: Array, jobs: Mapping[str, str]) -> str:
        return whole_script(self._script_body(array), self._executor(array, jobs))

    def _reconciled(self, queue: Queue) -> Ledger:
        """The ledger with the jobs' ids of a submission that was cut off before it could note them."""
        cells = {
            cell_id: entry.model_copy(update={"job": queue.tasks[cell_id].job})
            if entry.job is None and cell_id in queue.tasks
            else entry
            for cell_id, entry in queue.ledger.cells.items()
        }
        return Ledger(cells=cells)


def _with(ledger: Ledger, array: Array, *, scheduler: Literal["slurm", "local"], job: str | None) -> Ledger:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    new = {
        cell.id: Entry(scheduler=scheduler, array=array.name, index=index, job=job, at=at)
        for index, cell in array.cells.items()
    }
    return Ledger(cells={**ledger.cells, **new})
