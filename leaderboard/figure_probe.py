"""The board's first figure: linear-probe top-1 per row, one dot per seed, the random trunk as a line."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from leaderboard.figure_style import ACCENT, INK, MUTED, RULE, SETTINGS, svg_of, without_glyph_warnings
from leaderboard.grids import clean, method_label
from leaderboard.lineage import LINEAR_PROBE, SCRATCH
from leaderboard.tables import Board

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

GAP = 0.8
LONGEST_NAME = 40
_NAMES = ["method", "variant", "tokenizer", "trunk"]


def probe_figure(board: Board) -> str | None:
    """An SVG on a transparent ground, the same bytes for the same board; None if no row was probed.

    Grey dots are seeds, the filled dot is their mean, the dashed line is the random trunk's mean.
    """
    probe = next((one.name for one in board.evaluations if one.stage == LINEAR_PROBE), None)
    if probe is None or not len(board.rows):
        return None
    rows = board.rows[board.rows[f"{probe}_top1_percent"].notna()]
    floors = rows[rows["method"] == SCRATCH].set_index("trunk")[f"{probe}_top1_percent"]
    shown = rows[rows["method"] != SCRATCH]
    if not len(shown):
        return None
    runs = board.runs[(board.runs["standing"] == "board") & (board.runs["evaluation"] == probe)]
    # Late: matplotlib takes a second to load.
    import matplotlib

    settings = {**SETTINGS, "font.size": 9.0, "svg.hashsalt": "leaderboard"}
    with matplotlib.rc_context(settings), without_glyph_warnings():
        return svg_of(_draw(shown, floors, runs, f"{probe}_top1_percent"))


def _draw(rows: pd.DataFrame, floors: pd.Series, runs: pd.DataFrame, column: str) -> Drawing:
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(
        figsize=(5.2, 0.75 + 0.27 * (len(rows) + GAP * (rows["trunk"].nunique() - 1))), layout="constrained"
    )
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    trunks = list(rows["trunk"])
    several_trunks = rows["trunk"].nunique() > 1
    # Each trunk begins lower by a line, which the label of its random trunk needs.
    above = list(dict.fromkeys(trunks))
    places = [index + GAP * above.index(trunk) for index, trunk in enumerate(trunks)]
    for place, (_, row) in zip(places, rows.iterrows(), strict=True):
        same = (runs[_NAMES] == row[_NAMES]).all(axis=1)
        seeds = runs[same]["top1_percent"].dropna()
        axes.axhline(place, color=RULE, linewidth=0.6, zorder=0)
        if len(seeds) > 1:
            axes.plot(seeds, [place] * len(seeds), "o", color=MUTED, markersize=3.5, zorder=2)
        axes.plot([row[column]], [place], "o", color=ACCENT, markersize=6.5, zorder=3)
    _draw_floors(axes, dict(zip(places, trunks, strict=True)), floors)
    axes.set_yticks(places, [_label(row, several_trunks) for _, row in rows.iterrows()], color=INK)
    axes.set_ylim(places[-1] + 0.6, -0.95)
    axes.margins(x=0.06)
    axes.set_xlabel("linear probe, top-1 (%)", color=MUTED)
    axes.tick_params(axis="x", colors=MUTED, length=0)
    axes.tick_params(axis="y", length=0)
    axes.set_frame_on(False)
    return figure


def _draw_floors(axes: Axes, trunk_at: Mapping[float, str], floors: pd.Series) -> None:
    for trunk in dict.fromkeys(trunk_at.values()):
        if trunk not in floors.index:
            continue
        floor = float(floors[trunk])
        places = [place for place, name in trunk_at.items() if name == trunk]
        first, last = min(places), max(places)
        axes.plot([floor, floor], [first - 0.45, last + 0.45], "--", color=INK, linewidth=1.0, zorder=1)
        axes.text(
            floor, first - 0.52, f"random trunk {floor:.2f}", color=INK, fontsize=8, ha="center", va="bottom"
        )


def _label(row: pd.Series, several_trunks: bool) -> str:
    names = [method_label(row), row["tokenizer"], *([row["trunk"]] if several_trunks else [])]
    # A method without a tokenizer has an empty one.
    names = [name for name in names if name]
    # A name that is longer than the drawing would leave no room for it.
    return "  ".join(textwrap.shorten(clean(name), LONGEST_NAME, placeholder="\u2026") for name in names)
