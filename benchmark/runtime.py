"""How and where things run: recorded with every result, never hashed, never part of a protocol."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from protocols.errors import HarnessError, ProtocolViolation
from protocols.frozen import Frozen, NonNegativeFloat, NonNegativeInt, PositiveInt

# Training is saved this often, or as rarely as keeps saving under 2 % of the time (engine.py).
CHECKPOINT_SECONDS = 20.0


class Runtime(Frozen):
    """One run's machine settings, or those of one of its cells.

    `jobs` slots hold a process each, with `threads` CPU threads and, where there are GPUs, one of them. A
    cell takes `processes` slots, as many as `gpus_per_cell` says or as it needs. `images` says how
    pre-training reads pixels: from packed images, from the data set's files, or packed if there are any.
    `compile` and `activation_checkpointing` are what benchmark/step_choices.py does.
    """

    device: Literal["cpu", "cuda"]
    jobs: PositiveInt
    threads: PositiveInt
    workers: NonNegativeInt = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    processes: PositiveInt = 1
    accumulation: PositiveInt = 1
    checkpoint_seconds: NonNegativeFloat = CHECKPOINT_SECONDS
    images: Literal["auto", "packed", "files"] = "auto"
    gpus_per_cell: PositiveInt | None = None
    compile: bool = False
    activation_checkpointing: bool = False

    def recorded(self) -> dict[str, Any]:
        """What the record keeps: everything but how often it was saved, and what `processes` says better."""
        return self.model_dump(mode="json", exclude={"checkpoint_seconds", "gpus_per_cell"})

    def micro_batch(self, global_batch: int, *, group: int = 1) -> int:
        """Images per process and accumulation step: whole groups of `group` images.

        ProtocolViolation unless the split is exact.
        """
        if global_batch % group:
            raise ProtocolViolation(
                f"the protocol's global batch of {global_batch} images cannot be cut into groups of {group}, "
                "which no split may part; choose a group that divides it"
            )
        parts = self.processes * self.accumulation
        if global_batch % (parts * group):
            groups = f" in whole groups of {group} images" if group > 1 else ""
            most = global_batch // group
            allowed = [str(number) for number in range(1, most + 1) if most % number == 0]
            raise ProtocolViolation(
                f"{self.processes} processes (--gpus-per-cell) x {self.accumulation} steps (--accumulation) "
                f"cannot give the protocol's global batch of {global_batch} exactly{groups}; their product "
                f"must be one of {', '.join(allowed)}"
            )
        return global_batch // parts


def detect_runtime(
    *,
    device: str = "auto",
    workers: int = 0,
    precision: str = "fp32",
    jobs: int | None = None,
    processes: int = 1,
    accumulation: int = 1,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    images: str = "auto",
    gpus_per_cell: int | None = None,
    threads: int | None = None,
    compile: bool = False,
    activation_checkpointing: bool = False,
) -> Runtime:
    """The runtime for this machine. `device` auto takes GPUs where there are any.

    On a CPU each cell gets one thread: two processes of one thread beat one of two at these sizes.
    Raises HarnessError where the device that was asked for is missing.
    """
    gpus = count_gpus() if device != "cpu" else 0
    if device == "cuda" and not gpus:
        raise HarnessError("--device cuda: no CUDA device is visible; use --device cpu or auto")
    cores = len(os.sched_getaffinity(0))
    side_by_side = jobs or gpus or cores
    return Runtime.model_validate(
        {
            "device": "cuda" if gpus else "cpu",
            "jobs": side_by_side,
            "threads": threads or (max(1, cores // side_by_side) if gpus else 1),
            "workers": workers,
            "precision": precision,
            "processes": processes,
            "accumulation": accumulation,
            "checkpoint_seconds": checkpoint_seconds,
            "images": images,
            "gpus_per_cell": gpus_per_cell,
            "compile": compile,
            "activation_checkpointing": activation_checkpointing,
        }
    )


def visible_gpus() -> tuple[str, ...]:
    """Names of the CUDA devices that this process may use, asked of the driver without loading torch here."""
    present = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(map(str, range(present)))
    return tuple(name for name in map(str.strip, visible.split(",")) if name not in ("", "-1"))[:present]


def count_gpus() -> int:
    """How many of them there are."""
    return len(visible_gpus())
