"""What a cluster holds of a run: the ledger of what was submitted, and what Slurm's queue says of it.

The ledger is WORK_DIR/PROTOCOL/cluster.json: for each cell the array and the task that it was last submitted
as. It is written before sbatch is called and again with the job's id, so that a submission that was cut off
in between is found in the queue by its array's name, which is unique. Whether a cell is done stands in its
record alone; that it runs on another machine its lock may not tell here, and the queue does.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from benchmark.layout import cell_folder
from benchmark.metrics import newest_metrics
from benchmark.survey import CellState
from protocols.errors import HarnessError
from protocols.files import write_atomically
from protocols.frozen import Frozen, NonNegativeInt

LEDGER_NAME = "cluster.json"
QUEUE_SECONDS = 60
# Slurm's names of states that a job does not leave by itself.
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
    "REVOKED", "SPECIAL_EXIT", "TIMEOUT",
)  # fmt: skip
_ON_A_NODE = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")


class Entry(Frozen):
    """One cell as it was last submitted. `job` is the array's id, None until sbatch has told it."""

    scheduler: Literal["slurm", "local"]
    array: str
    index: NonNegativeInt
    job: str | None
    at: str

    @property
    def task(self) -> str:
        """What Slurm calls it: JOB_INDEX."""
        return f"{self.job or '?'}_{self.index}"


class Ledger(Frozen):
    """Cell id -> how it was last submitted."""

    schema_version: Literal[1] = 1
    cells: dict[str, Entry] = Field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One submitted cell as the queue shows it; `state` is Slurm's, `reason` why it waits."""

    job: str
    index: int
    state: str
    reason: str = ""

    @property
    def name(self) -> str:
        """JOB_INDEX."""
        return f"{self.job}_{self.index}"

    @property
    def is_active(self) -> bool:
        """True if the cell runs, or will run, without anybody's doing."""
        return self.state not in ENDED

    @property
    def is_on_a_node(self) -> bool:
        """True from the start of a task to its end."""
        return self.state in _ON_A_NODE


@dataclass(frozen=True)
class Queue:
    """`tasks` of the ledger's cells that the queue still shows; `problem` says why it could not be asked."""

    ledger: Ledger
    tasks: Mapping[str, Task] = field(default_factory=dict)
    problem: str | None = None

    def is_active(self, cell_id: str) -> bool:
        """True if the cell runs or waits in the queue."""
        return cell_id in self.tasks and self.tasks[cell_id].is_active


def ledger_path(work_dir: Path, protocol: str) -> Path:
    """WORK_DIR/PROTOCOL/cluster.json."""
    return work_dir / protocol / LEDGER_NAME


def read_ledger(path: Path) -> Ledger | None:
    """The ledger at `path`, None if there is none. HarnessError if it is damaged."""
    try:
        return Ledger.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError) as error:
        raise HarnessError(
            f"{path}: the ledger of what was submitted cannot be read ({str(error).splitlines()[0]}); make "
            "sure with squeue that nothing of this run is queued, then delete the file"
        ) from None


def write_ledger(path: Path, ledger: Ledger) -> None:
    """Replace the ledger at `path`."""
    write_atomically(path, json.dumps(ledger.model_dump(mode="json"), indent=1) + "\n")


def queue_of(work_dir: Path, protocol: str) -> Queue | None:
    """The queue's tasks of a run, None if nothing of it was ever submitted."""
    ledger = read_ledger(ledger_path(work_dir, protocol))
    return None if ledger is None else read_queue(ledger)


def read_queue(ledger: Ledger) -> Queue:
    """What became of the ledger's cells, as far as a queue knows it. Never raises for want of a Slurm."""
    tasks = {
        cell_id: Task(entry.job, entry.index, "PENDING", "local")
        for cell_id, entry in ledger.cells.items()
        if entry.scheduler == "local" and entry.job is not None and _is_walking(entry.job)
    }
    of_slurm = {cell_id: entry for cell_id, entry in ledger.cells.items() if entry.scheduler == "slurm"}
    if not of_slurm:
        return Queue(ledger, tasks)
    try:
        shown = _squeue({entry.array for entry in of_slurm.values()})
    except HarnessError as error:
        return Queue(ledger, tasks, problem=str(error))
    for cell_id, entry in of_slurm.items():
        task = shown.get((entry.array, entry.index))
        if task is not None:
            tasks[cell_id] = task
    return Queue(ledger, tasks)


def accounted_states(jobs: Iterable[str]) -> dict[str, str]:
    """JOB_INDEX -> how it ended, of jobs that squeue has forgotten; nothing where sacct has no accounting."""
    known = sorted({job for job in jobs if job})
    if not known:
        return {}
    try:
        text = _ask("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State",
                    f"--jobs={','.join(known)}")  # fmt: skip
    except HarnessError:
        return {}
    rows = (line.split("|") for line in text.splitlines())
    return {row[0]: row[1].split()[0] for row in rows if len(row) == 2 and row[1]}


def with_queue(states: Iterable[CellState], queue: Queue, work_dir: Path, protocol: str) -> list[CellState]:
    """`states` with those cells as running that the queue shows on a node: locks may not be seen here."""
    told = []
    for one in states:
        task = queue.tasks.get(one.cell.id)
        if task is not None and task.is_on_a_node and one.record is None and one.state != "running":
            folder = cell_folder(work_dir, protocol, one.cell.id)
            one = replace(one, state="running", reasons=(), metrics=newest_metrics(folder))
        told.append(one)
    return told


def as_json(queue: Queue, cell_id: str) -> dict[str, Any] | None:
    """What is known of a cell's last submission, as plain JSON types."""
    entry, task = queue.ledger.cells.get(cell_id), queue.tasks.get(cell_id)
    if entry is None:
        return None
    return {
        "job": task.name if task else entry.task,
        "submitted_at": entry.at,
        "state": task.state if task else None,
        "reason": (task.reason or None) if task else None,
    }


def _squeue(arrays: Iterable[str]) -> dict[tuple[str, int], Task]:
    """(array's name, index) -> its task, of all that squeue still knows."""
    text = _ask("squeue", "--noheader", "--array", "--states=all", "--format=%F|%K|%j|%T|%r",
                f"--name={','.join(sorted(arrays))}")  # fmt: skip
    tasks: dict[tuple[str, int], Task] = {}
    for line in text.splitlines():
        job, index, name, state, reason = line.strip().split("|", 4)
        if index.isdecimal():
            tasks[name, int(index)] = Task(job, int(index), state, "" if reason == "None" else reason)
    return tasks


def _ask(program: str, *arguments: str) -> str:
    """Standard output of one of Slurm's programs; HarnessError, one line long, if it has no answer."""
    # A user's defaults would narrow what is shown, and what is not shown would be submitted a second time.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SQUEUE_", "SACCT_")) and name != "SLURM_CLUSTERS"
    }
    try:
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            timeout=QUEUE_SECONDS,
            check=False,
            env=environment,
        )
    except FileNotFoundError:
        raise HarnessError(f"there is no {program} on this machine") from None
    except subprocess.TimeoutExpired:
        raise HarnessError(f"{program} gave no answer within {QUEUE_SECONDS} s") from None
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
        raise HarnessError(f"{program} failed: {said.removeprefix(f'{program}: error: ')}")
    return done.stdout


def _is_walking(pid: str) -> bool:
    """True while the process that runs a local submission's cells one by one is there."""
    try:
        return b"submitit" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
