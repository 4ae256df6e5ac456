"""The figures of a board's tables: accuracy with intervals, and the curve of an ablation.

The others stand with what they show: leaderboard/compute.py, learning_curves.py, sensitivity.py. How figures
look and become files is said in leaderboard/figure_style.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from leaderboard.figure_curves import Curve, CurvePanel, draw_curves
from leaderboard.figure_dots import DotPanel, DotRow, draw_dots, has_cut_interval
from leaderboard.figure_probe import probe_figure
from leaderboard.figure_style import ACCENT, INK, MUTED, RULE, drawn, inlined
from leaderboard.grids import EVALUATION_NAMES, MISSING, clean
from leaderboard.row_runs import left_out_note
from leaderboard.sections import Figure
from leaderboard.statistics import INTERVAL, accuracy_interval
from leaderboard.tried import reconstruction_ratio
from leaderboard.view_table import ViewTable
from protocols.schema import Protocol

__all__ = [
    "ACCENT", "INK", "MUTED", "RULE", "inlined", "interval_over_seeds", "probe_figure", "table_figures",
]  # fmt: skip

# More rows than a reader compares by eye; the table has them all.
MOST_ROWS = 60
METRIC_NAMES = {"top1_percent": "top-1", "top5_percent": "top-5"}
UNTOKENISED = "without a tokenizer"
# The ratio follows from the cutting point, which names the row.
_UNSAID_HEADERS = {"tokenizer", "reconstruction ratio"}


def table_figures(
    tables: Sequence[ViewTable],
    protocol: Protocol | None = None,
    *,
    left_out: Collection[tuple[str, int]] = (),
) -> tuple[Figure, ...]:
    """Of each table a figure for every evaluation and metric of which something was measured.

    Trunks are panels. With `protocol`, studies are left out (sections of their own show them), and where a
    table tries several shares of predicted patches a curve over the share follows. What was measured of
    `left_out`, (table, row) of which it is not proven that all else was equal, is not drawn.
    """
    figures: list[Figure] = []
    for table in tables:
        view = protocol.views.get(table.name) if protocol is not None else None
        if (view is not None and view.is_study) or not len(table.frame):
            continue
        unlike = table.frame["row"].isin([row for name, row in left_out if name == table.name])
        # A mark among the others would be read as a comparison.
        frame = table.frame.assign(
            mean=table.frame["mean"].mask(unlike), seed_values=table.frame["seed_values"].mask(unlike, "")
        )
        words = " ".join(left_out_note(clean(str(label)) for label in table.frame[unlike]["row_label"]))
        for (evaluation, metric), sharing in frame.groupby(["evaluation", "metric"], sort=False):
            # A row alone is told by the table.
            if sharing["mean"].notna().any() and len(sharing) > 1:
                here = [_dots_figure(table, sharing, str(evaluation), str(metric))]
                if protocol is not None:
                    here += _share_figure(table, sharing, protocol, str(evaluation), str(metric))
                figures += [replace(one, caption=f"{one.caption} {words}".strip()) for one in here]
    return tuple(figures)


def interval_over_seeds(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % t interval of the mean over seeds; None for fewer than two."""
    if len(values) < 2:
        return None
    series = pd.Series(values)
    return _t_interval(float(series.mean()), float(series.std()) / math.sqrt(len(values)), len(values))


def _t_interval(mean: float, standard_error: float, seeds: int) -> tuple[float, float]:
    from scipy.special import stdtrit

    reach = float(stdtrit(seeds - 1, 0.5 + INTERVAL / 2)) * standard_error
    return mean - reach, mean + reach


