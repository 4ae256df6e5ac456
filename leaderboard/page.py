"""The board as one HTML page that needs nothing else: no script, no network, text from records escaped."""

from __future__ import annotations

import shlex
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from leaderboard.figures import inlined
from leaderboard.grids import board_grid, clean, failure_grid, modified_grid, stale_grid, tokenizer_grid
from leaderboard.lineage import SCRATCH
from leaderboard.notes import STALE_NOTE, TOKENIZER_NOTE
from leaderboard.render import other_caption, shared_trunk
from leaderboard.tables import Board
from protocols.schema import Protocol

_TEMPLATES = Path(__file__).parent / "templates"


def to_html(board: Board, protocol: Protocol, *, figure: str | None) -> str:
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
        tokenizers=tokenizer_grid(board.tokenizers) if len(board.tokenizers) else None,
        tokenizer_note=TOKENIZER_NOTE,
        stale=stale_grid(board.stale) if len(board.stale) else None,
        stale_note=STALE_NOTE,
        modified=modified_grid(board.modified) if len(board.modified) else None,
        others=[(other_caption(other), board_grid(other.rows, board.evaluations)) for other in board.others],
        failures=failure_grid(board.failures) if len(board.failures) else None,
        command=command(board, protocol),
    )


def command(board: Board, protocol: Protocol) -> str:
    """The command that runs every row of the board again, and those that would stand on it but are stale.

    The protocol's defaults if there is none yet.
    """
    parts = ["python", "run_benchmark.py", "--protocol", protocol.name]
    stale = board.stale
    stale = stale[(stale["method"] != "") & (stale["deviations"] == "") & (stale["differing_slices"] == "")]
    rows = pd.concat([frame for frame in (board.rows, stale) if len(frame)] or [stale])
    if len(rows):
        seeds = [*board.runs[board.runs["standing"] == "board"]["seed"].dropna(), *stale["seed"].dropna()]
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
    return shlex.join(parts)
