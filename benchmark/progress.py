"""Shows running cells: live bars on a terminal, one line per finished cell elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from benchmark.layout import cell_folder
from benchmark.metrics import newest_metrics
from benchmark.plan import Cell
from leaderboard.record import Record


def describe_end(cell: Cell, record: Record) -> str:
    """One line for a cell that ended: what, how, how long."""
    name = f"{cell.evaluation or cell.stage} {cell.row}"
    if record.status != "done":
        first = (record.error or "").splitlines()[:1]
        return f"{record.status:7} {name}: {first[0] if first else ''}"
    shown = {"top1_percent": "top-1 {:.1f} %", "loss": "loss {:.3f}", "perplexity": "perplexity {:.0f}"}
    metrics = [text.format(record.metrics[key].value) for key, text in shown.items() if key in record.metrics]
    return f"done    {name}: {', '.join(metrics)} ({record.cost.wall_seconds:.0f} s)"


def _numbers(metrics: Mapping[str, Any]) -> str:
    """What a bar says of its cell: the loss or the phase, images/s, and the seconds left."""
    what = f"loss {metrics['loss']:.3f}" if "loss" in metrics else str(metrics["phase"])
    if "objective" in metrics:
        return f"{what} objective {metrics['objective']:.4g}"
    left = (metrics["steps"] - metrics["step"]) * metrics["seconds"] / max(1, metrics["step"])
    return f"{what} {_short(metrics['images_per_second'])} img/s {_short(left)} s"


def _short(value: float) -> str:
    """At most five characters, so that a bar fits a terminal."""
    return f"{value:.0f}" if value < 10_000 else f"{value / 1000:.0f}k"


class Lines:
    """One line per finished cell; nothing while they run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._finished = self._total = 0
        self._width = 1

    def running(self, cells: Sequence[Cell], finished: int, total: int) -> None:
        self._width = len(str(total))
        self._total = total
        self._finished = finished

    def ended(self, cell: Cell, record: Record) -> None:
        self._finished += 1
        count = f"[{self._finished:>{self._width}}/{self._total}]"
        self._console.print(
            f"{count} {describe_end(cell, record)}", markup=False, highlight=False, soft_wrap=True
        )

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Silent(Lines):
    """Says nothing."""

    def ended(self, cell: Cell, record: Record) -> None:
        return None


class Bars(Lines):
    """A bar for every running cell, with loss, images/s and time left, above them the finished ones."""

    def __init__(self, console: Console, work_dir: Path, protocol: str) -> None:
        super().__init__(console)
        self._work_dir, self._protocol = work_dir, protocol
        self._progress = Progress(
            # Names give way first: the numbers are what a person looks for at 80 columns.
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._all = self._progress.add_task("all", total=None, numbers="")

    def running(self, cells: Sequence[Cell], finished: int, total: int) -> None:
        super().running(cells, finished, total)
        self._progress.update(
            self._all, total=total, completed=finished, numbers=f"{finished} of {total} cells"
        )
        for gone in set(self._tasks) - {cell.id for cell in cells}:
            self._progress.remove_task(self._tasks.pop(gone))
        for cell in cells:
            if cell.id not in self._tasks:
                name = f"{cell.evaluation or cell.stage} {cell.row}"
                self._tasks[cell.id] = self._progress.add_task(name, total=None, numbers="")
            metrics = newest_metrics(cell_folder(self._work_dir, self._protocol, cell.id))
            if metrics is not None:
                self._progress.update(
                    self._tasks[cell.id],
                    total=metrics["steps"],
                    completed=metrics["step"],
                    numbers=_numbers(metrics),
                )

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def choose_display(*, quiet: bool, work_dir: Path, protocol: str) -> Lines:
    """Bars on a terminal, lines in a file or a pipe, nothing when quiet. All of it goes to stderr."""
    console = Console(stderr=True)
    if quiet:
        return Silent(console)
    return Bars(console, work_dir, protocol) if console.is_terminal else Lines(console)
