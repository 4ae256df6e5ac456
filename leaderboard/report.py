"""The board of a work folder, from its records alone: reads, builds, writes every form of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from leaderboard.figures import probe_figure
from leaderboard.page import to_html
from leaderboard.predictions import predictions_loader
from leaderboard.record import read_records
from leaderboard.render import TOKENIZERS_NAME, TOKENS_NAME, to_csv, to_json, to_markdown, to_terminal
from leaderboard.settings import Settings
from leaderboard.sheets import GALLERY_NAME, read_gallery, stores_of
from leaderboard.tables import METHODS, Board, build_board
from leaderboard.validation_view import CSV_NAME as VALIDATIONS_NAME
from protocols.files import write_atomically
from protocols.schema import Protocol

FIGURE_NAME = "probe.svg"


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """The board, the files that were written (name -> path), and the board as a terminal shows it."""

    board: Board
    paths: dict[str, Path]
    terminal: str
    json: str


def write_report(
    work_dir: Path,
    protocol: Protocol,
    *,
    sources: Mapping[str, str] | None = None,
    out_dir: Path | None = None,
    width: int | None = None,
) -> Report:
    """Write the board of `protocol` under WORK_DIR/PROTOCOL/leaderboard, or `out_dir`.

    The files' bytes depend on the records, the protocol and `sources` alone: what the last are,
    `build_board` says. `width` is that of the terminal text in characters, by default the terminal's.
    Raises HarnessError for a damaged record or predictions.
    """
    board = read_board(work_dir, protocol, sources=sources)
    figure = probe_figure(board)
    gallery = read_gallery(work_dir / protocol.name / "leaderboard" / GALLERY_NAME, stores_of(board))
    texts = {
        "index.html": to_html(board, protocol, figure=figure, gallery=gallery),
        "board.md": to_markdown(board),
        **to_csv(board),
    }
    folder = out_dir if out_dir is not None else work_dir / protocol.name / "leaderboard"
    if figure is not None:
        texts[FIGURE_NAME] = figure
    for name in {FIGURE_NAME, TOKENS_NAME, TOKENIZERS_NAME, VALIDATIONS_NAME} - set(texts):
        # One from earlier records would pass for this board's.
        (folder / name).unlink(missing_ok=True)
    for name, text in texts.items():
        write_atomically(folder / name, text)
    return Report(
        board=board,
        paths={name: folder / name for name in texts},
        terminal=to_terminal(board, width=width or shutil.get_terminal_size().columns),
        json=to_json(board),
    )


def read_board(work_dir: Path, protocol: Protocol, *, sources: Mapping[str, str] | None = None) -> Board:
    """The board of the records under WORK_DIR/PROTOCOL, in the protocol's order. Writes nothing."""
    defaults = protocol.defaults
    return build_board(
        read_records(work_dir, protocol.name),
        predictions_loader(work_dir / protocol.name / "cells"),
        slices=protocol.slices,
        settings=Settings.of(protocol),
        sources=sources,
        title=f"{protocol.name}, version {protocol.version}",
        methods=METHODS,
        tokenizers=defaults.tokenizers,
        trunks=defaults.trunks,
        evaluations=protocol.names("evaluations"),
        default_evaluations=defaults.evaluations,
        token_evaluations=protocol.token_evaluations,
    )
