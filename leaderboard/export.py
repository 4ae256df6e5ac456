"""A board for other programs: CSV files, one JSON object, and the drawings as files."""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections.abc import Iterable

import pandas as pd

from leaderboard.contents import Contents
from leaderboard.latex import view_latex
from leaderboard.pattern_sheets import PatternSheet
from leaderboard.sections import Figure, Section
from leaderboard.tables import Board
from leaderboard.validation_view import CSV_NAME as VALIDATIONS_NAME
from leaderboard.view_table import ViewTable

TOKENS_NAME, TOKENIZERS_NAME = "tokens.csv", "tokenizers.csv"


_SIGNS = ("=", "+", "-", "@")
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def to_csv(contents: Contents) -> dict[str, str]:
    """File name -> text of `board.csv` (a line per row) and `runs.csv` (a line per evaluation cell).

    And, where there are any, `tokenizers.csv` (a line per token store, with its card), `tokens.csv` (a
    line per tokenizer whose tokens were classified alone), `published.csv` (a line per classifier that
    was only measured), a file per view of the protocol (a line per place of its table) and one per table
    of the other sections. Raw numbers, an empty field where one is missing; texts that a spreadsheet would
    run are quoted.
    """
    board = contents.board
    files = {"board.csv": _csv(board.rows), "runs.csv": _csv(board.runs)}
    files |= {TOKENIZERS_NAME: _csv(board.tokenizers)} if len(board.tokenizers) else {}
    files |= {VALIDATIONS_NAME: _csv(board.validations)} if len(board.validations) else {}
    files |= {TOKENS_NAME: _csv(board.token_rows)} if len(board.token_rows) else {}
    for table in contents.tables:
        files[f"{table.name}.csv"] = _csv(table.frame)
    for section in (*contents.table_sections, *contents.sections):
        for block in section.blocks:
            # What a table's own file holds already is not written once more under the same name.
            files.setdefault(f"{block.name}.csv", _csv(block.frame))
    return files


def to_latex(contents: Contents) -> dict[str, str]:
    """File name -> text: a booktabs table for every view."""
    return {f"{table.name}.tex": view_latex(table) for table in contents.tables}


def drawings(contents: Contents) -> dict[str, str | bytes]:
    """File name -> content: every figure as SVG and as PNG, and the pictures of patterns."""
    files: dict[str, str | bytes] = {}
    for figure in figures(contents):
        files[f"{figure.name}.svg"] = figure.svg
        files[f"{figure.name}.png"] = figure.png
    for sheet in contents.patterns.sheets:
        files[pattern_name(sheet)] = base64.b64decode(sheet.source.partition(",")[2])
    return files


def pattern_name(sheet: PatternSheet) -> str:
    """The file of a picture of patterns beside the board."""
    return f"patterns-{sheet.facts.kind}.png"


def figures(contents: Contents) -> Iterable[Figure]:
    """Every figure of the sections, in their order."""
    for section in (*contents.table_sections, *contents.sections):
        yield from section.figures


def _csv(frame: pd.DataFrame) -> str:
    if not len(frame.columns):
        return ""
    safe = frame.copy()
    for column in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[column]):
            safe[column] = safe[column].map(_inert)
    return safe.to_csv(index=False, lineterminator="\n")


def _inert(value: object) -> object:
    """A leading apostrophe makes a spreadsheet take the text for text, not for a formula to run."""
    if not isinstance(value, str):
        return value
    # What a terminal would act on goes, and with it what could stand unseen before a sign.
    text = "".join(one for one in value if one in "\n\t" or unicodedata.category(one) not in _UNSEEN)
    # Some spreadsheets skip blanks, tabs and line ends before they look for the sign; some take wide ones.
    return f"'{text}" if unicodedata.normalize("NFKC", text).lstrip().startswith(_SIGNS) else text


def to_json(contents: Contents) -> str:
    """All that the page shows but drawings, as one JSON object; null where a number is missing."""
    content = {
        **_board(contents.board),
        "protocol": {
            "name": contents.protocol.name,
            "version": contents.protocol.version,
            "digest": contents.protocol.digest,
        },
        "in_short": [sentence.text for sentence in contents.in_short],
        "views": [_view(table) for table in contents.tables],
        "sections": [_section(section) for section in (*contents.table_sections, *contents.sections)],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return re.sub(r"[^\x20-\x7e\n]", _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    """JSON's own escape for what a terminal would act on."""
    one = found[0]
    return json.dumps(one)[1:-1] if unicodedata.category(one) in _UNSEEN else one


def _board(board: Board) -> dict[str, object]:
    return {
        "title": board.title,
        "notes": list(board.notes),
        "rows": _lines(board.rows),
        "token_rows": _lines(board.token_rows),
        "runs": _lines(board.runs),
        "tokenizers": _lines(board.tokenizers),
        "published_classifiers": _lines(board.validations),
        "stale": _lines(board.stale),
        "other_versions": [
            {
                "versions": list(other.versions),
                "differing_slices": list(other.differing),
                "rows": _lines(other.rows),
                "token_rows": _lines(other.token_rows),
            }
            for other in board.others
        ],
        "failures": _lines(board.failures),
    }


def _view(table: ViewTable) -> dict[str, object]:
    return {
        "name": table.name,
        "title": table.title,
        "row_headers": list(table.row_headers),
        "rows": [list(row) for row in table.rows],
        "columns": list(table.columns),
        "places": _lines(table.frame),
        "notes": list(table.notes),
    }


def _section(section: Section) -> dict[str, object]:
    blocks = [
        {
            "name": block.name,
            "caption": block.caption,
            "columns": [column.name for column in block.grid.columns],
            "texts": [list(row) for row in block.grid.rows],
            "red": [list(place) for place in sorted(block.red)],
            "rows": _lines(block.frame),
            "notes": list(block.notes),
        }
        for block in section.blocks
    ]
    return {
        "name": section.name,
        "title": section.title,
        "alerts": list(section.alerts),
        "blocks": blocks,
        "figures": [{"name": one.name, "caption": one.caption, "alt": one.alt} for one in section.figures],
        "notes": list(section.notes),
    }


def _lines(frame: pd.DataFrame) -> list[dict[str, object]]:
    plain = frame.astype(object).where(frame.notna(), None)
    return [{str(name): _plain(value) for name, value in line.items()} for line in plain.to_dict("records")]


def _plain(value: object) -> object:
    """What JSON can hold: numpy's numbers as Python's, infinities as texts, tuples as lists."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value
