"""One table of a protocol's views: every place that it has, what was measured there, and what is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

# One line per place, in reading order (row, then column).
PLACE_COLUMNS = (
    "row", "column",                    # 0, 1, 2, ...: where the place stands in the table
    "row_label", "column_label",        # as a reader sees them: "MaPeT, k-CLIP", "ViT-T linear probe"
    "method", "variant", "tokenizer", "trunk", "evaluation", "metric",
    "is_ours",                          # False for what another work reports of its own
    "mean", "sd", "standard_error",     # measured: per cent; NaN where there are too few seeds
    "seeds", "images",
    "reported", "difference",           # per cent, percentage points
    "verdict",                          # one of VERDICTS, or empty: measured, nothing reported; or not ours
    "seed_values",                      # "0: 74.61; 1: 74.48"
    "cell_ids",                         # of the evaluations behind `mean`, in order of seeds, "; " between
    "command",                          # fills the place, or makes it again; empty for what others report
)  # fmt: skip
VERDICTS = ("reproduced", "off", "missing", "modified", "stale")


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewTable:
    """`frame` has PLACE_COLUMNS, one line per place.

    `row_headers` name the columns that name a row ("method", "tokenizer", "cutting point"), and `rows` hold
    their texts, one tuple per row; `columns` are the labels of the columns of numbers.
    """

    name: str
    title: str
    row_headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()

    def place(self, row: int, column: int) -> pd.Series:
        """The line of one place. Raises KeyError for a place that the table does not have."""
        found = self.frame[(self.frame["row"] == row) & (self.frame["column"] == column)]
        if len(found) != 1:
            raise KeyError((row, column))
        return found.iloc[0]

    def measured_rows(self, column: int) -> Sequence[int]:
        """The rows of which something was measured in `column`, top down."""
        here = self.frame[(self.frame["column"] == column) & self.frame["mean"].notna()]
        return [int(row) for row in here["row"]]
