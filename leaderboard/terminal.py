"""A board as text for a terminal: plain ASCII, tables side by side as far as the width allows."""

from __future__ import annotations

import io
import itertools
import re
import shlex
import textwrap
from collections.abc import Iterator, Sequence

import pandas as pd
from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from leaderboard.captions import (
    SUMMARY_TITLE,
    caption,
    main_rows,
    other_caption,
    tables_grid,
    variants_note,
)
from leaderboard.contents import Contents
from leaderboard.grids import (
    ASCII_PLUS_MINUS,
    MISSING,
    PLUS_MINUS,
    Column,
    Grid,
    cell_name,
    clean,
    cost_grid,
    failure_grid,
    integer,
    percent,
    score_grid,
    stale_reason,
    token_grid,
    tokenizer_grid,
)
from leaderboard.imported_view import NAME as IMPORTED
from leaderboard.in_short import TITLE as IN_SHORT_TITLE
from leaderboard.lineage import LINEAR_PROBE
from leaderboard.notes import STALE_NOTE, TOKEN_NOTE, TOKEN_TITLE, TOKENIZER_NOTE
from leaderboard.sections import Block, Section
from leaderboard.tables import Board, Evaluation
from leaderboard.validation_view import TITLE as VALIDATION_TITLE
from leaderboard.validation_view import validation_grid, validation_note

# Under this the numbers of one table no longer fit side by side; a narrower terminal scrolls.
NARROWEST = 72
SCORES_PER_TABLE = 2
TOKENIZERS_PER_TABLE = 4
MOST_REDS = 5
# Columns of text wrap, but not to fewer characters than these.
_NARROWEST_TEXT = 12
_RULED = Box("    \n    \n -- \n    \n -- \n -- \n    \n    \n", ascii=True)


