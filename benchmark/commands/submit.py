"""`run --cluster FILE.yaml`: the cells that are open go to a cluster's queue, and the command returns."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmark.cell_command import cell_arguments
from benchmark.cluster import Open, Submission, Submitted, open_cells
from benchmark.cluster_file import ClusterFile
from benchmark.cluster_queue import queue_of
from benchmark.commands.options import Parser
from benchmark.commands.text import count, paragraph, table
from benchmark.plan import Cell
from benchmark.plugins import words_of_plugins
from benchmark.runtime import Runtime
from benchmark.survey import CellState
from protocols.errors import HarnessError
from protocols.schema import Protocol

RuntimeOf = Callable[[Cell], Runtime]


def add_cluster(parser: Parser) -> None:
    """--cluster and --dry-run."""
    parser.add_argument(
        "--cluster",
        type=Path,
        metavar="FILE.yaml",
        help="submit the cells to Slurm as this file says, and return (see docs/cluster.md)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="with --cluster: print the batch scripts, submit nothing"
    )


def check_cluster(options: Namespace) -> None:
    """HarnessError for a --dry-run of nothing."""
    if options.dry_run and options.cluster is None:
        raise HarnessError("--dry-run belongs to --cluster FILE.yaml; `plan` shows what a run would do here")


def check_not_queued(options: Namespace, protocol: Protocol) -> None:
    """HarnessError if cells of this run are in a cluster's queue: a run here would run them a second time."""
    queue = queue_of(options.work_dir, protocol.name)
    if queue is None:
        return
    if queue.problem:
        told = (
            f"cells of this run were submitted to a cluster before; its queue was not asked: {queue.problem}"
        )
        print(told, file=sys.stderr)
    active = [task.name for task in queue.tasks.values() if task.is_active]
    if active:
        raise HarnessError(
            f"{count(len(active), 'cell')} of {options.work_dir / protocol.name} are in a cluster's queue "
            f"({', '.join(sorted(active)[:3])}{', ...' if len(active) > 3 else ''}), and may start while "
            "this run is going on; give --cluster, wait for them (status), end them with scancel, or give "
            "another --work-dir"
        )


def cluster_runtime(options: Namespace, cluster: ClusterFile) -> Runtime:
    """The runtime of the nodes that the file describes: what this machine has does not matter.

    `jobs` is how many processes one cell can have at most. HarnessError for options that contradict the file.
    """
    if options.jobs is not None:
        raise HarnessError(
            "--jobs is for one machine; on a cluster array_parallelism in the file bounds what runs at once"
        )
    if options.device not in ("auto", cluster.device):
        raise HarnessError(
            f"--device {options.device}, and the cluster file has gpus_per_node {cluster.gpus_per_node}; "
            "leave --device out, or change the file"
        )
    nodes = max(
        [cluster.max_nodes_per_cell, *(one.max_nodes_per_cell or 1 for one in cluster.stages.values())]
    )
    most, asked = cluster.slots_per_node * nodes, options.gpus_per_cell
    if asked is not None and asked > most:
        raise HarnessError(
            f"--gpus-per-cell {asked}: the cluster file gives a cell {count(nodes, 'node')} "
            f"(max_nodes_per_cell), and on each {cluster.slots_per_node} of its processes; give {most} or "
            "fewer, or change the file"
        )
    return Runtime(
        device=cluster.device,
        jobs=most,
        threads=cluster.cpus_per_process if cluster.gpus_per_node else 1,
        workers=options.workers,
        precision=options.precision,
        accumulation=options.accumulation or 1,
        checkpoint_seconds=options.checkpoint_seconds,
        images=options.images,
        gpus_per_cell=options.gpus_per_cell,
        compile=options.compile,
        activation_checkpointing=options.activation_checkpointing,
    )


