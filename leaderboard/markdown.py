"""A board as GitHub-flavoured Markdown; text from records cannot act as markup."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from leaderboard.captions import (
    PATTERNS_TITLE,
    SUMMARY_TITLE,
    caption,
    main_rows,
    other_caption,
    other_grids,
    tables_grid,
    variants_note,
)
from leaderboard.contents import Contents
from leaderboard.export import pattern_name
from leaderboard.grids import (
    Grid,
    board_grid,
    clean,
    failure_grid,
    modified_grid,
    stale_grid,
    token_grid,
    tokenizer_grid,
)
from leaderboard.in_short import TITLE as IN_SHORT_TITLE
from leaderboard.notes import STALE_NOTE, TOKEN_NOTE, TOKEN_TITLE, TOKENIZER_NOTE
from leaderboard.sections import Block, Section
from leaderboard.tables import Board
from leaderboard.validation_view import TITLE as VALIDATION_TITLE
from leaderboard.validation_view import validation_grid, validation_note


def to_markdown(contents: Contents) -> str:
    """The whole board; pictures are named by the files that are written beside it."""
    board = contents.board
    parts = [f"# {_escaped(caption(board))}"]
    rows = main_rows(board)
    if contents.in_short:
        parts += [f"## {IN_SHORT_TITLE}", _bullets([one.text for one in contents.in_short]), "## Leaderboard"]
    if len(rows):
        parts.append(_table(board_grid(rows, board.evaluations)))
    parts.append(_bullets((*board.notes, *filter(None, [variants_note(board)]), *contents.notes)))
    if contents.tables:
        parts += [f"## {SUMMARY_TITLE}", _table(tables_grid(contents.tables))]
    for section in (*contents.table_sections, *contents.sections):
        parts += _section(section)
    if contents.patterns.sheets:
        parts.append(f"## {PATTERNS_TITLE}")
    for sheet in contents.patterns.sheets:
        parts += [_picture(sheet.facts.alt_text, pattern_name(sheet)), _text(sheet.facts.caption)]
    return "\n\n".join([*parts, *_apart(board)]) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"## {_text(section.title)}"
    for alert in section.alerts:
        yield f"**{_text(alert)}**"
    for block in section.blocks:
        yield from _block(block, under=section.title)
    for figure in section.figures:
        # A page may be dark, and the drawing on a transparent ground is for light or dark as its page is.
        yield _picture(figure.alt, f"{figure.name}.png")
        yield _text(figure.caption)
    if section.notes:
        yield _bullets(section.notes)


def _block(block: Block, *, under: str) -> Iterator[str]:
    if block.caption and not under.endswith(block.caption):
        yield f"### {_text(block.caption)}"
    if block.grid.rows:
        yield _table(block.grid, red=block.red)
    if block.notes:
        yield _bullets(block.notes)


def _apart(board: Board) -> Iterator[str]:
    if len(board.token_rows):
        table = _table(token_grid(board.token_rows, board.token_evaluations))
        yield from (f"## {TOKEN_TITLE}", table, _escaped(TOKEN_NOTE))
    if len(board.validations):
        yield from (f"## {VALIDATION_TITLE}", _table(validation_grid(board.validations)))
        yield _escaped(validation_note(board.validations))
    if len(board.tokenizers):
        yield from ("## Tokenizers", _table(tokenizer_grid(board.tokenizers)), _escaped(TOKENIZER_NOTE))
    if len(board.stale):
        yield from ("## Stale", _escaped(STALE_NOTE), _table(stale_grid(board.stale)))
    if len(board.modified):
        yield from ("## Modified, not comparable", _table(modified_grid(board.modified)))
    if board.others:
        yield "## Other protocol versions"
    for other in board.others:
        yield _escaped(other_caption(other))
        yield from map(_table, other_grids(other, board))
    if len(board.failures):
        yield from ("## Failed and skipped cells", _table(failure_grid(board.failures)))
    yield from ("## Environment", _environment(board))


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
        f"- {_text(name)}: {_escaped('; '.join(clean(value) for value in values))}"
        for name, values in facts.items()
        if values
    )


def _picture(alt: str, name: str) -> str:
    return f"![{_text(alt.replace('[', '(').replace(']', ')'))}]({name})"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_text(line)}" for line in lines)


def _table(grid: Grid, *, red: frozenset[tuple[int, int]] = frozenset()) -> str:
    lines = [
        [_escaped(column.name) for column in grid.columns],
        ["--:" if column.is_number else "---" for column in grid.columns],
    ]
    for number, row in enumerate(grid.rows):
        cells = [_escaped(" ".join(cell.split())) for cell in row]
        lines.append([f"**{cell}**" if (number, at) in red else cell for at, cell in enumerate(cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: str) -> str:
    return _escaped(clean(value))


def _escaped(value: str) -> str:
    if value == "-":
        return value
    value = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", value)
