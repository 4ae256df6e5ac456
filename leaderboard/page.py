"""The board as one HTML page that needs nothing else: no script, no network, text from records escaped."""

from __future__ import annotations

import shlex
from pathlib import Path

import jinja2
from markupsafe import Markup

from leaderboard.figures import inlined
from leaderboard.grids import board_grid, clean, failure_grid, modified_grid, tokenizer_grid
from leaderboard.lineage import SCRATCH
from leaderboard.notes import TOKENIZER_NOTE
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
        modified=modified_grid(board.modified) if len(board.modified) else None,
        others=[(other_caption(other), board_grid(other.rows, board.evaluations)) for other in board.others],
        failures=failure_grid(board.failures) if len(board.failures) else None,
        command=command(board, protocol),
    )


def command(board: Board, protocol: Protocol) -> str:
    """The command that runs every row of the board again; the protocol's defaults if there is none yet."""
    parts = ["python", "run_benchmark.py", "--protocol", protocol.name]
    if len(board.rows):
        seeds = board.runs[board.runs["standing"] == "board"]["seed"].dropna()
        chosen = {
            "--methods": dict.fromkeys(board.rows["method"]),
            "--tokenizers": dict.fromkeys(name for name in board.rows["tokenizer"] if name),
            "--trunks": dict.fromkeys(board.rows["trunk"]),
            "--seeds": dict.fromkeys(str(seed) for seed in sorted(seeds)),
        }
        if list(chosen["--methods"]) == [SCRATCH]:
            del chosen["--tokenizers"]
        for option, values in chosen.items():
            if values:
                parts += [option, *values]
    return shlex.join(parts)
