"""From a protocol's recipe to a finished training: the one way in which every stage trains."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import nn

from benchmark.batches import Batch, StepDataset, Steps
from benchmark.engine import Training, TrainingResult, train
from benchmark.image_part import ImagePart
from benchmark.optim import build_optimizer, build_schedule
from benchmark.out_of_memory import RanOutOfMemory, out_of_memory
from benchmark.process_group import ShareDone, process_rank
from benchmark.stage import CellContext
from benchmark.step_choices import computed_as_chosen
from protocols.recipes import Optimisation

log = logging.getLogger(__name__)


def train_recipe(
    context: CellContext,
    recipe: Optimisation,
    *,
    objective: nn.Module,
    weights: nn.Module,
    undecayed: set[str],
    images: ImagePart,
    make_batch: Callable[[npt.NDArray[np.int64], int], Batch],
    layer_decay: float | None = None,
    group: int = 1,
) -> TrainingResult:
    """Train `weights` (a part of `objective`) on `images` under `recipe`, in the cell's folder.

    `undecayed` names parameters of `weights`. `make_batch` maps positions and an epoch to a batch.
    Micro-batches are whole groups of `group` images.
    Raises what `benchmark.engine.train` raises, or OutOfMemory with what would fit; ShareDone after it in all
    processes but the first.
    """
    runtime = context.runtime
    steps = Steps(len(images), recipe.global_batch, recipe.epochs, context.seed)
    data = StepDataset(
        steps,
        make_batch,
        micro_batch=runtime.micro_batch(recipe.global_batch, group=group),
        rank=process_rank(),
        processes=runtime.processes,
    )
    optimizer = build_optimizer(
        weights.to(runtime.device), recipe, undecayed=undecayed, layer_decay=layer_decay
    )
    training = Training(
        model=objective,
        data=data,
        optimizer=optimizer,
        schedule=build_schedule(optimizer, recipe, steps),
        clip_grad_norm=recipe.clip_grad_norm,
        seed=context.seed,
        folder=context.folder,
        stop=context.stop,
        images=images,
    )
    with computed_as_chosen(objective, data.first_batch, runtime) as ran:
        context.ran["compile"] = ran.compile
        try:
            result = train(training, runtime)
            ran_out = None
        except RanOutOfMemory as error:
            log.warning("%s", error)
            ran_out = {"step": error.step, "steps": error.steps, "images": error.images}
        if ran_out is not None:
            # Outside the handler: its exception holds the frames, and so the tensors, that ran out.
            raise out_of_memory(
                **ran_out,
                objective=objective,
                optimizer=optimizer,
                make_batch=lambda count: make_batch(steps.positions(0)[:count], 0),
                runtime=runtime,
                recipe=recipe,
                group=group,
            )
    if process_rank():
        raise ShareDone
    return result
