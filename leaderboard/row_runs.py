"""The cells of a board by the row that they belong to: what was measured of it, what it was trained in.

Cells that stand on the board alone: what is stale, modified or of another version is in none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from leaderboard.record import Record
from leaderboard.runs import RowKey
from leaderboard.tables import Board


@dataclass(frozen=True, kw_only=True)
class RowRuns:
    """`scores` maps a row and an evaluation to top-1 by seed; `pretrainings` a row to its done cells."""

    scores: dict[tuple[RowKey, str], dict[int | None, float]] = field(default_factory=dict)
    evaluations: dict[RowKey, list[Record]] = field(default_factory=dict)
    pretrainings: dict[RowKey, dict[str, Record]] = field(default_factory=dict)
    tokenisings: dict[RowKey, dict[str, Record]] = field(default_factory=dict)

    @classmethod
    def of(cls, board: Board) -> RowRuns:
        """Those of `board`, rows in its order."""
        found = cls()
        for run in board.cells:
            if run.standing != "board" or run.is_of_tokens or run.record.status != "done":
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


def mean_of(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return sum(values) / len(values) if values else None