def to_terminal(contents: Contents, *, width: int, full: bool = False) -> str:
    """The board in plain ASCII, as far as `width` characters allow (72 at least).

    Names and reasons wrap, numbers never do; rows of scores and of costs stand in separate tables.
    What the views and the other sections hold is counted, and shown whole if `full`.
    """
    board = contents.board
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=max(width, NARROWEST),
        force_terminal=False,
        color_system=None,
        emoji=False,
        markup=False,
    )
    _heading(console, caption(board))
    rows = main_rows(board)
    if len(rows):
        _by_trunk(console, rows, board.evaluations, with_costs=True)
    for note in (*board.notes, *filter(None, [variants_note(board)]), *contents.notes):
        console.print(Text(clean(note)))
    if contents.tables:
        _heading(console, SUMMARY_TITLE)
        _show(console, tables_grid(contents.tables))
    if contents.in_short:
        _heading(console, IN_SHORT_TITLE)
        for sentence in contents.in_short:
            console.print(Text(_ascii(sentence.text)))
    if full:
        for section in (*contents.table_sections, *contents.sections):
            _section(console, section)
    else:
        _pointers(console, contents)
        for section in contents.sections:
            if section.name == IMPORTED:
                _section(console, section)
    _apart(console, board)
    lines = (line.rstrip() for line in stream.getvalue().splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"


def _pointers(console: Console, contents: Contents) -> None:
    """What is red is said in any case; where the rest stands is said once."""
    sections = (*contents.table_sections, *contents.sections)
    for section in sections:
        for line in _alarms(section):
            console.print(Text(f"!! {_ascii(section.title)}: {line}"))
    if sections:
        protocol = shlex.quote(contents.protocol.argument)
        command = f"python run_benchmark.py report --protocol {protocol} --full"
        named = ", ".join(section.name.replace("-", " ") for section in contents.sections)
        console.print(
            Text(f"Whole on the page, in board.md, and with the command below: the tables, {named}.")
        )
        _unbroken(console, command)


def _alarms(section: Section) -> Iterator[str]:
    """What is red of a section: every alert, and the places as far as they are few."""
    yield from map(_ascii, section.alerts)
    # A view has a block for every column, under whose name the same row may be red again.
    named = len(section.blocks) > 1
    reds = [
        f"{_ascii(block.caption)}: {line}" if named and block.caption else line
        for block in section.blocks
        for line in _reds(block)
    ]
    yield from reds if len(reds) <= MOST_REDS else [f"{len(reds)} places are marked"]


def _reds(block: Block) -> Iterator[str]:
    """The red places of a block, a line each: where, and what stands there."""
    columns = block.grid.columns
    for row, column in sorted(block.red):
        cells = block.grid.rows[row]
        names = [cells[0]]
        for index in range(1, column):
            if columns[index].is_number:
                break
            names.append(cells[index])
        where = ", ".join(name for name in names if name != MISSING)
        yield _ascii(f"{where}, {columns[column].name}: {cells[column]}" if column else cells[0])


def _section(console: Console, section: Section) -> None:
    _heading(console, _ascii(section.title))
    for alert in section.alerts:
        console.print(Text(f"!! {_ascii(alert)}"))
    for block in section.blocks:
        if block.caption and not section.title.endswith(block.caption):
            console.print(Text(_ascii(block.caption)))
        for grid in _fitting(_ascii_grid(block.grid), console.width):
            _show(console, grid)
        for line in _reds(block):
            console.print(Text(f"!! {line}"))
        for note in block.notes:
            console.print(Text(_ascii(note)))
    if section.figures:
        names = ", ".join(f"{figure.name}.svg" for figure in section.figures)
        _unbroken(console, f"drawn in {names}")
    for note in section.notes:
        console.print(Text(_ascii(note)))


def _ascii(value: str) -> str:
    """`value` on one line with what a plain terminal can show; other letters as their escapes."""
    plain = clean(value).replace(PLUS_MINUS, ASCII_PLUS_MINUS).replace("\N{MINUS SIGN}", "-")
    return plain.encode("ascii", "backslashreplace").decode("ascii")


def _ascii_grid(grid: Grid) -> Grid:
    columns = tuple(Column(_ascii(column.name), column.is_number) for column in grid.columns)
    return Grid(columns, tuple(tuple(map(_ascii, row)) for row in grid.rows))


def _fitting(grid: Grid, width: int) -> list[Grid]:
    """`grid` as one table or as several below each other, each beginning with the columns that name a row."""
    leading = next((index for index, one in enumerate(grid.columns) if one.is_number), 1)
    names = list(range(min(leading, len(grid.columns))))
    needed = [_least_width(grid, index) for index in range(len(grid.columns))]
    taken = sum(needed[index] + 1 for index in names)
    tables: list[list[int]] = [[]]
    used = taken
    for index in range(len(names), len(grid.columns)):
        if tables[-1] and used + needed[index] + 1 > width:
            tables.append([])
            used = taken
        tables[-1].append(index)
        used += needed[index] + 1
    return [_chosen(grid, [*names, *part]) for part in tables]


def _least_width(grid: Grid, index: int) -> int:
    """Characters that a column cannot do without: all of a number, a word's worth of a text."""
    column = grid.columns[index]
    cells = [column.name, *(row[index] for row in grid.rows)]
    if column.is_number:
        return max(map(len, cells))
    return min(max(map(len, cells)), _NARROWEST_TEXT)


def _chosen(grid: Grid, indices: Sequence[int]) -> Grid:
    columns = tuple(grid.columns[index] for index in indices)
    return Grid(columns, tuple(tuple(row[index] for index in indices) for row in grid.rows))


def _apart(console: Console, board: Board) -> None:
    """What stands beside the board's rows: tokens, classifiers, stale and failed cells, other versions."""
    if len(board.token_rows):
        _heading(console, TOKEN_TITLE)
        _tokens_alone(console, board.token_rows, board.token_evaluations)
        console.print(Text(TOKEN_NOTE))
    if len(board.validations):
        _heading(console, VALIDATION_TITLE)
        _show(console, validation_grid(board.validations))
        console.print(Text(validation_note(board.validations)))
    if len(board.tokenizers):
        _heading(console, "Tokenizers")
        grid = tokenizer_grid(board.tokenizers)
        for start in range(0, len(grid.rows), TOKENIZERS_PER_TABLE):
            _show(console, _transposed(Grid(grid.columns, grid.rows[start : start + TOKENIZERS_PER_TABLE])))
        console.print(Text(TOKENIZER_NOTE))
    if len(board.stale):
        _heading(console, "Stale")
        console.print(Text(STALE_NOTE))
        _stale_cells(console, board.stale)
    if len(board.modified):
        _heading(console, "Modified, not comparable")
        for _, row in board.modified.iterrows():
            console.print(
                Text(f"{cell_name(row)}, seed {integer(row['seed'])}: top-1 {percent(row['top1_percent'])}")
            )
            _unbroken(console, row["deviations"])
    if board.others:
        _heading(console, "Other protocol versions")
        for other in board.others:
            console.print(Text(other_caption(other)))
            if len(other.rows):
                _by_trunk(console, other.rows, board.evaluations, with_costs=False)
            if len(other.token_rows):
                _tokens_alone(console, other.token_rows, board.token_evaluations)
    if len(board.failures):
        _heading(console, "Failed and skipped cells")
        for status, cell, seed, changed, reason, log in failure_grid(board.failures).rows:
            modified = "" if changed == MISSING else " (modified, not comparable)"
            console.print(Text(f"{status}{modified}: {cell}, seed {seed}: {reason}"))
            if modified:
                _unbroken(console, changed)
            _unbroken(console, log)


def _heading(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title))
    console.print(Text("=" * min(len(title), console.width)))


