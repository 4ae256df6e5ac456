"""The cells of a board by the row that they belong to: what was measured of it, what it was trained in.

Cells that stand on the board alone: what is stale, modified or of another version is in none of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from leaderboard.grids import clean
from leaderboard.record import Record
from leaderboard.runs import RowKey
from leaderboard.tables import Board
from leaderboard.view_table import ViewTable


@dataclass(frozen=True, kw_only=True)
class RowRuns:
    """`scores` maps a row and an evaluation to top-1 by seed; `pretrainings` a row to its done cells."""

    scores: dict[tuple[RowKey, str], dict[int | None, float]] = field(default_factory=dict)
    evaluations: dict[RowKey, list[Record]] = field(default_factory=dict)
    pretrainings: dict[RowKey, dict[str, Record]] = field(default_factory=dict)
    tokenisings: dict[RowKey, dict[str, Record]] = field(default_factory=dict)

    @classmethod
    def of(cls, board: Board, *, without: Collection[RowKey] = ()) -> RowRuns:
        """Those of `board`, rows in its order; none of the rows `without`."""
        found = cls()
        for run in board.cells:
            if run.standing != "board" or run.is_of_tokens or run.record.status != "done":
                continue
            if run.key in without:
                continue
            found.evaluations.setdefault(run.key, [])
            for record, kept in ((run.pretraining, found.pretrainings), (run.tokenising, found.tokenisings)):
                if record is not None and record.status == "done":
                    kept.setdefault(run.key, {})[record.cell_id] = record
            if run.is_evaluation:
                found.evaluations[run.key].append(run.record)
                if run.top1_percent is not None:
                    found.scores.setdefault((run.key, run.evaluation), {})[run.record.seed] = run.top1_percent
        return found

    @property
    def rows(self) -> tuple[RowKey, ...]:
        """All rows, in the board's order."""
        return tuple(self.evaluations)

    def tops(self, key: RowKey, evaluation: str) -> tuple[float, ...]:
        """Top-1 of each seed, in per cent."""
        return tuple(self.scores.get((key, evaluation), {}).values())

    def mean(self, key: RowKey, evaluation: str) -> float | None:
        """Mean top-1 over seeds, None if nothing was measured."""
        return mean_of(self.tops(key, evaluation))

    def flops(self, key: RowKey) -> float | None:
        """Training FLOPs of one pre-training, None if none is done."""
        return mean_of([record.cost.train_flops for record in self.pretrainings.get(key, {}).values()])


def left_out_rows(tables: Iterable[ViewTable], left_out: Collection[tuple[str, int]]) -> dict[RowKey, str]:
    """The rows that are left out of some table, and how a reader knows them.

    `left_out` is what `leaderboard.fairness.left_out` says of the tables.
    """
    found: dict[RowKey, str] = {}
    for table in tables:
        rows = [row for name, row in left_out if name == table.name]
        if not rows:
            continue
        for place in table.frame[table.frame["row"].isin(rows)].itertuples(index=False):
            key = RowKey(
                trunk=place.trunk, tokenizer=place.tokenizer, method=place.method, variant=place.variant
            )
            found.setdefault(key, clean(str(place.row_label)))
    return found


def left_out_note(rows: Iterable[str]) -> tuple[str, ...]:
    """That these are in no comparison; nothing if there are none."""
    names = list(dict.fromkeys(rows))
    return (f"Left out, for the reasons that stand under fairness: {'; '.join(names)}.",) if names else ()


def mean_of(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return sum(values) / len(values) if values else None
