"""Showing a board: the one step that `run` and `report` share."""

from __future__ import annotations

import os
from pathlib import Path

from benchmark.survey import present_sources
from protocols.schema import Protocol


def show_board(work_dir: Path, protocol: Protocol, *, out: Path | None = None, as_json: bool = False) -> None:
    """Write the board's files and print it."""
    # Imported late: pandas and matplotlib would slow down every command that shows no board.
    from leaderboard.report import write_report

    report = write_report(work_dir, protocol, out_dir=out, sources=present_sources())
    if as_json:
        print(report.json)
        return
    print(report.terminal)
    print(f"\npage: {os.path.relpath(report.paths['index.html'])}")
