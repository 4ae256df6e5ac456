"""A board as text for a terminal, as Markdown, as CSV and as JSON, all from the same frames."""

from __future__ import annotations

import io
import itertools
import json
import re
import textwrap
from collections.abc import Sequence

import pandas as pd
from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from leaderboard.grids import (
    ASCII_PLUS_MINUS,
    MISSING,
    Column,
    Grid,
    board_grid,
    cell_name,
    clean,
    cost_grid,
    failure_grid,
    integer,
    modified_grid,
    percent,
    score_grid,
    stale_grid,
    stale_reason,
    token_grid,
    tokenizer_grid,
)
from leaderboard.lineage import LINEAR_PROBE
from leaderboard.notes import STALE_NOTE, TOKEN_NOTE, TOKEN_TITLE, TOKENIZER_NOTE
from leaderboard.tables import Board, Evaluation, OtherBoard
from leaderboard.validation_view import CSV_NAME as VALIDATIONS_NAME
from leaderboard.validation_view import TITLE as VALIDATION_TITLE
from leaderboard.validation_view import validation_grid, validation_note

# Under this the numbers of one table no longer fit side by side; a narrower terminal scrolls.
NARROWEST = 72
TOKENS_NAME, TOKENIZERS_NAME = "tokens.csv", "tokenizers.csv"
SCORES_PER_TABLE = 2
TOKENIZERS_PER_TABLE = 4
_RULED = Box("    \n    \n -- \n    \n -- \n -- \n    \n    \n", ascii=True)


def caption(board: Board) -> str:
    """The board's title, and the trunk where all its rows share one."""
    trunk = shared_trunk(board)
    return f"{board.title}, {trunk}" if trunk else board.title


def shared_trunk(board: Board) -> str:
    """The trunk of all rows, which then have no column for it; empty if there are several or none."""
    trunks = set(board.rows["trunk"]) if len(board.rows) else set()
    return clean(trunks.pop()) if len(trunks) == 1 else ""


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


def to_terminal(board: Board, *, width: int) -> str:
    """The board in plain ASCII, tables side by side as far as `width` characters allow (72 at least).

    Names and reasons wrap, numbers never do; rows of scores and of costs stand in separate tables.
    """
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
    if len(board.rows):
        _by_trunk(console, board.rows, board.evaluations, with_costs=True)
    for note in board.notes:
        console.print(Text(clean(note)))
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
    lines = (line.rstrip() for line in stream.getvalue().splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"


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


def to_markdown(board: Board) -> str:
    """The board as GitHub-flavoured Markdown; text from records cannot act as markup."""
    parts = [f"# {_escaped(caption(board))}"]
    if len(board.rows):
        parts.append(_markdown_table(board_grid(board.rows, board.evaluations)))
    parts.append("\n".join(f"- {_escaped(clean(note))}" for note in board.notes))
    if len(board.token_rows):
        table = _markdown_table(token_grid(board.token_rows, board.token_evaluations))
        parts += [f"## {TOKEN_TITLE}", table, _escaped(TOKEN_NOTE)]
    if len(board.validations):
        table = _markdown_table(validation_grid(board.validations))
        parts += [f"## {VALIDATION_TITLE}", table, _escaped(validation_note(board.validations))]
    if len(board.tokenizers):
        parts += [
            "## Tokenizers",
            _markdown_table(tokenizer_grid(board.tokenizers)),
            _escaped(TOKENIZER_NOTE),
        ]
    if len(board.stale):
        parts += ["## Stale", _escaped(STALE_NOTE), _markdown_table(stale_grid(board.stale))]
    if len(board.modified):
        parts += ["## Modified, not comparable", _markdown_table(modified_grid(board.modified))]
    if board.others:
        parts.append("## Other protocol versions")
    for other in board.others:
        parts.append(_escaped(other_caption(other)))
        parts += [_markdown_table(grid) for grid in other_grids(other, board)]
    if len(board.failures):
        parts += ["## Failed and skipped cells", _markdown_table(failure_grid(board.failures))]
    parts += ["## Environment", _environment(board)]
    return "\n\n".join(parts) + "\n"


def _environment(board: Board) -> str:
    """Date, commits, machines and versions behind the records, several where they differ."""
    made = board.provenance
    facts = {
        "newest record": (made.newest,) if made.newest else (),
        "git commit": made.commits,
        "device": made.devices,
        **made.environment,
    }
    return "\n".join(
        f"- {_escaped(clean(name))}: {_escaped('; '.join(clean(value) for value in values))}"
        for name, values in facts.items()
        if values
    )


def _markdown_table(grid: Grid) -> str:
    lines = [
        [_escaped(column.name) for column in grid.columns],
        ["--:" if column.is_number else "---" for column in grid.columns],
        *([_escaped(cell) for cell in row] for row in grid.rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(value: str) -> str:
    if value == "-":
        return value
    value = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", value)


def to_csv(board: Board) -> dict[str, str]:
    """File name -> text of `board.csv` (a line per row) and `runs.csv` (a line per evaluation cell).

    And, where there are any, `tokenizers.csv` (a line per token store, with its card), `tokens.csv` (a
    line per tokenizer whose tokens were classified alone) and `published.csv` (a line per classifier that
    was only measured). Raw numbers, an empty field where one is missing; texts that a spreadsheet would run
    are quoted.
    """
    files = {"board.csv": _csv(board.rows), "runs.csv": _csv(board.runs)}
    files |= {TOKENIZERS_NAME: _csv(board.tokenizers)} if len(board.tokenizers) else {}
    files |= {VALIDATIONS_NAME: _csv(board.validations)} if len(board.validations) else {}
    return files | ({TOKENS_NAME: _csv(board.token_rows)} if len(board.token_rows) else {})


def _csv(frame: pd.DataFrame) -> str:
    if not len(frame.columns):
        return ""
    safe = frame.copy()
    for column in safe.columns:
        if safe[column].dtype == object:
            safe[column] = safe[column].map(_inert)
    return safe.to_csv(index=False, lineterminator="\n")


def _inert(value: object) -> object:
    """A leading apostrophe makes a spreadsheet take the text for text, not for a formula to run."""
    if not isinstance(value, str):
        return value
    # Some spreadsheets skip blanks, tabs and line ends before they look for the sign.
    return f"'{value}" if value.lstrip().startswith(("=", "+", "-", "@")) else value


def to_json(board: Board) -> str:
    """Rows, runs, tokenizers, stale cells and failures as one JSON object; null where a number is missing."""

    def lines(frame: pd.DataFrame) -> list[dict[str, object]]:
        plain = frame.astype(object).where(frame.notna(), None)
        return [
            {str(name): value for name, value in line.items()} for line in plain.to_dict(orient="records")
        ]

    content = {
        "title": board.title,
        "notes": list(board.notes),
        "rows": lines(board.rows),
        "token_rows": lines(board.token_rows),
        "runs": lines(board.runs),
        "tokenizers": lines(board.tokenizers),
        "published_classifiers": lines(board.validations),
        "stale": lines(board.stale),
        "other_versions": [
            {
                "versions": list(other.versions),
                "differing_slices": list(other.differing),
                "rows": lines(other.rows),
                "token_rows": lines(other.token_rows),
            }
            for other in board.others
        ],
        "failures": lines(board.failures),
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
