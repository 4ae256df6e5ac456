"""The board's section of imported weights: its words and its table."""

from __future__ import annotations

from typing import Any

import pandas as pd

from leaderboard.grids import EVALUATION_NAMES, PLUS_MINUS, Column, Grid, clean, integer, percent, text
from leaderboard.sections import Block, Section

NAME, TITLE = "imported", "Imported weights"
_NOTES = (
    "Weights of files, evaluated as the protocol evaluates every row. Their pre-training is not this "
    "protocol's, so they stand on no row of the board, have no rank, and are compared with none.",
    "A file is known by its SHA-256; its name is what whoever imported it called it. Top-1 is in per cent, "
    "with the standard deviation over seeds, which are seeds of the evaluation alone: the weights are the "
    "same.",
)


def imported_section(frame: pd.DataFrame) -> Section | None:
    """What the board shows of them; None where there are none."""
    if not len(frame):
        return None
    deviations = dict.fromkeys(
        f"{clean(row['label'])}: {clean(row['deviations'])}."
        for _, row in frame.iterrows()
        if row["deviations"]
    )
    block = Block(
        name=NAME,
        caption="One row for each file and evaluation",
        grid=imported_grid(frame),
        frame=frame,
    )
    return Section(name=NAME, title=TITLE, blocks=(block,), notes=(*_NOTES, *deviations))


def imported_grid(frame: pd.DataFrame) -> Grid:
    """Label, trunk, evaluation, what was measured, and which file it was."""
    columns = (Column("imported", False), Column("trunk", False), Column("evaluation", False),
               Column("seeds", True), Column("top-1", True), Column("images", True),
               Column("SHA-256", False))  # fmt: skip
    rows = tuple(
        (
            _named(row),
            text(row["trunk"]),
            text(EVALUATION_NAMES.get(row["evaluation"], row["evaluation"])),
            integer(row["seeds"]),
            percent(row["top1_percent"])
            + ("" if pd.isna(row["top1_sd"]) else f" {PLUS_MINUS} {percent(row['top1_sd'])}"),
            integer(row["images"]),
            text(str(row["sha256"])[:12]),
        )
        for _, row in frame.iterrows()
    )
    return Grid(columns=columns, rows=rows)


def _named(row: Any) -> str:
    if not row["differing_slices"]:
        return text(row["label"])
    return clean(f"{row['label']} (not as in the current protocol: {row['differing_slices']})")
