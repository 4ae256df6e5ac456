"""Shows tokenising cells: every iteration of k-means, and images read, with their rate and the time left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmark.layout import METRICS_NAME, cell_folder
from benchmark.metrics import read_line
from benchmark.plan import Cell
from benchmark.progress import Bars, Lines, Silent

EVERY_SECONDS = 10.0


def phase_line(cell: Cell, metrics: dict[str, Any]) -> str:
    """One line of a cell's metrics file, as a person reads it."""
    step, steps = metrics["step"], metrics["steps"]
    if "objective" in metrics:
        run, iteration = (f"{metrics[name]} of {metrics[name + 's']}" for name in ("run", "iteration"))
        return f"{cell.row}: k-means run {run}, iteration {iteration}: objective {metrics['objective']:.6g}"
    rate = metrics["images_per_second"]
    left = (steps - step) / rate if rate else 0.0
    counted = f"{step:,} of {steps:,} images"
    return f"{cell.row}: {metrics['phase']}, {counted}, {rate:.0f} images/s, {left:.0f} s left"


class _News:
    """Lines of the metrics files that were written since this began, and not shown yet."""

    def __init__(self, work_dir: Path, protocol: str) -> None:
        self._work_dir, self._protocol = work_dir, protocol
        self._read: dict[str, int] = {}

    def __call__(self, cell: Cell) -> Iterator[dict[str, Any]]:
        """The new lines of `cell`; of an earlier attempt's none."""
        path = cell_folder(self._work_dir, self._protocol, cell.id) / METRICS_NAME
        if not path.is_file():
            self._read.setdefault(cell.id, 0)
            return
        with path.open("rb") as stream:
            stream.seek(self._read.setdefault(cell.id, path.stat().st_size))
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read[cell.id] += len(whole)
        for line in whole.splitlines():
            metrics = read_line(line)
            if metrics is not None and "phase" in metrics:
                yield metrics


class PhaseLines(Lines):
    """For a file or a pipe: a line per iteration, and for images one every ten seconds and at the end."""

    def __init__(self, console: Console, work_dir: Path, protocol: str) -> None:
        super().__init__(console)
        self._news = _News(work_dir, protocol)
        self._said: dict[str, float] = {}

    def running(self, cells: Sequence[Cell], finished: int, total: int) -> None:
        super().running(cells, finished, total)
        for cell in cells:
            self._show(cell)

    def _show(self, cell: Cell) -> None:
        for metrics in self._news(cell):
            is_due = time.monotonic() - self._said.get(cell.id, 0.0) >= EVERY_SECONDS
            if "objective" in metrics or is_due or metrics["step"] == metrics["steps"]:
                self._said[cell.id] = time.monotonic()
                self._console.print(phase_line(cell, metrics), markup=False, highlight=False, soft_wrap=True)


class PhaseBars(Bars):
    """For a terminal: the bars, and above them a line per iteration of k-means."""

    def __init__(self, console: Console, work_dir: Path, protocol: str) -> None:
        super().__init__(console, work_dir, protocol)
        self._news = _News(work_dir, protocol)

    def running(self, cells: Sequence[Cell], finished: int, total: int) -> None:
        super().running(cells, finished, total)
        for cell in cells:
            for metrics in self._news(cell):
                if "objective" in metrics:
                    self._console.print(phase_line(cell, metrics), markup=False, highlight=False)


def choose_phase_display(*, quiet: bool, work_dir: Path, protocol: str) -> Lines:
    """Bars on a terminal, lines in a file or a pipe, nothing when quiet. All of it goes to stderr."""
    console = Console(stderr=True)
    if quiet:
        return Silent(console)
    if console.is_terminal:
        return PhaseBars(console, work_dir, protocol)
    return PhaseLines(console, work_dir, protocol)
