"""What is checked before anything runs: batches, inputs, images; all that is missing is named at once."""

from __future__ import annotations

import os
from collections.abc import Sequence

from benchmark.data import open_part
from benchmark.inputs import EMBEDDED_SETS, Missing
from benchmark.plan import Cell
from benchmark.runtime import Runtime
from benchmark.survey import CellState
from protocols.errors import HarnessError
from protocols.recipes import FineTuning, LinearProbe, Optimisation
from protocols.schema import Protocol


def check_batches(plan: Sequence[Cell], protocol: Protocol, runtime: Runtime) -> None:
    """ProtocolViolation unless the processes and accumulation steps give every global batch exactly."""
    for cell in plan:
        if cell.stage == "pretrain":
            runtime.micro_batch(protocol.pretraining.global_batch)
        elif cell.evaluation is not None:
            recipe = protocol.evaluation(cell.evaluation, cell.trunk)
            group = recipe.mixup_group if isinstance(recipe, FineTuning) else None
            runtime.micro_batch(recipe.global_batch, group=group or 1)
    if runtime.processes > 1:
        raise HarnessError(
            f"a launcher started {runtime.processes} processes (WORLD_SIZE); this version starts a cell's "
            "process itself, one for each: run the command once, without the launcher"
        )


def check_inputs(states: Sequence[CellState], protocol: Protocol) -> None:
    """HarnessError, before anything runs, with all that is missing at once, each with its remedy."""
    missing: dict[Missing, None] = {one: None for state in states for one in state.missing}
    if missing:
        what = "1 thing is" if len(missing) == 1 else f"{len(missing)} things are"
        lines = [f"protocol {protocol.name} cannot run here; {what} missing:"]
        for one in missing:
            lines += [f"- {one.what}", f"  {one.remedy}"]
        raise HarnessError("\n".join(lines))


def check_parts(protocol: Protocol) -> None:
    """HarnessError unless embedded data sets hold the images of every part; cells read the others."""
    parts = [(protocol.data.name, name, part) for name, part in protocol.data.parts.items()]
    for other in protocol.transfer_sets.values():
        parts += [(other.name, "training", other.training), (other.name, "test", other.test)]
    for data_set, name, part in parts:
        if data_set in EMBEDDED_SETS:
            open_part(data_set, name, part)


def check_images(plan: Sequence[Cell], protocol: Protocol) -> None:
    """HarnessError unless there are as many images as the protocol's parts and its recipes ask for."""
    check_parts(protocol)
    recipe: Optimisation = protocol.pretraining
    if any(cell.stage == "pretrain" for cell in plan):
        _check_fills_a_batch("pretraining", recipe, protocol.data.pretraining.count)
    for evaluation, trunk in {(cell.evaluation, cell.trunk) for cell in plan if cell.evaluation}:
        recipe = protocol.evaluation(evaluation, trunk)
        training = protocol.data.training
        if isinstance(recipe, LinearProbe) and recipe.transfer_set is not None:
            training = protocol.transfer_sets[recipe.transfer_set].training
        if recipe.labelled_images > training.count:
            raise HarnessError(
                f"evaluation {evaluation} of protocol {protocol.name} asks for {recipe.labelled_images} "
                f"labelled images; its training part has {training.count}"
            )
        _check_fills_a_batch(f"evaluation {evaluation}", recipe, recipe.labelled_images)


def _check_fills_a_batch(what: str, recipe: Optimisation, images: int) -> None:
    if images < recipe.global_batch:
        raise HarnessError(
            f"{what}: {images} images do not fill one global batch of {recipe.global_batch}; epochs are cut "
            "into whole batches"
        )


def world_size() -> int:
    """Processes that a launcher says it started, 1 without one."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise HarnessError(f"the environment's WORLD_SIZE is {text!r}; it must be a number of processes")
    return int(text)
