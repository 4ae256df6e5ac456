"""The board of a work folder, from its records alone: reads, builds, writes every form of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from leaderboard.contents import Contents, collect
from leaderboard.export import drawings, to_csv, to_json, to_latex
from leaderboard.markdown import to_markdown
from leaderboard.page import to_html
from leaderboard.predictions import PredictionsLoader, predictions_loader
from leaderboard.record import read_records, without_collecting
from leaderboard.settings import Settings
from leaderboard.tables import METHODS, Board, build_board
from leaderboard.terminal import to_terminal
from protocols.files import write_atomically
from protocols.schema import Protocol

FIGURE_NAME = "probe.svg"
LISTING_NAME = "files.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What the board holds, the files that were written (name -> path), and its forms that no file has."""

    contents: Contents
    paths: dict[str, Path]
    width: int

    @property
    def board(self) -> Board:
        """The board itself."""
        return self.contents.board

    @cached_property
    def terminal(self) -> str:
        """The board as a terminal shows it, with a word on everything else."""
        return to_terminal(self.contents, width=self.width)

    @cached_property
    def full_terminal(self) -> str:
        """The same with every table of every section."""
        return to_terminal(self.contents, width=self.width, full=True)

    @cached_property
    def json(self) -> str:
        """Everything but the drawings, for machines."""
        return to_json(self.contents)


@without_collecting()
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
    `build_board` says; but a page in `out_dir` links to no record, as its reader may not have them.
    `width` is that of the terminal text in characters, by default the terminal's.
    Raises HarnessError for a damaged record or predictions.
    """
    protocol_dir = work_dir / protocol.name
    predictions = predictions_loader(protocol_dir / "cells")
    board = read_board(work_dir, protocol, sources=sources, predictions=predictions)
    contents = collect(board, protocol, predictions, work_dir=work_dir, sources=sources)
    beside = protocol_dir / "leaderboard"
    folder = beside if out_dir is None else out_dir
    files: dict[str, str | bytes] = {
        "index.html": to_html(
            contents, cells_dir=protocol_dir / "cells", page_dir=beside if out_dir is None else None
        ),
        "board.md": to_markdown(contents),
        **to_csv(contents),
        **to_latex(contents),
        **drawings(contents),
    }
    if contents.figure is not None:
        files[FIGURE_NAME] = contents.figure
    _write(folder, files)
    return Report(
        contents=contents,
        paths={name: folder / name for name in (*files, LISTING_NAME)},
        width=width or shutil.get_terminal_size().columns,
    )


def _write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write `files`, and take away what an earlier report wrote there that this one does not have.

    One from earlier records would pass for this board's. What somebody else put there, or changed, stays.
    """
    for name, digest in _listed(folder / LISTING_NAME).items():
        path = folder / name
        is_plain = path.parent == folder and path.is_file() and not path.is_symlink()
        if name not in files and is_plain and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            path.unlink()
    digests = {}
    for name, content in files.items():
        write_atomically(folder / name, content)
        raw = content.encode("utf-8") if isinstance(content, str) else content
        digests[name] = hashlib.sha256(raw).hexdigest()
    write_atomically(folder / LISTING_NAME, json.dumps(digests, indent=1, sort_keys=True) + "\n")


def _listed(path: Path) -> dict[str, str]:
    """Name -> SHA-256 of the files of the report before; none where the listing is not one of ours."""
    try:
        listing = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return listing if isinstance(listing, dict) else {}


@without_collecting()
def read_board(
    work_dir: Path,
    protocol: Protocol,
    *,
    sources: Mapping[str, str] | None = None,
    predictions: PredictionsLoader | None = None,
) -> Board:
    """The board of the records under WORK_DIR/PROTOCOL, in the protocol's order. Writes nothing.

    `predictions` loads those of the records, for a caller that needs them again.
    """
    defaults = protocol.defaults
    return build_board(
        read_records(work_dir, protocol.name),
        predictions or predictions_loader(work_dir / protocol.name / "cells"),
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
