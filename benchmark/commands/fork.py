"""`fork PROTOCOL NEW_NAME`: a protocol of one's own, from a file as it stands."""

from __future__ import annotations

import re
import shlex
from argparse import Namespace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from benchmark.commands.options import Parser, protocol_argument
from benchmark.plugins import words_of_plugins
from protocols import list_protocols, load_protocol
from protocols.errors import HarnessError
from protocols.frozen import Name
from protocols.load import find_protocol

SUMMARY = "a protocol of your own, copied from another"
DESCRIPTION = """\
Copies a protocol's file, with its sources, comments and whatever was changed in
it, under a name of its own and as version 1. The original stays as it is.

example:
  python run_benchmark.py fork mini my-mini
"""
_HEAD = re.compile(r"^(name|version):.*$", re.MULTILINE)


def add_arguments(parser: Parser) -> None:
    """From what, to what."""
    parser.add_argument(
        "protocol",
        type=protocol_argument,
        metavar="PROTOCOL",
        help="a name or a .yaml file; it may differ from its lock",
    )
    parser.add_argument("new_name", metavar="NEW_NAME", help="the new protocol's name")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to (default: NEW_NAME.yaml, here)")


def run(options: Namespace) -> int:
    """Copy, and read the copy back."""
    name = options.new_name
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise HarnessError(
            f"{name!r} cannot be a protocol's name: lower-case letters, digits, - and _ are allowed"
        ) from None
    original = load_protocol(options.protocol, locked=False)
    if name in (*list_protocols(), original.name):
        raise HarnessError(f"{name!r} is taken by another protocol; give another name")
    out = options.out or Path(f"{name}.yaml")
    if out.suffix != ".yaml":
        raise HarnessError(f"{out}: a protocol's file ends in .yaml")
    head = {"name": name, "version": "1"}
    text = find_protocol(options.protocol).read_text(encoding="utf-8")
    text, replaced = _HEAD.subn(lambda match: f"{match[1]}: {head[match[1]]}", text)
    if replaced != len(head):
        raise HarnessError(
            f"{options.protocol}: `name:` and `version:` must each stand at the start of one line"
        )
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileNotFoundError:
        raise HarnessError(
            f"{out}: there is no folder {out.parent}; make it, or give another file with --out"
        ) from None
    except FileExistsError:
        raise HarnessError(f"{out} exists already; give another name, or another file with --out") from None
    try:
        copy = load_protocol(str(out))
    except HarnessError:
        # Such as a name that means something else: nothing unreadable is left behind.
        out.unlink()
        raise
    print(
        f"{out}: protocol {copy.name}, version {copy.version}, digest {copy.digest[:12]}, "
        f"from {original.name}"
    )
    print("Change values and their sources in it, then")
    print(f"  {shlex.join(['python', 'run_benchmark.py', '--protocol', str(out), *words_of_plugins()])}")
    return 0
