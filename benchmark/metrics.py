"""A cell's metrics file: one JSON object a line, appended while the cell runs, read by who watches."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.layout import METRICS_NAME

if TYPE_CHECKING:
    from tokenizers.clustering import FitIteration

TAIL_BYTES = 4096
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
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"phase": phase, **values}) + "\n")


def newest_metrics(folder: Path) -> dict[str, Any] | None:
    """The last whole line of a cell's metrics file, None before the first."""
    try:
        with (folder / METRICS_NAME).open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - TAIL_BYTES))
            lines = stream.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    if not lines:
        return None
    try:
        newest: dict[str, Any] = json.loads(lines[-1])
    except json.JSONDecodeError:  # a line that a full disk cut short; the next one will be whole
        return None
    return newest
