"""`compare`: two rows of a board held against each other, at two levels."""

from __future__ import annotations

from argparse import Namespace

from benchmark.commands.board import check_has_records, show_comparison
from benchmark.commands.options import Parser, add_protocol
from protocols import load_protocol
from protocols.errors import HarnessError

SUMMARY = "two rows of the board against each other, at two levels"
DESCRIPTION = """\
Two rows of the board against each other, in every evaluation that both have.
These methods: over seeds, three at least. These checkpoints: seed by seed, over
the same test images. docs/statistics.md says how.

A row is METHOD/TOKENIZER/TRUNK, METHOD/TRUNK of a method without a tokenizer
(scratch, maskfeat), or tokens/TOKENIZER for tokens alone; the trunk may be left
out where the protocol has one. What a view tries follows as @NAME=VALUE.

examples:
  python run_benchmark.py compare mapet/k-pixel mim/k-pixel --protocol mini
  python run_benchmark.py compare mapet/vq-kd/vit-b \\
      mapet/vq-kd/vit-b@cutting_point=30 --protocol fair300 \\
      --evaluations finetune
"""


def add_arguments(parser: Parser) -> None:
    """Which rows, and in what."""
    parser.add_argument("row_a", metavar="ROW_A", help="a row: METHOD/TOKENIZER/TRUNK")
    parser.add_argument("row_b", metavar="ROW_B", help="the row to hold it against")
    add_protocol(parser)
    parser.add_argument(
        "--evaluations", nargs="+", default=["all"], metavar="NAME", help="what was measured (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="all numbers as JSON on standard output")


def run(options: Namespace) -> int:
    """Compare and show."""
    protocol = load_protocol(options.protocol)
    check_has_records(options.work_dir, protocol, given=options.protocol)
    given = [name for value in options.evaluations for name in value.split(",") if name]
    if not given:
        raise HarnessError("--evaluations names nothing; give at least one name, or all")
    show_comparison(
        options.work_dir,
        protocol,
        rows=(options.row_a, options.row_b),
        evaluations=() if "all" in map(str.lower, given) else tuple(given),
        protocol_argument=options.protocol,
        as_json=options.json,
    )
    return 0
