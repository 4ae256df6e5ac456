"""Every two measured rows of a table held against each other, column by column, at two levels kept apart.

*These methods*: Welch's t-test over seeds (`method_tests.py`). *These checkpoints*: seed against the same
seed, McNemar's exact test and the paired bootstrap over test images (`checkpoint_tests.py`). Each level is
one family of tests per table, all columns (and seeds) together, adjusted after Holm. Images of several
seeds are never pooled: they are the same images, and the seeds' answers to them are no further evidence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leaderboard.checkpoint_tests import checkpoint_test, only_right, smallest_checkpoint_difference
from leaderboard.method_tests import (
    METHOD_ALPHA,
    MIN_SEEDS,
    TOO_FEW,
    Seeds,
    compare_methods,
    smallest_method_difference,
    tie_groups,
)
from leaderboard.predictions import Predictions, PredictionsLoader, paired_correct
from leaderboard.runs import Run
from leaderboard.statistics import ALPHA, holm
from leaderboard.view_table import ViewTable

# One line per test; checkpoints have one for each seed that both rows have.
COMPARISON_COLUMNS = (
    "table", "column_label", "a", "b",
    "level",                            # "methods" or "checkpoints"
    "seed",                             # of checkpoints; NA of methods
    "difference", "low", "high",        # a - b and its 95 % interval, percentage points
    "p", "p_holm",
    "seeds_or_images",                  # methods: seeds of the row that has fewer; checkpoints: images
    "claim",                            # a sentence where it is told apart; why nothing is said; or empty
)  # fmt: skip
# A table of more has no tests of checkpoints: `compare` makes them for any two of its rows.
MOST_CHECKPOINT_TESTS = 1_000
TOP1 = "top1_percent"


@dataclass(frozen=True, kw_only=True)
class ColumnSummary:
    """What can be told of one column of a table.

    `ties` are the largest sets of rows of which no two are told apart. The smallest differences, in
    percentage points, are those found with 80 % power at Holm's strictest step: of methods with the fewest
    seeds that suffice and the pooled spread of the column, of checkpoints with the share of images on which
    two of the column differ. None where it cannot be said, or no difference would be found.
    """

    label: str
    rows: int
    seeds: tuple[int, ...]
    tested_pairs: int
    told_apart: int
    ties: tuple[tuple[str, ...], ...]
    smallest_of_methods: float | None = None
    checkpoint_tests: int = 0
    smallest_of_checkpoints: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparisons:
    """All tests of one table: `frame` has COMPARISON_COLUMNS. `left_out` are labels of rows not compared.

    `untested` counts the tests of checkpoints that were not made because they are too many.
    """

    table: str
    title: str
    frame: pd.DataFrame
    columns: tuple[ColumnSummary, ...]
    left_out: tuple[str, ...]
    untested: int

    @property
    def claims(self) -> tuple[str, ...]:
        """The sentences about methods that the tests support, in the order of the table."""
        ours = self.frame[(self.frame["level"] == "methods") & (self.frame["p_holm"] < METHOD_ALPHA)]
        return tuple(ours["claim"])


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One row of a column: its label, what it measured over seeds, and the run of each seed."""

    label: str
    seeds: Seeds
    runs: Mapping[int, Run]


class CorrectImages:
    """Which test images a run had right, in one order for all runs of an evaluation. Each is read once."""

    def __init__(self, predictions: PredictionsLoader) -> None:
        self._load = predictions
        self._references: dict[str, tuple[Predictions, NDArray[np.intp]]] = {}
        self._packed: dict[str, tuple[NDArray[np.uint8], int] | None] = {}

    def of(self, run: Run) -> NDArray[np.bool_] | None:
        """(images,) booleans; None if the run kept no predictions.

        Raises HarnessError if the predictions are damaged, or if another run of the evaluation was
        measured on other images.
        """
        cell_id = run.record.cell_id
        if cell_id not in self._packed:
            correct = self._read(run)
            self._packed[cell_id] = None if correct is None else (np.packbits(correct), correct.size)
        kept = self._packed[cell_id]
        return None if kept is None else np.unpackbits(kept[0], count=kept[1]).astype(bool)

    def _read(self, run: Run) -> NDArray[np.bool_] | None:
        mine = self._load(run.record)
        if mine is None:
            return None
        if run.evaluation not in self._references:
            self._references[run.evaluation] = (mine, np.argsort(mine.image_ids, kind="stable"))
        reference, order = self._references[run.evaluation]
        # Runs of one harness have their images in one order, and sorting tens of thousands takes long.
        if np.array_equal(mine.image_ids, reference.image_ids) and np.array_equal(
            mine.labels, reference.labels
        ):
            return (mine.predicted == mine.labels)[order]
        return paired_correct(reference, mine)[1]


def compare_table(
    table: ViewTable,
    runs: Sequence[Run],
    predictions: PredictionsLoader,
    *,
    left_out: Collection[tuple[str, int]] = (),
) -> Comparisons:
    """The comparisons of one table: see `compare_tables`."""
    return compare_tables([table], runs, predictions, left_out=left_out)[0]