def _dots_figure(table: ViewTable, places: pd.DataFrame, evaluation: str, metric: str) -> Figure:
    trunks = list(dict.fromkeys(places["trunk"]))
    panels, left_out = [], 0
    for trunk in trunks:
        shown = places[(places["trunk"] == trunk) & (places["mean"].notna() | places["reported"].notna())]
        if not shown["mean"].notna().any():
            continue
        left_out += max(0, len(shown) - MOST_ROWS)
        rows = _grouped(_dot_row(table, place) for place in shown.head(MOST_ROWS).to_dict("records"))
        panels.append(DotPanel(title=clean(trunk) if len(trunks) > 1 else "", rows=rows))
    name = EVALUATION_NAMES.get(evaluation, clean(evaluation))
    measured = METRIC_NAMES.get(metric, clean(metric))
    label = f"{name}, {measured} (%)"
    caption = f"{clean(table.title)}: {label}. {_caption_of_marks(panels)}"
    caption += f" {left_out} more rows stand in the table alone." if left_out else ""
    return drawn(
        lambda: draw_dots(panels, label=label),
        name=f"{table.name}-{evaluation}-{measured}".replace("_", "-"),
        alt=f"{name}, {measured}, of the rows of {clean(table.title)}: {_in_words(panels)}",
        caption=caption,
    )


def _caption_of_marks(panels: Sequence[DotPanel]) -> str:
    """What the marks stand for, of those that are there."""
    rows = [row for panel in panels for row in panel.rows]
    has_seeds = any(len(row.seeds) > 1 for row in rows)
    intervals = [f"the {INTERVAL:.0%} t interval of the mean over seeds"] if has_seeds else []
    if any(row.is_over_images for row in rows):
        exact = f"{INTERVAL:.0%} interval of the images (exact binomial)"
        intervals.append(f"dashed, of one seed, the {exact}" if has_seeds else f"the {exact}, of one seed")
    parts = [
        "Large dots: means over seeds, small ones below: single seeds." if has_seeds else "Dots: one seed.",
        f"Lines: {'; '.join(intervals)}." if intervals else "",
        "Arrows: a line that goes on beyond the axis." if any(map(has_cut_interval, panels)) else "",
        "Hollow diamonds: as the paper reports it." if any(row.reported is not None for row in rows) else "",
        "The axis begins near the lowest value, not at 0.",
    ]
    return " ".join(part for part in parts if part)


def _in_words(panels: Sequence[DotPanel]) -> str:
    """Every mean, for those who cannot see the dots."""
    return "; ".join(
        ", ".join(part for part in (panel.title, row.group, row.label) if part) + f" {row.mean:.2f}"
        for panel in panels
        for row in panel.rows
        if row.mean is not None
    )


def _dot_row(table: ViewTable, place: Mapping[str, Any]) -> DotRow:
    texts = dict(zip(table.row_headers, table.rows[int(place["row"])], strict=True))
    group = clean(texts.get("tokenizer", ""))
    parts = [
        clean(value) if name == "method" else f"{name} {clean(value)}"
        for name, value in texts.items()
        if name not in _UNSAID_HEADERS and value not in ("", MISSING)
    ]
    low, high, is_over_images = _bounds(place)
    return DotRow(
        # A row of tokens alone has nothing but its tokenizer.
        label=", ".join(parts) or group or clean(str(place["row_label"])),
        group=(UNTOKENISED if group == MISSING else group) if parts else "",
        mean=_known(place["mean"]),
        seeds=seed_values(place["seed_values"]),
        low=low,
        high=high,
        is_over_images=is_over_images,
        reported=_known(place["reported"]),
    )


def _grouped(rows: Iterable[DotRow]) -> tuple[DotRow, ...]:
    """The same rows; of those without a tokenizer the ones above all others need no heading.

    Below, they would pass for rows of the tokenizer whose name stands over them.
    """
    named: list[DotRow] = []
    is_first = True
    for row in rows:
        is_first &= row.group in ("", UNTOKENISED)
        named.append(replace(row, group="") if is_first else row)
    return tuple(named)


