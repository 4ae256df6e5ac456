"""The board as one HTML page that needs nothing else: no network, no other file, text from records escaped.

All of it is there without scripts; those that are inlined add sorting, filtering, rows that open in place
and buttons that copy.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from leaderboard.captions import (
    PATTERNS_TITLE,
    SUMMARY_TITLE,
    main_rows,
    other_caption,
    other_grids,
    shared_trunk,
    tables_grid,
    variants_note,
    view_label,
)
from leaderboard.contents import Contents
from leaderboard.figure_style import inlined, style_variables
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
from leaderboard.page_commands import command
from leaderboard.page_rows import PageTable, Sources, board_details, order_of, page_table
from leaderboard.sections import Figure, Section
from leaderboard.validation_view import TITLE as VALIDATION_TITLE
from leaderboard.validation_view import validation_grid, validation_note
from protocols.errors import shown

_ROOM = Path(__file__).parent
_TEMPLATES = _ROOM / "templates"
_LIBRARY = _ROOM / "vendor" / "datatables" / "dataTables.min.js"


@dataclass(frozen=True, kw_only=True)
class PageSection:
    """A section as the page shows it; `table` is the view that stands in the place of its blocks, if any."""

    section: Section
    table: PageTable | None = None

    @property
    def short(self) -> str:
        """Its name in the list of sections."""
        return view_label(self.section.name)


def to_html(contents: Contents, *, cells_dir: Path, page_dir: Path | None) -> str:
    """The whole page; from `page_dir` it links to the cells' files in `cells_dir`, from None to none."""
    board, protocol = contents.board, contents.protocol
    sources = Sources(board, protocol, cells_dir=cells_dir, page_dir=page_dir, merged=contents.merged)
    rows = main_rows(board)
    tables = {table.name: page_table(table, sources) for table in contents.tables}
    views = [PageSection(section=one, table=tables.pop(one.name, None)) for one in contents.table_sections]
    # A view that no section speaks of is shown all the same.
    views += [
        PageSection(section=Section(name=name, title=table.title), table=table)
        for name, table in tables.items()
    ]
    scripts = [_source(_LIBRARY), _source(_TEMPLATES / "board.js")]
    return (
        _environment()
        .get_template("board.html.j2")
        .render(
            protocol=protocol,
            board=board,
            trunk=shared_trunk(board),
            in_short=contents.in_short,
            in_short_title=IN_SHORT_TITLE,
            table=board_grid(rows, board.evaluations) if len(rows) else None,
            row_details=board_details(board, rows, sources) if len(rows) else [],
            figure=Markup(inlined(contents.figure)) if contents.figure else None,
            notes=[*board.notes, *filter(None, [variants_note(board)]), *contents.notes],
            summary_title=SUMMARY_TITLE,
            summary=tables_grid(contents.tables) if contents.tables else None,
            summary_links=[table.name for table in contents.tables],
            views=views,
            sections=[PageSection(section=section) for section in contents.sections],
            tokens=token_grid(board.token_rows, board.token_evaluations) if len(board.token_rows) else None,
            token_title=TOKEN_TITLE,
            token_note=TOKEN_NOTE,
            tokenizers=tokenizer_grid(board.tokenizers) if len(board.tokenizers) else None,
            tokenizer_note=TOKENIZER_NOTE,
            gallery=contents.gallery,
            patterns=contents.patterns,
            patterns_title=PATTERNS_TITLE,
            validations=validation_grid(board.validations) if len(board.validations) else None,
            validation_title=VALIDATION_TITLE,
            validation_note=validation_note(board.validations),
            stale=stale_grid(board.stale) if len(board.stale) else None,
            stale_note=STALE_NOTE,
            modified=modified_grid(board.modified) if len(board.modified) else None,
            others=[(other_caption(other), other_grids(other, board)) for other in board.others],
            failures=failure_grid(board.failures) if len(board.failures) else None,
            command=command(board, protocol),
            report_command=shlex.join(
                ["python", "run_benchmark.py", "report", "--protocol", protocol.argument]
            ),
            configurations=sources.configurations,
            has_links=page_dir is not None,
            # Ours alone, read from beside this file: nothing of a record is in them.
            style=Markup(_source(_TEMPLATES / "board.css")),
            series=Markup(style_variables(dark=False)),
            dark_series=Markup(style_variables(dark=True)),
            scripts=[Markup(script) for script in scripts],
            script_hashes=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
        )
    )


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_shown,
    )
    environment.filters |= {
        "clean": clean,
        "order": order_of,
        "drawing": _drawing,
        "opens": _is_long,
        "folds": _is_too_long,
        "sentence_and_command": _sentence_and_command,
    }
    return environment


def _shown(value: object) -> object:
    """A text from a record without what would turn the text around it; what is ours alone as it is."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return shown(value)


def _drawing(figure: Figure) -> Markup:
    """Ours alone: matplotlib escapes the names in a drawing, and they are drawn as outlines."""
    return Markup(inlined(figure.svg, name=figure.name, alt=clean(figure.alt)))


def _is_long(grid: Grid) -> bool:
    """True of a table that is worth sorting and filtering."""
    return len(grid.rows) > 5


def _is_too_long(grid: Grid) -> bool:
    """True of a table that would stand between a reader and what follows: it is shown when it is opened."""
    return len(grid.rows) > 12


def _sentence_and_command(note: str) -> tuple[str, str]:
    """A note, apart from the command that it ends with, which is set so that it can be copied."""
    found = re.search(r"python run_benchmark\.py .*$", note)
    return (note[: found.start()].rstrip(), found[0]) if found else (note, "")


@cache
def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    """As a content security policy wants it."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
