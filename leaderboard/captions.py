"""What the forms of a board share: its titles, and which of its rows stand in which table."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from leaderboard.grids import MISSING, Column, Grid, board_grid, clean, integer, token_grid
from leaderboard.tables import Board, OtherBoard
from leaderboard.view_table import VERDICTS, ViewTable


def caption(board: Board) -> str:
    """The board's title, and the trunk where all its rows share one."""
    trunk = shared_trunk(board)
    return f"{board.title}, {trunk}" if trunk else board.title


def shared_trunk(board: Board) -> str:
    """The trunk of all rows, which then have no column for it; empty if there are several or none."""
    trunks = set(board.rows["trunk"]) if len(board.rows) else set()
    return clean(trunks.pop()) if len(trunks) == 1 else ""


def main_rows(board: Board) -> pd.DataFrame:
    """The rows of the protocol's own setting: those that a view tries stand in the table of the view."""
    return board.rows[board.rows["variant"] == ""] if len(board.rows) else board.rows


def variants_note(board: Board) -> str:
    """Where the rows are that `main_rows` leaves out; empty if it leaves out none."""
    apart = len(board.rows) - len(main_rows(board))
    if not apart:
        return ""
    rows = "1 row" if apart == 1 else f"{apart} rows"
    return f"{rows} of other settings, which views of the protocol try, in their tables and in board.csv."


def other_caption(other: OtherBoard) -> str:
    """Which protocol versions, and which of their slices are not the current ones."""
    versions = ", ".join(map(str, other.versions))
    return f"version {versions}; not as in the current protocol: {', '.join(map(clean, other.differing))}"


def other_grids(other: OtherBoard, board: Board) -> list[Grid]:
    """Its rows of methods and its rows of tokens alone, those that there are."""
    grids = [board_grid(other.rows, board.evaluations)] if len(other.rows) else []
    if len(other.token_rows):
        grids.append(token_grid(other.token_rows, board.token_evaluations))
    return grids


SUMMARY_TITLE = "Tables"
PATTERNS_TITLE = "What each method sees and predicts"


def view_title(name: str, title: str) -> str:
    """A view's title; what stands for a table of the paper says which: `Table 6. Cutting point`."""
    return f"{view_label(name)}. {clean(title)}" if re.fullmatch(r"table\d+", name) else clean(title)


def view_label(name: str) -> str:
    """A view's or a section's name in running text: `Table 6`, `Equal compute`."""
    number = re.fullmatch(r"table(\d+)", name)
    return f"Table {number[1]}" if number else clean(name).replace("-", " ").capitalize()


def tables_grid(tables: Sequence[ViewTable]) -> Grid:
    """One row per view: how many of its places are measured, and how many have which verdict."""
    given = {verdict for table in tables for verdict in table.frame["verdict"]}
    verdicts = [verdict for verdict in VERDICTS if verdict in given]
    names = ("view", "measured", *verdicts)
    columns = tuple(Column(name, is_number=index > 0) for index, name in enumerate(names))
    return Grid(columns, tuple(_counts(table, verdicts) for table in tables))


def _counts(table: ViewTable, verdicts: Sequence[str]) -> tuple[str, ...]:
    ours = table.frame[table.frame["is_ours"].astype(bool)]
    measured = int(ours["mean"].notna().sum())
    given = ours["verdict"].value_counts()
    counts = (int(given.get(verdict, 0)) for verdict in verdicts)
    shown = (integer(count) if count else MISSING for count in counts)
    return (view_title(table.name, table.title), f"{measured} of {len(ours)}", *shown)
