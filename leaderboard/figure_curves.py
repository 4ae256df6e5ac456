"""Lines of accuracy or loss, a line per method: ablations, sensitivity, learning curves; and a scatter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from leaderboard.figure_style import INK, KEY_COLUMNS, MUTED, blank, headed, keyed, labelled, look_of, ruled
from leaderboard.grids import method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

PANEL, LEFT = 1.7, 0.62  # inches: of a panel, for its labels
# More cannot be told apart, nor named above the figure.
MOST_METHODS = 12


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line: a method's, or one seed's of it. `points` are the single seeds behind `ys`, (x, y).

    `lows` and `highs` bound `ys`, where there are intervals. `reported` marks stand beside, (x, y).
    """

    method: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    lows: tuple[float | None, ...] = ()
    highs: tuple[float | None, ...] = ()
    points: tuple[tuple[float, float], ...] = ()
    reported: tuple[tuple[float, float], ...] = ()
    is_thin: bool = False


@dataclass(frozen=True, kw_only=True)
class CurvePanel:
    """`own` is where the protocol's own setting lies on the x axis, if one value serves all curves."""

    title: str
    curves: tuple[Curve, ...]
    own: float | None = None


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One row of a scatter; `is_hollow`: trained for other epochs than the protocol's.

    A row without tokens (`has_tokens`) stands in the panel of every tokenizer.
    """

    method: str
    x: float
    y: float
    lowest: float
    highest: float
    is_hollow: bool
    has_tokens: bool = True


@dataclass(frozen=True, kw_only=True)
class ScatterPanel:
    """`front` are the corners of the Pareto line, left to right; `floor` is the row without pre-training."""

    title: str
    spots: tuple[Spot, ...]
    front: tuple[tuple[float, float], ...]
    floor: float | None = None


def draw_curves(
    panels: Sequence[CurvePanel], *, x: str, y: str, is_log: bool = False, height: float = PANEL
) -> Drawing:
    """The panels below each other; the x axis of all is `x`."""
    methods = list(dict.fromkeys(curve.method for panel in panels for curve in panel.curves))
    drawing, axes = _blank(panels, methods, height)
    for place, panel in zip(axes, panels, strict=True):
        ruled(place)
        if is_log:
            _log_ticks(place, sorted({value for curve in panel.curves for value in curve.xs}))
        for curve in panel.curves:
            _draw_curve(place, _dodged(curve, panel, methods, is_log=is_log), methods)
        if panel.own is not None:
            place.axvline(panel.own, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
        headed(place, panel.title)
        labelled(place, y=y, left=LEFT)
        place.locator_params(axis="y", nbins=5)
    labelled(axes[-1], x=x)
    _key(drawing, methods, is_line=True)
    return drawing


def draw_scatter(panels: Sequence[ScatterPanel], *, x: str, y: str) -> Drawing:
    """Accuracy against compute: panels below each other, x logarithmic."""
    methods = list(dict.fromkeys(spot.method for panel in panels for spot in panel.spots))
    drawing, axes = _blank(panels, methods, PANEL)
    for place, panel in zip(axes, panels, strict=True):
        ruled(place)
        place.set_xscale("log")
        _flop_ticks(place, [spot.x for spot in panel.spots])
        if len(panel.front) > 1:
            xs, ys = zip(*panel.front, strict=True)
            place.plot(xs, ys, color=MUTED, linewidth=1.1, zorder=2)
        for spot in panel.spots:
            look = look_of(spot.method, methods)
            if spot.highest > spot.lowest:
                place.plot(
                    [spot.x] * 2, [spot.lowest, spot.highest], color=look.colour, linewidth=1, zorder=3
                )
            fill = "none" if spot.is_hollow else look.colour
            place.plot(
                [spot.x], [spot.y], look.marker, markerfacecolor=fill, markeredgecolor=look.colour,
                markeredgewidth=1.3, markersize=6.5, zorder=4,
            )  # fmt: skip
        place.margins(x=0.08, y=0.1)
        place.locator_params(axis="y", nbins=5)
        _draw_floor(place, panel)
        headed(place, panel.title)
        labelled(place, y=y, left=LEFT)
    labelled(axes[-1], x=x)
    _key(drawing, methods, is_line=False)
    return drawing


def _draw_floor(axes: Axes, panel: ScatterPanel) -> None:
    """A line, or where that would press all rows together, a word that it lies below."""
    if panel.floor is None:
        return
    scores = [spot.y for spot in panel.spots]
    if panel.floor >= min(scores) - (max(scores) - min(scores)):
        axes.axhline(panel.floor, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        return
    axes.text(
        0.99, 0.02, f"without pre-training, below: {panel.floor:.2f}", transform=axes.transAxes,
        ha="right", va="bottom", color=MUTED, fontsize=8,
    )  # fmt: skip


def _dodged(curve: Curve, panel: CurvePanel, methods: Sequence[str], *, is_log: bool) -> Curve:
    """Moved aside a little by method, so that intervals at one x do not cover each other."""
    xs = [x for one in panel.curves for x in one.xs]
    if curve.is_thin or len(panel.curves) < 2 or min(xs) == max(xs):
        return curve
    step = (methods.index(curve.method) - (len(methods) - 1) / 2) * 0.014

    def moved(x: float) -> float:
        return x * (max(xs) / min(xs)) ** step if is_log else x + step * (max(xs) - min(xs))

    return replace(
        curve,
        xs=tuple(map(moved, curve.xs)),
        points=tuple((moved(x), y) for x, y in curve.points),
        reported=tuple((moved(x), y) for x, y in curve.reported),
    )


def _draw_curve(axes: Axes, curve: Curve, methods: Sequence[str]) -> None:
    look = look_of(curve.method, methods)
    if curve.is_thin:
        axes.plot(curve.xs, curve.ys, color=look.colour, linestyle=look.line, linewidth=1, zorder=3)
        # A mark now and then: lines that cross are told apart by it.
        step = max(1, len(curve.xs) // 6)
        offset = methods.index(curve.method) % step
        axes.plot(
            curve.xs[offset::step], curve.ys[offset::step], look.marker, color=look.colour, markersize=4
        )
        return
    axes.plot(
        curve.xs, curve.ys, marker=look.marker, color=look.colour, linestyle=look.line, linewidth=1.3,
        markersize=5.5, zorder=4,
    )  # fmt: skip
    for x, low, high in zip(curve.xs, curve.lows, curve.highs, strict=False):
        if low is not None and high is not None:
            axes.plot([x, x], [low, high], color=look.colour, linewidth=1, zorder=3)
    if curve.points:
        xs, ys = zip(*curve.points, strict=True)
        axes.plot(xs, ys, "o", color=MUTED, markersize=2.6, zorder=3)
    if curve.reported:
        xs, ys = zip(*curve.reported, strict=True)
        axes.plot(xs, ys, "D", markerfacecolor="none", markeredgecolor=INK, markersize=6, zorder=5)


def _blank(
    panels: Sequence[CurvePanel] | Sequence[ScatterPanel], methods: Sequence[str], height: float
) -> tuple[Drawing, list[Axes]]:
    lines = math.ceil(len(methods) / KEY_COLUMNS) if len(methods) > 1 else 0
    titles = [panel.title for panel in panels]
    return blank([height] * len(panels), left=LEFT, key_lines=lines, titles=titles)


def _key(drawing: Drawing, methods: Sequence[str], *, is_line: bool) -> None:
    if len(methods) < 2:
        return
    from matplotlib.lines import Line2D

    entries: list[tuple[Any, str]] = []
    for method in methods:
        look = look_of(method, methods)
        handle = Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.line, markersize=5.5)
        if not is_line:
            handle.set_linestyle("none")
        entries.append((handle, method_name(method)))
    keyed(drawing, entries)


def _log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """The values that were tried, and no others: there are few."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.xaxis.set_minor_locator(NullLocator())


def _flop_ticks(axes: Axes, values: Sequence[float]) -> None:
    """At most four round numbers within the data: rows often differ by less than a power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = min(values), max(values)
    many = high / low > 20
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if many else (1.0, 2.0, 3.0, 5.0, 7.0), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _scientific(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    if high / low < 1.5:
        axes.set_xlim(low / 1.6, high * 1.6)


def _scientific(value: float) -> str:
    digits, exponent = f"{value:.0e}".split("e")
    return f"{digits}e{int(exponent)}"
