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
    """One run's machine settings. `jobs` cells run side by side, each with `threads` CPU threads."""

    device: Literal["cpu", "cuda"]
    jobs: PositiveInt
    threads: PositiveInt
    workers: NonNegativeInt = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    processes: PositiveInt = 1
    accumulation: PositiveInt = 1
    checkpoint_seconds: NonNegativeFloat = CHECKPOINT_SECONDS

    def recorded(self) -> dict[str, Any]:
        """What the record keeps: everything but how often it was saved."""
        return self.model_dump(mode="json", exclude={"checkpoint_seconds"})

    def micro_batch(self, global_batch: int, *, group: int = 1) -> int:
        """Images per process and accumulation step: whole groups of `group` images.

        ProtocolViolation unless the split is exact.
        """
        parts = self.processes * self.accumulation
        if global_batch % (parts * group):
            groups = f" in whole groups of {group} images" if group > 1 else ""
            most = global_batch // group
            allowed = [str(number) for number in range(1, most + 1) if most % number == 0]
            raise ProtocolViolation(
                f"{self.processes} processes (WORLD_SIZE) x {self.accumulation} steps (--accumulation) "
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
            "threads": max(1, cores // side_by_side) if gpus else 1,
            "workers": workers,
            "precision": precision,
            "processes": processes,
            "accumulation": accumulation,
            "checkpoint_seconds": checkpoint_seconds,
        }
    )


def count_gpus() -> int:
    """CUDA devices that this process may use, asked of the driver without loading torch here."""
    present = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))
