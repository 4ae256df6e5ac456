"""The comparisons of all tables as a section: what is told apart, what cannot be, what could have been."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from leaderboard.captions import view_label, view_title
from leaderboard.comparisons import (
    MOST_CHECKPOINT_TESTS,
    ColumnSummary,
    Comparisons,
    shown_p,
)
from leaderboard.grids import MISSING, Column, Grid, clean
from leaderboard.method_tests import METHOD_ALPHA, MIN_SEEDS, MOST_TIE_GROUPS, TOO_FEW
from leaderboard.sections import Block, Section
from leaderboard.statistics import ALPHA

MOST_LINES = 40
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_COLUMN_NAMES = ("column", "rows", "seeds", "told apart", "least (seeds)", "least (images)")
_PAIR_NAMES = ("row less row", "column", "points", "95 % interval", "p (Holm)", "checkpoints")
NOTES = (
    "Told apart: pairs of methods, by Welch's t-test over seeds, the test images held fixed. With fewer than "
    "three seeds of either row nothing is said about them; of rows with unlike numbers of seeds, the first "
    "of the longer one are used. Points: the difference of their means, in "
    "percentage points; the interval is not adjusted.",
    "Checkpoints: in how many of the seeds that both rows have the first's checkpoint is above (+) and below "
    "(-) the second's, over the same test images (McNemar's exact test, of top-1 alone). That says nothing "
    "about other seeds, and so nothing about methods.",
    "Each level is adjusted after Holm over all tests of its table. Methods are told apart by an adjusted p "
    f"below {METHOD_ALPHA:g} and checkpoints by one below {ALPHA:g}. At each level, at most 5 % of tables "
    "in which all are equal tell any two apart.",
    "Least: the smallest difference, in percentage points, that would be found in 4 of 5 studies at Holm's "
    "strictest step: between methods with these seeds and their spread; between checkpoints with these "
    "images and the share of them on which two checkpoints differ. A smaller one may be there and unseen.",
    "Rows stand in the table's order. Those that cannot be told apart are not thereby equal.",
)


def statistics_section(comparisons: Sequence[Comparisons]) -> Section | None:
    """The section "statistics"; None if no table has two measured rows to hold against each other."""
    shown = [one for one in comparisons if len(one.frame) or one.left_out]
    if not shown:
        return None
    blocks = [block for one in shown for block in _blocks(one)]
    return Section(
        name="statistics", title="What the tables' differences mean", blocks=tuple(blocks), notes=NOTES
    )


def sentences(comparisons: Comparisons) -> tuple[str, ...]:
    """What is said of one table: claims, tie groups, and what was not compared."""
    said = [f"{claim}." for claim in comparisons.claims[:MOST_LINES]]
    more = len(comparisons.claims) - len(said)
    said += [f"And {more} more such differences of methods, in statistics-{comparisons.table}.csv."] * (
        more > 0
    )
    for column in comparisons.columns:
        said += [_tie(column.label, group) for group in column.ties]
        if len(column.ties) == MOST_TIE_GROUPS:
            said.append(f"{column.label}: there may be more such groups.")
    counts = {count for column in comparisons.columns if column.rows > 1 for count in column.seeds}
    if counts and min(counts) < MIN_SEEDS:
        rows = "Rows with" if max(counts) >= MIN_SEEDS else "All rows have"
        said.append(f"{rows} {TOO_FEW}.")
    if comparisons.untested:
        said.append(
            f"Checkpoints are not tested here: there would be {comparisons.untested:,} tests, above "
            f"{MOST_CHECKPOINT_TESTS:,}. The command compare tests those of any two rows."
        )
    if comparisons.left_out:
        said.append(
            "Compared with nothing, because it is not proven that all else was equal: "
            f"{'; '.join(comparisons.left_out)}."
        )
    return tuple(said)


def _tie(column: str, group: Sequence[str]) -> str:
    number = _NUMBERS[len(group) - 2] if len(group) - 2 < len(_NUMBERS) else str(len(group))
    return f"{column}: these {number} cannot be told apart: {'; '.join(group)}."


def _blocks(comparisons: Comparisons) -> list[Block]:
    columns = [column for column in comparisons.columns if column.rows]
    blocks = [
        Block(
            name=f"statistics-{comparisons.table}",
            caption=view_title(comparisons.table, comparisons.title),
            grid=Grid(
                tuple(Column(name, is_number=place > 0) for place, name in enumerate(_COLUMN_NAMES)),
                tuple(_column_line(column) for column in columns),
            ),
            frame=comparisons.frame,
            notes=sentences(comparisons),
        )
    ]
    pairs = _told_apart(comparisons.frame)
    if len(pairs):
        blocks.append(
            Block(
                name=f"told-apart-{comparisons.table}",
                caption=_pairs_caption(comparisons.table, len(pairs)),
                grid=Grid(
                    tuple(Column(name, is_number=place > 1) for place, name in enumerate(_PAIR_NAMES)),
                    tuple(_pair_line(pair) for pair in pairs[:MOST_LINES]),
                ),
                frame=pd.DataFrame([asdict(pair) for pair in pairs]),
            )
        )
    return blocks


def _pairs_caption(table: str, pairs: int) -> str:
    told = f"{view_label(table)}: pairs whose methods, or some of whose checkpoints, can be told apart"
    return f"{told} (the first {MOST_LINES} of {pairs:,})" if pairs > MOST_LINES else told


def _column_line(column: ColumnSummary) -> tuple[str, ...]:
    seeds = column.seeds
    return (
        clean(column.label),
        str(column.rows),
        f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}",
        f"{column.told_apart} of {column.tested_pairs}" if column.tested_pairs else MISSING,
        _points(column.smallest_of_methods),
        _points(column.smallest_of_checkpoints),
    )


def _points(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two rows in one column, and what each level says of them. Percentage points; NaN where not tested."""

    table: str
    a: str
    b: str
    column_label: str
    difference: float
    low: float
    high: float
    p_holm: float
    seeds: int
    checkpoints: int = 0
    checkpoints_above: int = 0
    checkpoints_below: int = 0


