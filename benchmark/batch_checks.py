"""Can every global batch be had exactly, does a step fit, are there images enough? And how steps are made up.

No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmark.commands.text import count, size, table
from benchmark.inputs import Missing
from benchmark.placement import DoesNotFit, images_in_a_group
from benchmark.plan import Cell
from benchmark.runtime import Runtime
from benchmark.step_costs import StepCosts, recipe_of
from protocols.errors import HarnessError, ProtocolViolation
from protocols.recipes import LinearProbe, NearestNeighbours, Optimisation
from protocols.schema import Protocol

RuntimeOf = Callable[[Cell], Runtime]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A training cell with its recipe, its runtime, and the images of one step of one process."""

    cell: Cell
    recipe: Optimisation
    runtime: Runtime
    micro_batch: int


def place_all(
    cells: Sequence[Cell], protocol: Protocol, place: RuntimeOf, problems: list[Missing]
) -> tuple[list[Placed], list[str]]:
    """The training cells, and violations in words; what fits no memory joins `problems`."""
    violations: dict[str, None] = {}
    placed = []
    for cell in cells:
        recipe = recipe_of(cell, protocol)
        try:
            runtime = place(cell)
            if recipe is not None:
                micro_batch = runtime.micro_batch(recipe.global_batch, group=images_in_a_group(cell, recipe))
                placed.append(Placed(cell=cell, recipe=recipe, runtime=runtime, micro_batch=micro_batch))
        except ProtocolViolation as error:
            violations[str(error)] = None
        except DoesNotFit as error:
            problems.append(Missing(error.what, error.remedy))
        except HarnessError as error:
            problems.append(Missing(str(error), ""))
    return placed, list(violations)


def memory_line(
    placed: Sequence[Placed], protocol: Protocol, runtime: Runtime, costs: StepCosts | None
) -> str:
    """What is known of the GPUs' memory."""
    if runtime.device == "cpu" or not placed:
        return ""
    if costs is None:
        return "memory: not checked, no step was measured on this device (plan --probe measures)"
    unknown = sum(costs.of(one.cell, protocol) is None for one in placed)
    left = f"; of {count(unknown, 'cell')} no step was measured (plan --probe measures)" if unknown else ""
    known = len(placed) - unknown
    fitting = f"{count(known, 'cell')} fit{'s' if known == 1 else ''}"
    return f"memory: {fitting}, as measured on {costs.machine.described}{left}"


def step_lines(placed: Sequence[Placed], protocol: Protocol, costs: StepCosts | None) -> Iterator[str]:
    """A table: how each stage's global batch is made up, the peak rate, and the most of a GPU's memory."""
    if not placed:
        return
    splits: dict[tuple[str, tuple[str, ...]], list[Placed]] = {}
    for one in placed:
        split = (one.recipe.global_batch, one.runtime.processes, one.runtime.accumulation, one.micro_batch)
        key = (one.cell.evaluation or one.cell.stage, (*map(str, split), f"{one.recipe.peak_lr:g}"))
        splits.setdefault(key, []).append(one)
    devices = "GPUs" if placed[0].runtime.device == "cuda" else "processes"
    header = ["batch", f"= {devices}", "x steps", "x images", "peak lr"]
    rows = [[*numbers] for _, numbers in splits]
    if costs is not None and costs.machine.memory_bytes is not None:
        header.append("memory")
        for row, cells in zip(rows, splits.values(), strict=True):
            row.append(_most_memory(cells, protocol, costs))
    first, rule, *lines = table(header, rows, right=range(len(header))).splitlines()
    shown: list[tuple[str, str]] = []
    for line, (stage, numbers), cells in zip(lines, splits, splits.values(), strict=True):
        others = [key for key in splits if key[0] == stage and key[1] != numbers]
        shared = {one.cell.trunk for key in others for one in splits[key]}
        # Methods are named where they divide a trunk's batch differently.
        names = dict.fromkeys(
            f"{one.cell.method}/{one.cell.trunk}" if one.cell.trunk in shared else one.cell.trunk
            for one in cells
            if one.cell.trunk
        )
        # Last, since many names may not fit the terminal.
        shown.append((stage, f"{line}  {stage} {', '.join(names)}".rstrip()))
    stages = ["pretrain", *dict.fromkeys(stage for stage, _ in splits)]
    yield from (f"{first}  stage", rule + "-" * len("  stage"))
    yield from (line for _, line in sorted(shown, key=lambda item: stages.index(item[0])))


def _most_memory(placed: Sequence[Placed], protocol: Protocol, costs: StepCosts) -> str:
    """The largest peak of one GPU; nothing where none was measured."""
    peaks = []
    for one in placed:
        cost, split = costs.of(one.cell, protocol), one.runtime
        if cost is not None:
            peaks.append(
                cost.peak_bytes(one.micro_batch, processes=split.processes, accumulation=split.accumulation)
            )
    known = [peak for peak in peaks if peak is not None]
    return size(max(known)) if known else ""


def image_problems(cells: Iterable[Cell], protocol: Protocol) -> list[Missing]:
    """Recipes that ask for more labelled images than there are, or whose images fill no batch."""
    found = []
    planned = list(cells)
    for changes in dict.fromkeys(cell.pretraining for cell in planned if cell.stage == "pretrain"):
        pretraining = protocol.pretraining_with(dict(changes))
        found += _unfilled("pretraining", pretraining, protocol.data.pretraining.count)
    asked = dict.fromkeys((cell.evaluation, cell.trunk) for cell in planned if cell.evaluation)
    for evaluation, trunk in asked:
        assert evaluation is not None
        recipe = protocol.evaluation(evaluation, trunk)
        training = protocol.data.training
        if isinstance(recipe, LinearProbe) and recipe.transfer_set is not None:
            training = protocol.transfer_sets[recipe.transfer_set].training
        if recipe.labelled_images > training.count:
            what = (
                f"evaluation {evaluation} of protocol {protocol.name} asks for {recipe.labelled_images} "
                f"labelled images; its training part has {training.count}"
            )
            found.append(Missing(what, f"ask for {training.count} or fewer"))
        if not isinstance(recipe, NearestNeighbours):
            found += _unfilled(f"evaluation {evaluation}", recipe, recipe.labelled_images)
    return found


def _unfilled(what: str, recipe: Optimisation, images: int) -> list[Missing]:
    if images >= recipe.global_batch:
        return []
    text = f"{what}: {images} images do not fill one global batch of {recipe.global_batch}"
    return [Missing(text, "epochs are cut into whole batches: take more images, or a smaller batch")]
