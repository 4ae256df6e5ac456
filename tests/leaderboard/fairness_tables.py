"""A plain table of a board's cells, for tests: a column per trunk and evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from leaderboard.runs import Run
from leaderboard.view_table import PLACE_COLUMNS, ViewTable


def table_of(runs: Iterable[Run], *, name: str = "table1", metric: str = "top1_percent") -> ViewTable:
    """The measured runs of `runs`, whatever their standing, as the views would lay them out."""
    measured = [run for run in runs if run.is_evaluation and run.top1_percent is not None]
    rows = list(dict.fromkeys((run.key.tokenizer, run.key.method, run.key.variant) for run in measured))
    columns = list(dict.fromkeys((run.key.trunk, run.evaluation) for run in measured))
    lines: list[dict[str, Any]] = []
    for row, (tokenizer, method, variant) in enumerate(rows):
        for column, (trunk, evaluation) in enumerate(columns):
            here = [
                run for run in measured
                if run.key == (trunk, tokenizer, method, variant) and run.evaluation == evaluation
            ]  # fmt: skip
            label = ", ".join(part for part in (method, variant, tokenizer) if part)
            lines.append(
                dict.fromkeys(PLACE_COLUMNS, "")
                | {"row": row, "column": column, "row_label": label, "column_label": f"{trunk} {evaluation}"}
                | {"method": method, "variant": variant, "tokenizer": tokenizer, "trunk": trunk}
                | {"evaluation": evaluation, "metric": metric, "is_ours": True}
                | {"mean": sum(run.top1_percent or 0 for run in here) / len(here) if here else float("nan")}
                | {"cell_ids": "; ".join(run.record.cell_id for run in here)}
            )
    return ViewTable(
        name=name,
        title="A table",
        row_headers=("row",),
        rows=tuple((", ".join(part for part in row if part),) for row in rows),
        columns=tuple(" ".join(column) for column in columns),
        frame=pd.DataFrame(lines, columns=list(PLACE_COLUMNS)),
    )
