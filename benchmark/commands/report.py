"""`report`: the board again, from the records alone."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from benchmark.commands.board import check_has_records, show_board
from benchmark.commands.options import Parser, add_protocol
from protocols import load_protocol

SUMMARY = "the board again, from the records alone"
DESCRIPTION = """\
The board again, from the records alone: in the terminal, and as one HTML page,
Markdown, CSV, LaTeX and pictures under WORK_DIR/PROTOCOL/leaderboard. The
terminal shows the main table; with --full also every table of the protocol's
views, what their differences mean, the fairness proof, and what it all cost.

examples:
  python run_benchmark.py report --protocol mini
  python run_benchmark.py report --protocol mini --full
  python run_benchmark.py report --protocol mini --json
"""


def add_arguments(parser: Parser) -> None:
    """Which board, and where to."""
    add_protocol(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--full", action="store_true", help="every table in the terminal, not the main one alone"
    )
    shown.add_argument("--json", action="store_true", help="all of it as JSON on standard output")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the board's files here instead")


def run(options: Namespace) -> int:
    """Rebuild and show."""
    protocol = load_protocol(options.protocol)
    check_has_records(options.work_dir, protocol, given=options.protocol)
    show_board(options.work_dir, protocol, out=options.out, as_json=options.json, full=options.full)
    return 0