def _known(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def seed_values(text: Any) -> tuple[float, ...]:
    """The numbers of a place's `seed_values`: `0: 74.61; 1: 74.48`."""
    if not isinstance(text, str) or not text:
        return ()
    return tuple(float(part.rpartition(":")[2]) for part in text.split(";"))


def _bounds(place: Mapping[str, Any]) -> tuple[float | None, float | None, bool]:
    """Low, high, and whether they are of one seed's images."""
    mean, seeds, images = _known(place["mean"]), _known(place["seeds"]), _known(place["images"])
    error = _known(place["standard_error"])
    if mean is None or not seeds:
        return None, None, False
    if seeds > 1 and error is not None:
        return *_t_interval(mean, error, int(seeds)), False
    if seeds == 1 and images:
        return *accuracy_interval(round(mean / 100 * images), int(images)), True
    return None, None, False


def _share_figure(
    table: ViewTable, places: pd.DataFrame, protocol: Protocol, evaluation: str, metric: str
) -> list[Figure]:
    """Accuracy against the share of patches that are predicted, where one method tries several."""
    panels = []
    of_place = places.groupby(["trunk", "tokenizer"], sort=False)
    for (trunk, tokenizer), sharing in of_place:
        curves = [
            _share_curve(method, rows, protocol, trunk)
            for method, rows in sharing[sharing["is_ours"]].groupby("method", sort=False)
            if method and rows["variant"].nunique() > 1
        ]
        # A single point is no curve.
        curves = [curve for curve in curves if len(curve.xs) > 1]
        if curves:
            title = ", ".join(clean(one) for one in (trunk, tokenizer) if one)
            panels.append(CurvePanel(title=title, curves=tuple(curves)))
    if not panels:
        return []
    measured = METRIC_NAMES.get(metric, clean(metric))
    name = EVALUATION_NAMES.get(evaluation, clean(evaluation))
    words = "; ".join(
        f"{panel.title}, {clean(curve.method)}: "
        + ", ".join(f"{x:.0f} % {y:.2f}" for x, y in zip(curve.xs, curve.ys, strict=True))
        for panel in panels
        for curve in panel.curves
    )
    has_reported = any(curve.reported for panel in panels for curve in panel.curves)
    caption = (
        f"{clean(table.title)}: {name}, {measured}, against the reconstruction ratio, the share of an image "
        "that is predicted. Marks: means over seeds; grey dots: single seeds. Lines up and down: "
        f"{INTERVAL:.0%} t interval over seeds; of one seed the exact binomial interval of the images."
    )
    figure = drawn(
        lambda: draw_curves(panels, x="reconstruction ratio (%)", y=f"{measured} (%)"),
        name=f"{table.name}-{evaluation}-{measured}-curve".replace("_", "-"),
        alt=f"{name}, {measured}, by reconstruction ratio: {words}",
        caption=caption + (" Hollow diamonds: as the paper reports them." if has_reported else ""),
    )
    return [figure]


def _share_curve(method: str, rows: pd.DataFrame, protocol: Protocol, trunk: str) -> Curve:
    points: list[tuple[float, float, float | None, float | None]] = []
    seeds: list[tuple[float, float]] = []
    reported: list[tuple[float, float]] = []
    for place in rows.to_dict("records"):
        ratio = reconstruction_ratio(protocol, method, trunk, str(place["variant"]))
        if ratio is None:
            continue
        x = 100 * ratio
        mean, theirs = _known(place["mean"]), _known(place["reported"])
        if theirs is not None:
            reported.append((x, theirs))
        if mean is not None:
            points.append((x, mean, *_bounds(place)[:2]))
            several = seed_values(place["seed_values"])
            seeds += [(x, value) for value in several if len(several) > 1]
    points.sort(key=lambda point: point[0])
    return Curve(
        method=method,
        xs=tuple(point[0] for point in points),
        ys=tuple(point[1] for point in points),
        lows=tuple(point[2] for point in points),
        highs=tuple(point[3] for point in points),
        points=tuple(seeds),
        reported=tuple(reported),
    )
