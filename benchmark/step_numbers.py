"""Losses and gradient norms of the last steps: kept on their device until they are read, all at once.

They are read every ten steps, and before anything is saved, so that a GPU is not waited for at each step.
All processes of a cell read the same numbers, and so decide alike; a training that has left the finite
numbers ends there, by the exact step that did it first.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmark.between_steps import TrainingDiverged
from benchmark.process_group import process_count, process_rank
from protocols.files import write_atomically

if TYPE_CHECKING:
    from benchmark.engine import StepLoop

DIVERGED_NAME = "diverged.json"
MOST_NAMED = 8


class StepNumbers:
    """Of the steps since the last reading, and of the last one whose numbers were finite."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        # Part of the state: a resumed run says the same of the step before as one that went on.
        self.last_finite: dict[str, float] | None = None

    def keep(self, loss: Tensor, gradient_norm: Tensor) -> None:
        """Take this process's loss of a step, and the norm of the gradient, which all processes share."""
        self._losses.append(loss.detach())
        self._norms.append(gradient_norm.detach())

    def read(self, loop: StepLoop) -> bool:
        """Whether the weights are finite. TrainingDiverged for the first step whose numbers are not.

        All processes have to read together.
        """
        steps = len(self._losses)
        numbers = torch.stack([*self._losses, *self._norms, _bad_weights(loop)]).double()  # (2 steps + 1,)
        self._losses, self._norms = [], []
        if process_count() > 1:
            dist.all_reduce(numbers)
            numbers /= process_count()
        *read, bad_weights = numbers.tolist()
        for index, (loss, norm) in enumerate(zip(read[:steps], read[steps:], strict=True)):
            step = loop.step - steps + index + 1
            for what, value in (("loss", loss), ("norm of the gradient", norm)):
                if not math.isfinite(value):
                    raise self._diverged(loop, step, f"the {what} is {value}")
            self.last_finite = {"step": step, "loss": loss, "gradient_norm": norm}
        return not bad_weights

    def check(self, loop: StepLoop) -> None:
        """`read`, and TrainingDiverged for weights that are not finite, too."""
        if not self.read(loop):
            raise self._diverged(loop, loop.step, "the weights are not finite after it")

    def _diverged(self, loop: StepLoop, step: int, what: str) -> TrainingDiverged:
        """The error; the first process writes down all that it takes to make the batch again."""
        training, runtime = loop.training, loop.runner.runtime
        training.schedule.step_update(step - 1)
        rate = max(group["lr"] for group in training.optimizer.param_groups)
        steps = training.data.steps
        positions = steps.positions(step - 1)
        images = training.images
        sample_ids = (positions if images is None else images.sample_ids[positions]).tolist()
        if process_rank() == 0:
            facts: dict[str, Any] = {
                "step": step,
                "steps": steps.total,
                "what": what,
                "last_finite": self.last_finite,
                "learning_rate": rate,
                "seed": training.seed,
                "epoch": steps.epoch(step - 1),
                "runtime": runtime.recorded(),
                "positions": positions.tolist(),
                "sample_ids": sample_ids,
                "image_ids": [] if images is None else [images.image_ids[one] for one in positions],
                "again": f"from benchmark.batches import Steps; Steps(images={steps.images}, "
                f"global_batch={steps.global_batch}, epochs={steps.epochs}, seed={steps.seed})"
                f".positions({step - 1}) gives `positions`; a stage's make_batch(positions, "
                f"epoch={steps.epoch(step - 1)}) the batch",
            }
            text = json.dumps(facts, indent=1, allow_nan=False)
            write_atomically(training.folder / DIVERGED_NAME, text + "\n")
        return TrainingDiverged(
            f"diverged at step {step} of {steps.total}: {what}; {_last(self.last_finite)}; learning rate "
            f"{rate:.4g}; sample ids of its {len(sample_ids)} images: {_listed(sample_ids)}; all are in "
            f"{DIVERGED_NAME} beside the log, with how to make the batch again: look at its images, or "
            "change the recipe; --redo-failed alone goes on from the last checkpoint, and ends the same way"
        )


def _bad_weights(loop: StepLoop) -> Tensor:
    """How many trained tensors hold a number that is not finite: a scalar on the device."""
    weights = [one for group in loop.training.optimizer.param_groups for one in group["params"]]
    sums = torch.stack([one.detach().sum() for one in weights])  # a sum is as finite as what it is of
    return sums.isfinite().logical_not().sum()


def _last(finite: dict[str, float] | None) -> str:
    if finite is None:
        return "no finite step before it is known"
    return (
        f"last finite: loss {finite['loss']:.6g} and gradient norm {finite['gradient_norm']:.6g} "
        f"at step {finite['step']:.0f}"
    )


def _listed(sample_ids: list[int]) -> str:
    more = ", ..." if len(sample_ids) > MOST_NAMED else ""
    return ", ".join(map(str, sample_ids[:MOST_NAMED])) + more