def compare_tables(
    tables: Sequence[ViewTable],
    runs: Sequence[Run],
    predictions: PredictionsLoader,
    *,
    left_out: Collection[tuple[str, int]] = (),
) -> tuple[Comparisons, ...]:
    """All pairs of measured rows of each table. `runs` are the board's, behind the tables' `cell_ids`.

    `left_out` are (table, row) of which it is not proven that all else was equal: they are compared with
    nothing. Raises HarnessError for damaged predictions, or rows measured on different images.
    """
    by_cell = {run.record.cell_id: run for run in runs}
    images = CorrectImages(predictions)
    return tuple(_compared(table, by_cell, images, frozenset(left_out)) for table in tables)


def measured_seeds(place: Mapping[str, Any], by_cell: Mapping[str, Run]) -> dict[int, Run]:
    """The runs behind a place of a table, by seed; empty if one of them does not stand on the board."""
    if not place["is_ours"] or pd.isna(place["mean"]):
        return {}
    runs = [by_cell[cell_id] for cell_id in str(place["cell_ids"]).split("; ") if cell_id]
    if any(run.standing != "board" or run.record.seed is None for run in runs):
        return {}
    return {int(run.record.seed): run for run in runs if run.record.seed is not None}


def seeds_of(runs: Mapping[int, Run], metric: str) -> Seeds:
    """What `runs`, by seed, measured."""
    found = [runs[seed].record.metrics[metric] for seed in sorted(runs)]
    return Seeds(values=tuple(one.value for one in found), images=min(one.n for one in found))


def _compared(
    table: ViewTable, by_cell: Mapping[str, Run], images: CorrectImages, left_out: Collection[tuple[str, int]]
) -> Comparisons:
    columns: dict[int, tuple[str, str, list[_Row]]] = {}
    excluded: dict[int, str] = {}
    for place in table.frame.to_dict(orient="records"):
        _, _, rows = columns.setdefault(
            int(place["column"]), (str(place["column_label"]), str(place["metric"]), [])
        )
        runs = measured_seeds(place, by_cell)
        if not runs:
            continue
        if (table.name, int(place["row"])) in left_out:
            excluded[int(place["row"])] = str(place["row_label"])
            continue
        rows.append(
            _Row(label=str(place["row_label"]), seeds=seeds_of(runs, str(place["metric"])), runs=runs)
        )
    compared = [(label, metric, rows) for _, (label, metric, rows) in sorted(columns.items())]
    methods = [_method_lines(rows) for _, _, rows in compared]
    wanted = sum(_common_seeds(rows) for _, metric, rows in compared if metric == TOP1)
    is_too_much = wanted > MOST_CHECKPOINT_TESTS
    checkpoints = [
        _checkpoint_lines(rows, images) if metric == TOP1 and not is_too_much else []
        for _, metric, rows in compared
    ]
    # Each level is a family of its own, over all columns.
    families = [
        frame for lines in (methods, checkpoints) if len(frame := _adjusted(lines, table.name, compared))
    ]
    empty = pd.DataFrame(columns=[*COMPARISON_COLUMNS, "column", "row_a", "row_b", "unlike"])
    frame = pd.concat(families, ignore_index=True) if families else empty
    tests = {level: int(lines["p"].notna().sum()) for level, lines in frame.groupby("level")}
    return Comparisons(
        table=table.name,
        title=table.title,
        frame=frame[list(COMPARISON_COLUMNS)],
        columns=tuple(
            _summary(label, rows, frame[frame["column"] == column], tests)
            for column, (label, _, rows) in enumerate(compared)
        ),
        left_out=tuple(excluded[row] for row in sorted(excluded)),
        untested=wanted if is_too_much else 0,
    )


def _common_seeds(rows: Sequence[_Row]) -> int:
    return sum(len(a.runs.keys() & b.runs.keys()) for a, b in combinations(rows, 2))


