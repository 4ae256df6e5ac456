"""Costs of steps as a probe of a GPU would have found them, for tests that need no GPU."""

from __future__ import annotations

from collections.abc import Iterable

from benchmark.plan import Cell
from benchmark.step_costs import Machine, StepCost, StepCosts, Timing, step_name, step_shape
from protocols.frozen import digest_of
from protocols.schema import Protocol

GB = 10**9
GPU = Machine(
    device="cuda", name="Test GPU", precision="bf16", torch="1.0", threads=None, memory_bytes=80 * GB
)


def step_cost(
    cell: Cell,
    protocol: Protocol,
    *,
    fixed: int = 2 * GB,
    per_image: int = GB // 10,
    gradients: int = GB // 2,
    bound: int | None = None,
) -> StepCost:
    """Of `cell`: 64 images in 0.1 s, 256 in 0.34 s, update 0.02 s, and memory as it is given."""
    shape = step_shape(cell, protocol)
    timings = tuple(
        Timing(images=images, seconds=seconds, peak_bytes=fixed + per_image * images)
        for images, seconds in ((64, 0.1), (256, 0.34))
    )
    return StepCost(
        shape=digest_of(shape),
        step=step_name(cell),
        timings=() if bound == 1 else timings,
        update_seconds=0.02,
        gradient_bytes=gradients,
        out_of_memory_at=bound,
    )


def costs_of(costs: Iterable[StepCost], machine: Machine = GPU) -> StepCosts:
    """All of them on one machine."""
    return StepCosts(machine=machine, costs={cost.shape: cost for cost in costs})
