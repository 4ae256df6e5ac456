"""Can every global batch be had exactly, does a step fit, are there images enough? And how steps are made up.

No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmark.commands.text import count
from benchmark.inputs import Missing
from benchmark.placement import DoesNotFit, mixup_group
from benchmark.plan import Cell
from benchmark.runtime import Runtime
from benchmark.step_costs import StepCosts, recipe_of
from protocols.errors import HarnessError, ProtocolViolation
from protocols.recipes import LinearProbe, Optimisation
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
                micro_batch = runtime.micro_batch(recipe.global_batch, group=mixup_group(recipe))
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
    left = f"; of {unknown} of them no step was measured (plan --probe measures)" if unknown else ""
    return f"memory: {len(placed)} cells held against {costs.machine.described}{left}"


def step_lines(placed: Sequence[Placed]) -> Iterator[str]:
    """One line for each stage and split of its batch: how a global batch is made up, and the peak rate."""
    splits: dict[tuple[str, str], dict[tuple[str, str], None]] = {}
    for one in placed:
        processes, steps = one.runtime.processes, one.runtime.accumulation
        split = (
            f"global batch {one.recipe.global_batch} = {processes} process{'es' if processes > 1 else ''} x "
            f"{count(steps, 'step')} x {one.micro_batch} images, peak lr {one.recipe.peak_lr:g}"
        )
        stage = one.cell.evaluation or one.cell.stage
        splits.setdefault((stage, split), {})[one.cell.trunk or "", one.cell.method or ""] = None
    stages = ["pretrain", *dict.fromkeys(stage for stage, _ in splits)]
    for (stage, split), rows in sorted(splits.items(), key=lambda item: stages.index(item[0][0])):
        others = [key for key in splits if key[0] == stage and key[1] != split]
        shared = {trunk for key in others for trunk, _ in splits[key]}
        # Methods are named where they divide a trunk's batch differently.
        names = dict.fromkeys(
            f"{method}/{trunk}" if trunk in shared else trunk for trunk, method in rows if trunk
        )
        yield f"{stage}{' ' if names else ''}{', '.join(names)}: {split}"


def image_problems(cells: Iterable[Cell], protocol: Protocol) -> list[Missing]:
    """Recipes that ask for more labelled images than there are, or whose images fill no batch."""
    found = []
    planned = list(cells)
    recipe: Optimisation = protocol.pretraining
    if any(cell.stage == "pretrain" for cell in planned):
        found += _unfilled("pretraining", recipe, protocol.data.pretraining.count)
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
        found += _unfilled(f"evaluation {evaluation}", recipe, recipe.labelled_images)
    return found


def _unfilled(what: str, recipe: Optimisation, images: int) -> list[Missing]:
    if images >= recipe.global_batch:
        return []
    text = f"{what}: {images} images do not fill one global batch of {recipe.global_batch}"
    return [Missing(text, "epochs are cut into whole batches: take more images, or a smaller batch")]
