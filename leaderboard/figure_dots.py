"""Accuracy with intervals: one line per row of a table, a dot per seed, their mean, what is reported."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from leaderboard.figure_style import ACCENT, INK, MUTED, RULE, blank, fitted, headed, labelled, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

ROW, HEADING, LINE = 0.265, 0.24, 0.12  # inches: of a row, of a group's name, of a further line of a label
LABEL_SIZE, GROUP_SIZE = 9.0, 8.5
LABEL_CHARACTERS, LABEL_WIDTH = 24, 1.7


@dataclass(frozen=True, kw_only=True)
class DotRow:
    """One row, in per cent. `low` and `high` bound the mean; `is_over_images`: of one seed, by the images.

    `mean` is None where nothing was measured, `reported` where nothing is reported.
    """

    label: str
    group: str
    mean: float | None
    seeds: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    is_over_images: bool = False
    reported: float | None = None


@dataclass(frozen=True, kw_only=True)
class DotPanel:
    title: str
    rows: tuple[DotRow, ...]


def draw_dots(panels: Sequence[DotPanel], *, label: str) -> Drawing:
    """The panels below each other, each with an axis of its own that begins near its lowest value."""
    labels = [(_wrapped(row.label), LABEL_SIZE) for panel in panels for row in panel.rows]
    labels += [(_short(group), GROUP_SIZE) for panel in panels for group in _groups(panel)]
    left = 0.2 + max(text_width(text, size) for text, size in labels)
    drawing, axes = blank(
        [_height(panel) for panel in panels], left=left, titles=[panel.title for panel in panels]
    )
    for place, panel in zip(axes, panels, strict=True):
        _draw_panel(place, panel)
        headed(place, panel.title)
    labelled(axes[-1], x=label)
    return drawing


def has_cut_interval(panel: DotPanel) -> bool:
    """True if some interval is longer than the axis, and so ends in an arrow."""
    left, right = _limits(panel.rows)
    return any(
        row.mean is not None and row.low is not None and row.high is not None
        and (row.low < left or row.high > right)
        for row in panel.rows
    )  # fmt: skip


def _height(panel: DotPanel) -> float:
    lines = sum(map(_further_lines, panel.rows))
    return ROW * len(panel.rows) + HEADING * _headings(panel) + LINE * lines


def _headings(panel: DotPanel) -> int:
    """How many names of groups stand above rows: one for each run of rows, and a group may have several."""
    named = _groups(panel)
    return sum(name in named for name, _ in groupby(row.group for row in panel.rows))


def _further_lines(row: DotRow) -> int:
    """How many lines its label has beyond the first."""
    return len(_wrapped(row.label).splitlines()) - 1


def _groups(panel: DotPanel) -> list[str]:
    """The names that stand above their rows: none where all rows share one."""
    named = [name for name in dict.fromkeys(row.group for row in panel.rows) if name]
    return named if len({row.group for row in panel.rows}) > 1 else []


def _draw_panel(axes: Axes, panel: DotPanel) -> None:
    left, right = _limits(panel.rows)
    headings = _groups(panel)
    height, group, ticks, labels = 0.0, None, [], []
    for row in panel.rows:
        if row.group != group and row.group in headings:
            # On the scale of rows; the name stands over the labels of its rows.
            height += HEADING / ROW
            axes.annotate(
                _short(row.group), xy=(0, height - 0.9), xycoords=("axes fraction", "data"), xytext=(-7, 0),
                textcoords="offset points", ha="right", va="center", color=MUTED, fontsize=GROUP_SIZE,
                style="italic", annotation_clip=False,
            )  # fmt: skip
        group = row.group
        # A label of several lines stands beside the middle of its own room.
        room = LINE / ROW * _further_lines(row)
        height += room / 2
        _draw_row(axes, row, height, left=left, right=right)
        ticks.append(height)
        labels.append(_wrapped(row.label))
        height += 1 + room / 2
    axes.set_yticks(ticks, labels, color=INK, fontsize=LABEL_SIZE)
    # Room for the arrow of an interval that is cut.
    axes.tick_params(axis="y", pad=7)
    axes.set_ylim(height - 0.4, -0.6)
    axes.set_xlim(left, right)


def _draw_row(axes: Axes, row: DotRow, y: float, *, left: float, right: float) -> None:
    axes.axhline(y, color=RULE, linewidth=0.6, zorder=0)
    if row.mean is not None:
        if row.low is not None and row.high is not None:
            style = (0, (2, 1.6)) if row.is_over_images else "-"
            axes.plot([row.low, row.high], [y, y], color=ACCENT, linewidth=1.7, linestyle=style, zorder=2)
            # A wide interval would push all rows together: it is cut, and the cut is shown.
            for beyond, edge, mark in ((row.low < left, left, "<"), (row.high > right, right, ">")):
                if beyond:
                    axes.plot([edge], [y], mark, color=ACCENT, markersize=5, clip_on=False, zorder=3)
        if len(row.seeds) > 1:
            axes.plot(row.seeds, [y + 0.26] * len(row.seeds), "o", color=MUTED, markersize=2.8, zorder=3)
        axes.plot([row.mean], [y], "o", color=ACCENT, markersize=6.2, zorder=4)
    if row.reported is not None:
        axes.plot(
            [row.reported], [y], "D", markerfacecolor="none", markeredgecolor=INK, markersize=6, zorder=5
        )


def _limits(rows: Sequence[DotRow]) -> tuple[float, float]:
    """All dots and marks, and of the intervals as much as leaves the rows apart."""
    points = [value for row in rows for value in (row.mean, row.reported, *row.seeds) if value is not None]
    low, high = min(points), max(points)
    room = max(0.6 * (high - low), 2.0)
    low = max(min([low, *(row.low for row in rows if row.low is not None)]), low - room)
    high = min(max([high, *(row.high for row in rows if row.high is not None)]), high + room)
    margin = 0.05 * max(high - low, 1.0)
    return low - margin, high + margin


def _short(group: str) -> str:
    return fitted(group, GROUP_SIZE, LABEL_WIDTH)


def _wrapped(label: str) -> str:
    return fitted(textwrap.fill(label, LABEL_CHARACTERS), LABEL_SIZE, LABEL_WIDTH)
