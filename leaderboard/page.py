"""The board as one HTML page that needs nothing else: no script, no network, text from records escaped."""

from __future__ import annotations

import shlex
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from leaderboard.figures import inlined
from leaderboard.grids import (
    board_grid,
    clean,
    failure_grid,
    modified_grid,
    stale_grid,
    token_grid,
    tokenizer_grid,
)
from leaderboard.lineage import SCRATCH, TOKEN_CLASSIFICATION
from leaderboard.notes import STALE_NOTE, TOKEN_NOTE, TOKEN_TITLE, TOKENIZER_NOTE
from leaderboard.render import other_caption, other_grids, shared_trunk
from leaderboard.sheets import Gallery
from leaderboard.tables import Board
from leaderboard.validation_view import TITLE as VALIDATION_TITLE
from leaderboard.validation_view import validation_grid, validation_note
from protocols.schema import Protocol

_TEMPLATES = Path(__file__).parent / "templates"


def to_html(board: Board, protocol: Protocol, *, figure: str | None, gallery: Gallery | None = None) -> str:
    """The whole page; `figure` is the SVG of `leaderboard.figures.probe_figure`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["clean"] = clean
    return environment.get_template("board.html.j2").render(
        protocol=protocol,
        board=board,
        trunk=shared_trunk(board),
        table=board_grid(board.rows, board.evaluations) if len(board.rows) else None,
        # Ours alone: matplotlib escapes the names in it, and these are drawn as outlines.
        figure=Markup(inlined(figure)) if figure else None,
        tokens=token_grid(board.token_rows, board.token_evaluations) if len(board.token_rows) else None,
        token_title=TOKEN_TITLE,
        token_note=TOKEN_NOTE,
        tokenizers=tokenizer_grid(board.tokenizers) if len(board.tokenizers) else None,
        tokenizer_note=TOKENIZER_NOTE,
        gallery=gallery or Gallery(),
        validations=validation_grid(board.validations) if len(board.validations) else None,
        validation_title=VALIDATION_TITLE,
        validation_note=validation_note(board.validations),
        stale=stale_grid(board.stale) if len(board.stale) else None,
        stale_note=STALE_NOTE,
        modified=modified_grid(board.modified) if len(board.modified) else None,
        others=[(other_caption(other), other_grids(other, board)) for other in board.others],
        failures=failure_grid(board.failures) if len(board.failures) else None,
        command=command(board, protocol),
    )


def command(board: Board, protocol: Protocol) -> str:
    """The command that runs every row of the board again, and those that would stand on it but are stale.

    A second line where there are rows of tokens alone, which no method brings. The protocol's defaults
    if there is no row yet.
    """
    lines = [_command_of_rows(board, protocol), _command_of_tokens(board, protocol)]
    wanted = [shlex.join(parts) for parts in lines if parts]
    return "\n".join(wanted) or shlex.join(_start(protocol))


def _start(protocol: Protocol) -> list[str]:
    return ["python", "run_benchmark.py", "--protocol", protocol.name]


def _command_of_tokens(board: Board, protocol: Protocol) -> list[str]:
    stale = board.stale[board.stale["stage"] == TOKEN_CLASSIFICATION]
    stale = stale[(stale["deviations"] == "") & (stale["differing_slices"] == "")]
    runs = board.runs[(board.runs["standing"] == "board") & (board.runs["stage"] == TOKEN_CLASSIFICATION)]
    columns = ["tokenizer", "evaluation", "seed"]
    cells = pd.concat([frame[columns] for frame in (runs, stale) if len(frame)] or [runs[columns]])
    if not len(cells):
        return []
    seeds = [str(seed) for seed in sorted(cells["seed"].dropna().unique())]
    return [
        *_start(protocol), "--tokenizers", *dict.fromkeys(cells["tokenizer"]),
        "--evaluations", *dict.fromkeys(cells["evaluation"]), *(["--seeds", *seeds] if seeds else []),
    ]  # fmt: skip


def _command_of_rows(board: Board, protocol: Protocol) -> list[str]:
    stale = board.stale
    stale = stale[(stale["method"] != "") & (stale["deviations"] == "") & (stale["differing_slices"] == "")]
    rows = pd.concat([frame for frame in (board.rows, stale) if len(frame)] or [stale])
    if not len(rows):
        return []
    runs = board.runs[(board.runs["standing"] == "board") & (board.runs["method"] != "")]
    parts = _start(protocol)
    seeds = [*runs["seed"].dropna(), *stale["seed"].dropna()]
    chosen = {
        "--methods": dict.fromkeys(rows["method"]),
        "--tokenizers": dict.fromkeys(name for name in rows["tokenizer"] if name),
        "--trunks": dict.fromkeys(rows["trunk"]),
        "--seeds": dict.fromkeys(str(seed) for seed in sorted(seeds)),
    }
    if list(chosen["--methods"]) == [SCRATCH]:
        del chosen["--tokenizers"]
    for option, values in chosen.items():
        if values:
            parts += [option, *values]
    return parts
