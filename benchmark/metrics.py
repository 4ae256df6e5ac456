"""A cell's metrics file: one JSON object a line, appended while the cell runs, read by who watches."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.layout import METRICS_NAME
from protocols.files import append_line

if TYPE_CHECKING:
    from tokenizers.clustering import FitIteration

TAIL_BYTES = 4096
_OF_FITTING = {"objective", "run", "runs", "iteration", "iterations"}
EVERY_SECONDS = 1.0


class MetricsFile:
    """What the tokenising stage writes: `phase`, `step` of `steps`, `seconds`, what the phase measures."""

    def __init__(self, folder: Path, *, is_writer: bool = True) -> None:
        self._path = folder / METRICS_NAME if is_writer else None

    def images(self, phase: str, *, total: int, processes: int = 1) -> Callable[[int], None]:
        """A counter of this process's images; of `total`, which `processes` share, all did as much as it."""
        started, done, written = time.monotonic(), 0, 0.0

        def count(images: int) -> None:
            nonlocal done, written
            done = min(total, done + processes * images)
            now = time.monotonic()
            if now - written >= EVERY_SECONDS or done == total:
                written, seconds = now, now - started
                rate = done / max(seconds, 1e-9)
                self._write(phase, step=done, steps=total, seconds=seconds, images_per_second=round(rate, 1))

        return count

    def fit(self, iteration: FitIteration) -> None:
        """One iteration of k-means."""
        self._write(
            "k-means",
            step=iteration.restart * iteration.iterations + iteration.iteration,
            steps=iteration.restarts * iteration.iterations,
            seconds=iteration.seconds,
            run=iteration.restart + 1,
            runs=iteration.restarts,
            iteration=iteration.iteration,
            iterations=iteration.iterations,
            objective=iteration.objective,
            imbalance=iteration.imbalance,
        )

    def _write(self, phase: str, **values: float) -> None:
        if self._path is not None:
            values["seconds"] = round(values["seconds"], 3)
            append_line(self._path, json.dumps({"phase": phase, **values}))


def newest_metrics(folder: Path) -> dict[str, Any] | None:
    """The last whole line of a cell's metrics file, None before the first. Damaged ones are passed over."""
    try:
        with (folder / METRICS_NAME).open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - TAIL_BYTES))
            lines = stream.read().split(b"\n")[:-1]
    except (FileNotFoundError, IsADirectoryError):
        return None
    return next((metrics for line in reversed(lines) if (metrics := read_line(line)) is not None), None)


def read_line(line: bytes) -> dict[str, Any] | None:
    """What a line of a metrics file says; None for one that was cut short, or damaged otherwise."""
    try:
        metrics = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(metrics, dict) or not isinstance(metrics.get("phase", ""), str):
        return None
    needed = {"step", "steps", "seconds"} | (_OF_FITTING if "objective" in metrics else {"images_per_second"})
    if "phase" not in metrics:
        needed |= {"loss"}
    return metrics if all(is_number(metrics.get(name)) for name in needed) else None


def is_number(value: object) -> bool:
    """True for a number that is finite, and that whatever reads these files can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
