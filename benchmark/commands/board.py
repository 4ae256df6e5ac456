"""Showing a board: the one step that `run` and `report` share."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from benchmark.commands.text import styled
from benchmark.plugins import words_of_plugins
from benchmark.survey import present_sources
from leaderboard.record import Record
from protocols.errors import HarnessError
from protocols.schema import Protocol


def check_has_records(work_dir: Path, protocol: Protocol, *, given: str) -> None:
    """HarnessError, with the command that makes some, if there are none. `given`: the protocol as asked."""
    if (work_dir / protocol.name / "cells").is_dir():
        return
    command = shlex.join(["python", "run_benchmark.py", "--protocol", given, *words_of_plugins()])
    raise HarnessError(
        f"no records of protocol {protocol.name} under {work_dir}; make some with {command}, or name their "
        "folder with --work-dir"
    )


def show_board(
    work_dir: Path, protocol: Protocol, *, out: Path | None = None, as_json: bool = False, full: bool = False
) -> None:
    """Write the board's files and print it; with every table of every section if `full`."""
    # Imported late: pandas and matplotlib would slow down every command that shows no board.
    from leaderboard.report import write_report

    folder = out if out is not None else work_dir / protocol.name / "leaderboard"
    if folder.exists() and not folder.is_dir():
        raise HarnessError(f"{folder} is a file, and a board is a folder of files; give another with --out")
    try:
        report = write_report(work_dir, protocol, out_dir=out, sources=present_sources())
    except OSError as error:
        if error.filename is None or not Path(error.filename).is_relative_to(folder):
            raise  # of a record or predictions, not of the board
        raise HarnessError(
            f"the board cannot be written to {folder}: {error.strerror}; give another folder with "
            f"python run_benchmark.py report --out FOLDER"
        ) from error
    if as_json:
        print(report.json)
        return
    print(styled(report.full_terminal if full else report.terminal))
    print(f"\npage: {os.path.relpath(report.paths['index.html'])}")


def show_classifier(record: Record) -> None:
    """Print what was measured of one classifier that was trained elsewhere."""
    from leaderboard.validation_view import summary

    print(styled(summary(record)))


def show_comparison(
    work_dir: Path,
    protocol: Protocol,
    *,
    rows: tuple[str, str],
    evaluations: Sequence[str],
    protocol_argument: str,
    as_json: bool,
) -> None:
    """Print two rows of the board against each other; no `evaluations` are all that both have."""
    from leaderboard.compare_rows import compare_rows
    from leaderboard.compare_text import to_json, to_text
    from leaderboard.predictions import predictions_loader
    from leaderboard.report import read_board

    comparison = compare_rows(
        read_board(work_dir, protocol, sources=present_sources()),
        protocol,
        predictions_loader(work_dir / protocol.name / "cells"),
        a=rows[0],
        b=rows[1],
        evaluations=evaluations,
        protocol_argument=protocol_argument,
    )
    print(to_json(comparison) if as_json else styled(to_text(comparison)))