def _method_lines(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    pairs = list(combinations(range(len(rows)), 2))
    if not pairs:
        return []
    tests = compare_methods([row.seeds for row in rows], pairs)
    return [
        {
            "row_a": a, "row_b": b, "level": "methods", "seed": None,
            "difference": float(tests.difference[place]), "low": float(tests.low[place]),
            "high": float(tests.high[place]), "p": float(tests.p[place]),
            "seeds_or_images": min(len(rows[a].seeds.values), len(rows[b].seeds.values)),
            "unlike": float("nan"),
        }
        for place, (a, b) in enumerate(pairs)
    ]  # fmt: skip


def _checkpoint_lines(rows: Sequence[_Row], images: CorrectImages) -> list[dict[str, Any]]:
    lines: dict[tuple[int, int, int], dict[str, Any]] = {}
    for seed in sorted({seed for row in rows for seed in row.runs}):
        here = [(place, row.runs[seed]) for place, row in enumerate(rows) if seed in row.runs]
        if len(here) < 2:
            continue
        read = [(place, correct) for place, run in here if (correct := images.of(run)) is not None]
        if len(read) < 2:
            continue
        correct_RI = np.stack([correct for _, correct in read])
        counts_RR = only_right(correct_RI)
        for i, j in combinations(range(len(read)), 2):
            a, b = read[i][0], read[j][0]
            test = checkpoint_test(int(counts_RR[i, j]), int(counts_RR[j, i]), correct_RI.shape[1])
            lines[a, b, seed] = {
                "row_a": a, "row_b": b, "level": "checkpoints", "seed": seed,
                "difference": test.difference, "low": test.low, "high": test.high, "p": test.p,
                "seeds_or_images": test.images, "unlike": (test.only_a + test.only_b) / test.images,
            }  # fmt: skip
    return [lines[key] for key in sorted(lines)]


def _adjusted(
    lines: Sequence[Sequence[Mapping[str, Any]]],
    table: str,
    compared: Sequence[tuple[str, str, Sequence[_Row]]],
) -> pd.DataFrame:
    """One level's lines, column by column, of a whole table, with Holm's adjusted p and what may be said."""
    frame = pd.DataFrame(
        [
            {
                **line, "table": table, "column": column, "column_label": label,
                "a": rows[line["row_a"]].label, "b": rows[line["row_b"]].label,
            }
            for column, (label, _, rows) in enumerate(compared)
            for line in lines[column]
        ]
    )  # fmt: skip
    if not len(frame):
        return frame
    frame["seed"] = frame["seed"].astype("Int64")
    frame["p_holm"] = holm(frame["p"])
    is_of_methods = frame["level"] == "methods"
    frame["claim"] = np.where(is_of_methods & (frame["seeds_or_images"] < MIN_SEEDS), TOO_FEW, "")
    told = frame["p_holm"] < np.where(is_of_methods, METHOD_ALPHA, ALPHA)
    # Few of thousands.
    frame.loc[told, "claim"] = [_claim(line) for line in frame[told].to_dict(orient="records")]
    return frame


def _claim(line: Mapping[str, Any]) -> str:
    return claim_sentence(
        level=line["level"],
        a=line["a"],
        b=line["b"],
        column=line["column_label"],
        difference=line["difference"],
        low=line["low"],
        high=line["high"],
        p_holm=line["p_holm"],
        seeds_or_images=line["seeds_or_images"],
        seed=None if line["level"] == "methods" else int(line["seed"]),
    )


def claim_sentence(
    *,
    level: Literal["methods", "checkpoints"],
    a: str,
    b: str,
    column: str,
    difference: float,
    low: float,
    high: float,
    p_holm: float,
    seeds_or_images: int,
    seed: int | None,
) -> str:
    """What one significant difference says, of its own level alone."""
    if difference < 0:
        a, b, difference, low, high = b, a, -difference, -high, -low
    bounds = f"95 % interval {low:.2f} to {high:.2f}"
    p = shown_p(p_holm)
    if level == "methods":
        found = f"by {difference:.2f} points ({bounds}; {seeds_or_images} seeds; Holm-adjusted p {p})"
        return f"{column}: {a} is above {b} {found}"
    found = f"by {difference:.2f} points ({bounds}; {seeds_or_images:,} images; Holm-adjusted p {p})"
    return f"{column}, seed {seed}: this checkpoint of {a} is above that of {b} {found}"


def shown_p(p: float) -> str:
    """Three digits; what is smaller is said to be."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _summary(
    label: str, rows: Sequence[_Row], frame: pd.DataFrame, tests: Mapping[str, int]
) -> ColumnSummary:
    """What `frame`, the column's tests, tells; `tests` counts those of the whole table, by level."""
    of_methods = frame[(frame["level"] == "methods") & frame["p"].notna()]
    of_checkpoints = frame[frame["level"] == "checkpoints"]
    told = of_methods[of_methods["p_holm"] < METHOD_ALPHA]
    enough = [place for place, row in enumerate(rows) if row.seeds.are_enough]
    ties = tie_groups(enough, set(zip(told["row_a"], told["row_b"], strict=True)))
    smallest_of_methods = smallest_of_checkpoints = None
    if len(of_methods):
        seeds = [rows[place].seeds for place in enough]
        smallest_of_methods = smallest_method_difference(
            float(np.sqrt(np.mean([one.sd**2 for one in seeds]))),
            seeds=min(len(one.values) for one in seeds),
            alpha=METHOD_ALPHA / tests["methods"],
        )
    if len(of_checkpoints):
        smallest_of_checkpoints = smallest_checkpoint_difference(
            int(of_checkpoints["seeds_or_images"].min()),
            share_unlike=float(of_checkpoints["unlike"].mean()),
            alpha=ALPHA / tests["checkpoints"],
        )
    return ColumnSummary(
        label=label,
        rows=len(rows),
        seeds=tuple(sorted({len(row.seeds.values) for row in rows})),
        tested_pairs=len(of_methods),
        told_apart=len(told),
        ties=tuple(tuple(rows[one].label for one in group) for group in ties),
        smallest_of_methods=smallest_of_methods,
        checkpoint_tests=len(of_checkpoints),
        smallest_of_checkpoints=smallest_of_checkpoints,
    )