def _stale_cells(console: Console, frame: pd.DataFrame) -> None:
    """What was measured on one pre-training is stale for one reason, which is said once below all of it."""
    lines = (row for _, row in frame.iterrows())
    for reason, rows in itertools.groupby(lines, key=stale_reason):
        for row in rows:
            seed = "" if pd.isna(row["seed"]) else f", seed {integer(row['seed'])}"
            top1 = "" if pd.isna(row["top1_percent"]) else f": top-1 {percent(row['top1_percent'])}"
            console.print(Text(f"{cell_name(row)}{seed}{top1}"))
        _unbroken(console, reason)


def _unbroken(console: Console, text: str) -> None:
    """Indented below its cell; a setting or a path that is cut in two can be neither read nor copied."""
    for line in textwrap.wrap(clean(text), console.width - 2, break_long_words=False, break_on_hyphens=False):
        console.print(Text(f"  {line}"), no_wrap=True, overflow="ignore", crop=False)


def _by_trunk(
    console: Console, rows: pd.DataFrame, evaluations: Sequence[Evaluation], *, with_costs: bool
) -> None:
    """A trunk to itself: its name as a column would leave too little room for the others at 80."""
    parts = [rows[rows["trunk"] == trunk] for trunk in rows["trunk"].unique()]
    for part in parts:
        if len(parts) > 1:
            console.print(Text(f"{clean(part['trunk'].iloc[0])}:"))
        measured = [one for one in evaluations if one.is_default or part[f"{one.name}_seeds"].any()]
        for chosen in _score_tables(measured):
            _show(console, score_grid(part, chosen, plus_minus=ASCII_PLUS_MINUS))
        if with_costs:
            _show(console, cost_grid(part))


def _tokens_alone(console: Console, rows: pd.DataFrame, evaluations: Sequence[str]) -> None:
    """Two evaluations a table, the figure below the evaluation's name: four columns fit 80 that way."""
    for start in range(0, len(evaluations), SCORES_PER_TABLE):
        chosen = evaluations[start : start + SCORES_PER_TABLE]
        grid = token_grid(rows, chosen, plus_minus=ASCII_PLUS_MINUS)
        columns = (Column(one.name.replace(" top-", "\ntop-"), one.is_number) for one in grid.columns)
        _show(console, Grid(tuple(columns), grid.rows))


def _score_tables(evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """Evaluations side by side as far as 80 columns allow: one probe, with its gain and bound, a table."""
    tables: list[list[Evaluation]] = []
    for evaluation in evaluations:
        is_probe = evaluation.stage == LINEAR_PROBE
        last = tables[-1] if tables else []
        has_probe = any(one.stage == LINEAR_PROBE for one in last)
        if not last or len(last) == SCORES_PER_TABLE or (is_probe and has_probe):
            tables.append([evaluation])
        else:
            last.append(evaluation)
    return tables


def _show(console: Console, grid: Grid) -> None:
    table = Table(box=_RULED, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    for column in grid.columns:
        justify = "right" if column.is_number else "left"
        table.add_column(Text(column.name), justify=justify, no_wrap=column.is_number, overflow="fold")  # type: ignore[arg-type]
    for row in grid.rows:
        table.add_row(*map(Text, row))
    console.print(table)
    console.print()


def _transposed(grid: Grid) -> Grid:
    """One column per row of `grid`: a few tokenizers with many figures fit a terminal better that way."""
    names = tuple(Column(row[0], False) for row in grid.rows)
    rows = tuple(
        (column.name, *(row[index] for row in grid.rows))
        for index, column in enumerate(grid.columns)
        if index
    )
    return Grid((Column(grid.columns[0].name, False), *names), rows)
