"""`lock PROTOCOL`: release a protocol, or slices that it has gained."""

from __future__ import annotations

from argparse import Namespace

from benchmark.commands.options import Parser, protocol_argument
from benchmark.commands.text import count
from protocols import load_protocol
from protocols.load import find_protocol
from protocols.lock import add_to_lock, check_released

SUMMARY = "release a protocol: from now on its slices must not change"
DESCRIPTION = """\
Adds the slices of a protocol that are not locked yet to protocols/digests.lock.
From then on a change of one of them is an error (exit code 3). Lines that are
there are never changed: a changed slice needs a new version, or a fork.

example:
  python run_benchmark.py lock my-protocol.yaml
"""


def add_arguments(parser: Parser) -> None:
    """Which protocol."""
    parser.add_argument("protocol", type=protocol_argument, metavar="PROTOCOL", help="a name or a .yaml file")


def run(options: Namespace) -> int:
    """Check what is locked, add the rest."""
    # Slices that are locked are compared here; those that are not are what this command is for.
    protocol = load_protocol(options.protocol, locked=False)
    check_released(protocol, file=str(find_protocol(options.protocol)))
    new = add_to_lock(protocol)
    print(f"{protocol.name}, version {protocol.version}: {count(len(new), 'slice')} locked now, "
          f"{len(protocol.slices) - len(new)} before")  # fmt: skip
    return 0