def submit(
    options: Namespace,
    protocol: Protocol,
    states: Sequence[CellState],
    cluster: ClusterFile,
    *,
    runtime_of: RuntimeOf,
) -> int:
    """Submit what is open of `states`, or with --dry-run show it; returns the exit code.

    `runtime_of` places a cell: how many processes it has, and how each makes its share of a batch.
    """
    submission = Submission(
        protocol,
        options.work_dir,
        cluster,
        python=sys.executable,
        runtime_of=runtime_of,
        words_of=lambda cell_id, runtime: cell_arguments(options, cell_id, runtime),
    )
    if options.dry_run:
        queue = submission.queue(is_dry=True)
        found = open_cells(states, queue, redo_failed=options.redo_failed, redo_stale=options.redo_stale)
        arrays = submission.arrays(found.cells, queue)
        if cluster.scheduler == "local":
            print(submission.local_script(arrays, "local"), end="")
        else:
            print(_scripts(submission.shown(arrays, queue)))
        if queue.problem:
            print(f"the queue was not asked: {queue.problem}", file=sys.stderr)
        print(_summary(found, protocol, is_dry=True), file=sys.stderr)
        return 0
    with submission.alone():
        queue = submission.queue()
        found = open_cells(states, queue, redo_failed=options.redo_failed, redo_stale=options.redo_stale)
        arrays = submission.arrays(found.cells, queue)
        if arrays and cluster.scheduler == "local":
            process = submission.submit_locally(arrays, queue)
            print(f"process {process} of this machine runs the cells one by one")
        elif arrays:
            print(_submitted(list(submission.submit(arrays, queue))))
    print(_summary(found, protocol, is_dry=False))
    print(f"\nfollow it:  {shlex.join(_status_words(options))}")
    print(paragraph("The same command again submits what is left; report makes the board of what is done."))
    return 0


def _status_words(options: Namespace) -> list[str]:
    """The command that shows these very cells: with --set others would be meant without it."""
    words = ["python", "run_benchmark.py", "status", "--protocol", str(options.protocol)]
    words += ["--work-dir", str(options.work_dir)]
    if options.data_root is not None:
        words += ["--data-root", str(options.data_root)]
    words += words_of_plugins()
    for kind in ("methods", "tokenizers", "trunks", "evaluations", "views", "seeds", "set"):
        given = getattr(options, kind)
        is_default = given == ["all"] and kind in ("methods", "tokenizers", "trunks")
        if given and not is_default:
            words += [f"--{kind}", *given]
    return words


def _submitted(arrays: Sequence[Submitted]) -> str:
    rows = [
        [
            one.job,
            one.array.title,
            str(len(one.array.cells)),
            str(one.array.shape.nodes),
            str(one.array.shape.processes),
            _waits_for(one),
        ]
        for one in arrays
    ]
    header = ["job", "cells of", "tasks", "nodes", "processes", "each waits for"]
    return table(header, rows, right=(2, 3, 4))


def _waits_for(one: Submitted) -> str:
    options = [word for word in one.command if word.startswith("--dependency=")]
    return options[0].removeprefix("--dependency=") if options else ""


def _scripts(arrays: Sequence[Submitted]) -> str:
    """Everything that would be submitted, each script before its sbatch."""
    blocks = []
    for number, one in enumerate(arrays, start=1):
        what = f"{one.array.title}, {count(len(one.array.cells), 'task')}"
        blocks.append(
            f"### array {number} of {len(arrays)}: {what}; its id is {one.job} below\n"
            f"### {one.command[-1]}\n{one.script}\n### submitted with\n{shlex.join(one.command)}\n"
        )
    return "\n".join(blocks)


def _summary(found: Open, protocol: Protocol, *, is_dry: bool) -> str:
    """One sentence on every cell of the plan."""
    verb = "would be submitted" if is_dry else "submitted"
    parts = [f"{count(len(found.cells), 'cell')} {verb}"]
    parts += [f"{len(found.queued)} in the queue already"] if found.queued else []
    parts += [f"{len(found.done)} done"] if found.done else []
    parts += [f"{number} {reason}" for reason, number in found.held.items()]
    return paragraph(f"{protocol.name}: {', '.join(parts)}.")
