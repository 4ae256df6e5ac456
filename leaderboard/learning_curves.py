"""Learning curves: the training loss of every row's pre-training, from the cells' metrics files.

The files stay with the cells; records that were merged come without them, and such rows have no curve.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from leaderboard.figure_curves import MOST_METHODS, Curve, CurvePanel, draw_curves
from leaderboard.figure_style import drawn
from leaderboard.grids import clean, method_name
from leaderboard.row_runs import RowRuns
from leaderboard.runs import RowKey
from leaderboard.sections import Figure, Section
from leaderboard.tables import Board

SECTION_NAME = "learning-curves"
METRICS_NAME = "metrics.jsonl"  # as benchmark/layout.py names it, which this room does not see
MOST_BYTES = 64 * 1024 * 1024
MOST_LINES, MOST_POINTS = 2000, 100
MOST_SEEDS, MOST_FIGURES = 3, 12
NATS = "nats"


def learning_curve_section(board: Board, cells_dir: Path) -> Section | None:
    """A figure per tokenizer and trunk from the files under `cells_dir`; None if there is nothing to draw."""
    runs = RowRuns.of(board)
    groups: dict[tuple[str, str, str], list[RowKey]] = {}
    for key in runs.rows:
        if not key.variant and key in runs.pretrainings:
            groups.setdefault((key.trunk, key.tokenizer, _loss_unit(key, runs)), []).append(key)
    figures: list[Figure] = []
    notes: list[str] = []
    without = more_seeds = more_figures = more_methods = 0
    for (trunk, tokenizer, unit), keys in groups.items():
        if len(figures) == MOST_FIGURES:
            more_figures += 1
            continue
        curves = []
        more_methods += max(0, len(keys) - MOST_METHODS)
        for key in keys[:MOST_METHODS]:
            cells = sorted(runs.pretrainings[key].values(), key=lambda one: (one.seed or 0, one.cell_id))
            more_seeds += max(0, len(cells) - MOST_SEEDS)
            for record in cells[:MOST_SEEDS]:
                points = thinned(read_losses(cells_dir / record.cell_id / METRICS_NAME))
                if len(points) > 1:
                    xs, ys = zip(*points, strict=True)
                    curves.append(Curve(method=key.method, xs=xs, ys=ys, is_thin=True))
                else:
                    without += 1
        if curves:
            figures.append(_figure(curves, trunk=trunk, tokenizer=tokenizer, unit=unit))
    if not figures:
        return None
    if without:
        notes.append(
            f"Pre-trainings without a metrics file that can be read, and so without a line: {without}."
        )
    if more_seeds:
        notes.append(
            f"Pre-trainings of further seeds, of which {MOST_SEEDS} of a row are drawn: {more_seeds}."
        )
    if more_methods:
        notes.append(f"Methods beyond the first {MOST_METHODS} of a figure are not drawn: {more_methods}.")
    if more_figures:
        notes.append(f"{more_figures} more figures of this kind are not drawn.")
    notes.append(
        "Losses of different methods are no measure of one against the other: they predict different "
        "patches from different contexts, and some hold more than that (CAE's its alignment, SplitMask's its "
        "contrast among images, BEiT v2's a second prediction of the same tokens)."
    )
    return Section(name=SECTION_NAME, title="Learning curves", figures=tuple(figures), notes=tuple(notes))


def _loss_unit(key: RowKey, runs: RowRuns) -> str:
    """In what the row's training loss is measured, as its records say: losses of two units share no axis."""
    losses = [record.metrics.get("loss") for record in runs.pretrainings[key].values()]
    return next((loss.unit for loss in losses if loss is not None), NATS)


def read_losses(path: Path) -> list[tuple[float, float]]:
    """(epoch, loss) in the order of steps; of a long file about MOST_LINES. Empty if there is none.

    Lenient: a line that is cut short or says something else is passed over, and of a step that was run
    twice, because training went on from a checkpoint, the later loss counts.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            return []
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    stride = max(1, len(lines) // MOST_LINES)
    found: dict[float, float] = {}
    for line in lines[::stride]:
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if not isinstance(content, dict):
            continue
        epoch, loss = _number(content.get("epoch")), _number(content.get("loss"))
        if epoch is not None and loss is not None:
            found[epoch] = loss
    return sorted(found.items())


def _number(value: object) -> float | None:
    """`value` if it is a finite number: JSON as Python writes it may hold NaN, and a loss may be it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of the neighbours that it stands for."""
    if len(points) <= most:
        return list(points)
    edges = [round(index * len(points) / most) for index in range(most + 1)]
    parts = [points[low:high] for low, high in pairwise(edges)]
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts
    ]  # fmt: skip


def _figure(curves: Sequence[Curve], *, trunk: str, tokenizer: str, unit: str) -> Figure:
    title = ", ".join(clean(one) for one in (trunk, tokenizer or "without a tokenizer"))
    methods = dict.fromkeys(curve.method for curve in curves)
    if len(methods) == 1:  # a figure of one method has no legend
        title += f", {method_name(*methods)}"
    panel = CurvePanel(title=title, curves=tuple(curves))
    of_method: dict[str, list[Curve]] = {}
    for curve in curves:
        of_method.setdefault(curve.method, []).append(curve)
    ends = "; ".join(
        f"{method_name(method)} from {sum(one.ys[0] for one in several) / len(several):.2f} "
        f"to {sum(one.ys[-1] for one in several) / len(several):.2f}"
        for method, several in of_method.items()
    )
    return drawn(
        lambda: draw_curves([panel], x="epoch", y=f"training loss ({clean(unit)})", height=2.1),
        name="-".join(
            ["learning-curves", tokenizer or "no-tokenizer", trunk, *([unit] if unit != NATS else [])]
        ),
        alt=f"Training loss of every method over the epochs of pre-training, {title}: {ends}.",
        caption=(
            f"Training loss of pre-training, {title}: a line for each seed, each point the mean of the steps "
            "around it."
        ),
    )
