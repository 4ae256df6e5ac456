"""From open cells to job arrays: which cells share one, and which tasks each waits for. Pure; no torch.

Slurm gives one dependency to a whole array. So that no cell waits for another's parent, an array holds cells
that wait for the same tasks (`afterok`), or cells of which each waits for the task of its own index in one
other array (`aftercorr`), as fine-tunings do for their pre-trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmark.cluster_file import ClusterFile
from benchmark.plan import Cell
from benchmark.runtime import Runtime
from protocols.errors import HarnessError

MOST_TASKS = 1000  # Slurm's default MaxArraySize is 1001


@dataclass(frozen=True)
class Task:
    """One task of an array: `array` is its unique name."""

    array: str
    index: int


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a cell asks of the cluster: `nodes` nodes with `processes_per_node` processes on each."""

    nodes: int
    processes_per_node: int

    @property
    def processes(self) -> int:
        """Of the whole cell."""
        return self.nodes * self.processes_per_node


@dataclass(frozen=True, kw_only=True)
class Array:
    """Like cells, submitted together. `cells` maps the array's indices to them.

    Every task waits for all of `after`; or, where `corresponds` names an array, for the task of that array
    with its own index.
    """

    name: str
    title: str
    cells: Mapping[int, Cell]
    runtime: Runtime
    shape: Shape
    request: ClusterFile
    after: tuple[Task, ...] = ()
    corresponds: str | None = None


def shape_of(cell: Cell, runtime: Runtime, request: ClusterFile) -> Shape:
    """Nodes and processes of a cell that runs in `runtime.processes` processes.

    The fewest nodes that share them evenly. HarnessError if the file does not allow so many.
    """
    processes, per_node = runtime.processes, request.slots_per_node
    for nodes in range(1, request.max_nodes_per_cell + 1):
        each, rest = divmod(processes, nodes)
        if not rest and each <= per_node:
            return Shape(nodes=nodes, processes_per_node=each)
    raise HarnessError(
        f"cell {cell.id} is to run in {processes} processes; the cluster file gives it up to "
        f"{request.max_nodes_per_cell} nodes (max_nodes_per_cell) with up to {per_node} processes on each, "
        "the same number on all: give another --gpus-per-cell, or change the file"
    )


def make_arrays(
    cells: Sequence[Cell],
    cluster: ClusterFile,
    *,
    queued: Mapping[str, Task],
    runtime_of: Callable[[Cell], Runtime],
    name_of: Callable[[str], str],
) -> list[Array]:
    """Arrays of `cells`, which stand in the plan's order, so that parents' arrays come before children's.

    `queued` are the tasks of cells that are in the queue already. `name_of` makes a unique name of a title.
    """
    place: dict[str, Task] = dict(queued)
    level: dict[str, int] = {}
    groups: dict[tuple[int, str, Runtime], list[Cell]] = {}
    for cell in cells:
        level[cell.id] = max((level[parent] + 1 for parent in cell.parents if parent in level), default=0)
        groups.setdefault((level[cell.id], cell.evaluation or cell.stage, runtime_of(cell)), []).append(cell)
    arrays = []
    for (_, title, runtime), group in sorted(groups.items(), key=lambda item: item[0][0]):
        request = cluster.of_stage(group[0].stage)
        shape = shape_of(group[0], runtime, request)
        for numbered, after, corresponds in _split(group, place):
            name = name_of(title)
            place |= {cell.id: Task(name, index) for index, cell in numbered.items()}
            arrays.append(
                Array(
                    name=name,
                    title=title,
                    cells=numbered,
                    runtime=runtime,
                    shape=shape,
                    request=request,
                    after=after,
                    corresponds=corresponds,
                )
            )
    return arrays


def _split(
    group: Sequence[Cell], place: Mapping[str, Task]
) -> Iterable[tuple[dict[int, Cell], tuple[Task, ...], str | None]]:
    """The cells of a group as (index -> cell, tasks that all wait for, array that they correspond to)."""
    by_arrays: dict[tuple[str, ...], dict[tuple[Task, ...], list[Cell]]] = {}
    for cell in group:
        after = tuple(place[parent] for parent in cell.parents if parent in place)
        arrays = tuple(sorted({task.array for task in after}))
        by_arrays.setdefault(arrays, {}).setdefault(after, []).append(cell)
    for arrays, by_tasks in by_arrays.items():
        is_one_to_one = all(len(after) == 1 and len(cells) == 1 for after, cells in by_tasks.items())
        if len(by_tasks) > 1 and is_one_to_one:
            yield {after[0].index: cells[0] for after, cells in by_tasks.items()}, (), arrays[0]
            continue
        for after, cells in by_tasks.items():
            for start in range(0, len(cells), MOST_TASKS):
                yield dict(enumerate(cells[start : start + MOST_TASKS])), after, None
