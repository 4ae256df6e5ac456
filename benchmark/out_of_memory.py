"""Training that runs out of memory ends with the micro-batch that would fit, found by trying."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from benchmark.batches import Batch, StepDataset
from benchmark.runtime import Runtime
from benchmark.step_choices import forward_and_backward
from protocols.errors import HarnessError, ProtocolViolation
from protocols.recipes import Optimisation


class RanOutOfMemory(Exception):
    """Memory ran out in step `step` of `steps`, in micro-batches of `images`."""

    def __init__(self, said: str, *, step: int, steps: int, images: int) -> None:
        self.step, self.steps, self.images = step, steps, images
        super().__init__(said)


class OutOfMemory(HarnessError):
    """The same, and what would fit."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory, or this machine's, was not enough for what `error` came from."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory",
            "CUBLAS_STATUS_ALLOC_FAILED")  # fmt: skip
    return isinstance(error, RuntimeError) and any(text in str(error) for text in said)


@contextmanager
def memory_watched(step: int, data: StepDataset) -> Iterator[None]:
    """Within step `step`, counted from 1, running out of memory is RanOutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).partition("\n")[0] or type(error).__name__
        raise RanOutOfMemory(said, step=step, steps=data.steps.total, images=data.micro_batch) from error


def out_of_memory(
    *,
    step: int,
    steps: int,
    images: int,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    make_batch: Callable[[int], Batch],
    runtime: Runtime,
    recipe: Optimisation,
    group: int = 1,
) -> OutOfMemory:
    """The error of a training whose own memory is free again; smaller micro-batches are tried on the device.

    `make_batch` gives a micro-batch of so many images, which are whole groups of `group`.
    """
    gc.collect()  # exceptions and their frames refer to each other
    fitting = None
    for smaller, size in _smaller_splits(runtime, recipe, group):
        if _fits(objective, make_batch, size, optimizer, smaller):
            fitting = smaller, size
            break
    told = f"out of memory at step {step} of {steps} with micro-batches of {images} images"
    again = "give the command again with it and --redo-failed; it goes on from the last checkpoint"
    if fitting is None:
        ways = [] if runtime.precision == "bf16" else ["--precision bf16"]
        ways += [] if runtime.activation_checkpointing else ["--activation-checkpointing"]
        return OutOfMemory(
            f"{told}; no smaller cut of the global batch of {recipe.global_batch} fits: end what else uses "
            f"this memory, or {' or '.join(['take a device with more', *ways])}, and --redo-failed"
        )
    smaller, size = fitting
    beside = f" (--gpus-per-cell {smaller.processes})" if smaller.processes > 1 else ""
    return OutOfMemory(f"{told}; {size} would fit: --accumulation {smaller.accumulation}{beside}; {again}")


def _smaller_splits(runtime: Runtime, recipe: Optimisation, group: int) -> Iterator[tuple[Runtime, int]]:
    """The next smaller exact splits of the global batch on the same processes, with their micro-batches."""
    for accumulation in range(runtime.accumulation + 1, recipe.global_batch // runtime.processes + 1):
        smaller = runtime.model_copy(update={"accumulation": accumulation})
        try:
            yield smaller, smaller.micro_batch(recipe.global_batch, group=group)
        except ProtocolViolation:
            continue


def _fits(
    objective: nn.Module,
    make_batch: Callable[[int], Batch],
    images: int,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
) -> bool:
    """Whether two micro-batches pass one after the other, the second beside the first one's gradients."""
    _let_go(runtime)
    weights = [one for group in optimizer.param_groups for one in group["params"]]
    # What a step holds beside: AdamW's moments from the second step on, and what processes send each other.
    copies = (0 if optimizer.state else 2) + (1 if runtime.processes > 1 else 0)
    held = []
    try:
        held = [torch.empty_like(one) for one in weights for _ in range(copies)]
        for _ in range(2):
            forward_and_backward(objective, make_batch(images), runtime)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        held.clear()
        objective.zero_grad(set_to_none=True)
    return True


def _let_go(runtime: Runtime) -> None:
    """Give back what nobody refers to any more."""
    gc.collect(1)
    if runtime.device == "cuda":
        torch.cuda.empty_cache()