def _told_apart(frame: pd.DataFrame) -> list[_Pair]:
    """The pairs of which either level tells something, in the order of the table."""
    names = ["column_label", "a", "b"]
    level = np.where(frame["level"] == "methods", METHOD_ALPHA, ALPHA)
    told_of = set(frame.loc[frame["p_holm"] < level, names].itertuples(index=False, name=None))
    is_told = [name in told_of for name in frame[names].itertuples(index=False, name=None)]
    frame = frame[np.array(is_told, dtype=bool)]
    pairs: dict[tuple[str, str, str], _Pair] = {}
    for line in frame[frame["level"] == "methods"].to_dict(orient="records"):
        pair = _Pair(
            seeds=int(line["seeds_or_images"]),
            **{
                name: line[name]
                for name in ("table", "a", "b", "column_label", "difference", "low", "high", "p_holm")
            },
        )
        pairs[pair.column_label, pair.a, pair.b] = pair
    checkpoints = frame[frame["level"] == "checkpoints"]
    for key, lines in checkpoints.groupby(names, sort=False):
        told = lines[lines["p_holm"] < ALPHA]["difference"]
        above, below = int((told > 0).sum()), int((told < 0).sum())
        pairs[key] = replace(
            pairs[key], checkpoints=len(lines), checkpoints_above=above, checkpoints_below=below
        )
    return list(pairs.values())


def _pair_line(pair: _Pair) -> tuple[str, ...]:
    is_tested = not math.isnan(pair.p_holm)
    return (
        f"{clean(pair.a)} less {clean(pair.b)}",
        clean(pair.column_label),
        f"{pair.difference:+.2f}",
        f"{pair.low:+.2f} to {pair.high:+.2f}" if is_tested else MISSING,
        shown_p(pair.p_holm) if is_tested else MISSING,
        f"+{pair.checkpoints_above} -{pair.checkpoints_below} of {pair.checkpoints}"
        if pair.checkpoints
        else MISSING,
    )
