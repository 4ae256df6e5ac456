"""A view's table as text: the one data frame behind Markdown, CSV, LaTeX and HTML, and blocks for a board."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import pandas as pd

from leaderboard.grids import ASCII_PLUS_MINUS, MISSING, PLUS_MINUS, Column, Grid, percent, signed
from leaderboard.sections import Block, Section
from leaderboard.view_table import ViewTable

Show = Literal["measured", "reported", "difference", "verdict"]
SHOWS: tuple[Show, ...] = get_args(Show)
# What is stale or modified says so before its number; a number that was not reproduced could be overlooked.
LOUD = "off"
# Of a terminal of 80, with two blanks between columns.
WIDTH, GAP = 80, 2


def wide(table: ViewTable, show: Show, *, plus_minus: str = ASCII_PLUS_MINUS) -> pd.DataFrame:
    """Rows by columns of texts, those that name a row first: what every written form is made from.

    `measured` is mean, standard deviation and number of seeds; what is not measured says why. A dash
    where the table has no such place, or nothing to show there.
    """
    places = _places(table)
    makers = _makers(plus_minus)
    texts = [
        [
            *names,
            *(
                makers[show](places[row, column]) if (row, column) in places else MISSING
                for column in range(len(table.columns))
            ),
        ]
        for row, names in enumerate(table.rows)
    ]
    return pd.DataFrame(texts, columns=[*table.row_headers, *table.columns], dtype="object")


def views_sections(tables: Sequence[ViewTable]) -> tuple[Section, ...]:
    """A section for each table, in blocks that a terminal of 80 columns can show.

    Where something is reported, measured, reported, difference and verdict stand side by side, a block
    for each column; else as many columns as fit stand in one.
    """
    return tuple(
        Section(name=table.name, title=table.title, blocks=tuple(_blocks(table)), notes=table.notes)
        for table in tables
    )


def has_reported(table: ViewTable) -> bool:
    """True if a reported number stands beside some place."""
    return bool(table.frame["reported"].notna().any())


def _makers(plus_minus: str) -> dict[Show, Callable[[dict[str, Any]], str]]:
    return {
        "measured": lambda place: _measured(place, plus_minus),
        "reported": lambda place: _reported(place["reported"]),
        "difference": lambda place: signed(place["difference"]),
        "verdict": lambda place: place["verdict"] or MISSING,
    }


def _places(table: ViewTable) -> dict[tuple[int, int], dict[str, Any]]:
    lines = table.frame.to_dict(orient="records")
    return {(line["row"], line["column"]): line for line in lines}


def _measured(place: dict[str, Any], plus_minus: str) -> str:
    if not pd.isna(place["mean"]):
        spread = "" if pd.isna(place["sd"]) else f" {plus_minus} {percent(place['sd'])}"
        return f"{percent(place['mean'])}{spread} ({place['seeds']})"
    if place["verdict"] in ("stale", "modified"):
        # No mean: what nothing may be compared with shows each seed's own number.
        values = ", ".join(one.partition(": ")[2] for one in place["seed_values"].split("; "))
        return f"{place['verdict']}: {values}"
    return place["verdict"] or MISSING


def _reported(value: float) -> str:
    """One decimal, as the paper prints it."""
    return MISSING if pd.isna(value) else f"{value:.1f}"


def _blocks(table: ViewTable) -> Iterable[Block]:
    shows: tuple[Show, ...] = SHOWS if has_reported(table) else ("measured",)
    frames = {show: wide(table, show, plus_minus=PLUS_MINUS) for show in shows}
    groups = [[index] for index in range(len(table.columns))]
    if len(shows) == 1:
        groups = _packed(wide(table, "measured"), names=len(table.row_headers))
    places = _places(table)
    for number, group in enumerate(groups, start=1):
        labels = [table.columns[index] for index in group]
        is_whole = len(groups) == 1
        columns = [Column(name, False) for name in table.row_headers]
        for label in labels:
            columns += [Column(label if len(shows) == 1 else show, show != "verdict") for show in shows]
        rows: list[tuple[str, ...]] = []
        red: set[tuple[int, int]] = set()
        for row, names in enumerate(table.rows):
            texts = list(names)
            for index in group:
                if places.get((row, index), {}).get("verdict") == LOUD:
                    red.add((row, len(texts) + shows.index("verdict")))
                texts += [str(frames[show].iat[row, len(names) + index]) for show in shows]
            rows.append(tuple(texts))
        yield Block(
            name=table.name if is_whole else f"{table.name}-{number}",
            caption=table.title if is_whole and len(shows) == 1 else ", ".join(labels),
            grid=Grid(tuple(columns), tuple(rows)),
            frame=table.frame[table.frame["column"].isin(group)].reset_index(drop=True),
            red=frozenset(red),
        )


def _packed(frame: pd.DataFrame, *, names: int) -> list[list[int]]:
    """Indices of the columns of numbers, as many side by side as the width allows."""
    widths = [
        max(map(len, [str(frame.columns[index]), *frame.iloc[:, index]])) for index in range(frame.shape[1])
    ]
    used = sum(width + GAP for width in widths[:names])
    groups: list[list[int]] = []
    room = 0
    for index, width in enumerate(widths[names:]):
        if not groups or width + GAP > room:
            groups.append([])
            room = WIDTH - used
        groups[-1].append(index)
        room -= width + GAP
    return groups
