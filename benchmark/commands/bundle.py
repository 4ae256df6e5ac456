"""`bundle OUT`: what a board is made of in one file, for another work dir or another lab to merge."""

from __future__ import annotations

import re
import sys
import tomllib
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from benchmark.commands.options import Parser, add_protocol, check_asked_work_dir
from benchmark.commands.text import count, size
from benchmark.provenance import ROOT, git_state
from benchmark.recorded_ids import ids_of_record
from leaderboard.bundle import PLUGIN_NAME, Harness
from leaderboard.bundle_writer import write_bundle
from leaderboard.record import read_record
from protocols import load_protocol
from protocols.errors import HarnessError, nearest
from protocols.load import find_protocol

SUMMARY = "records and predictions in one file, for others to merge"
DESCRIPTION = """\
Write the records, predictions and training curves of finished cells, and of
every cell that they were made from, into one tar file that `merge` reads, with
the protocol's file and a card of each pre-training and tokenizer. No weights
unless asked, no tokens, no logs, and no folder of this machine go along. The
same records give the same bytes.

examples:
  python run_benchmark.py bundle mini-here.tar --protocol mini
  python run_benchmark.py bundle out.tar --protocol mini --cells 'finetune-*'
  python run_benchmark.py bundle out.tar --protocol mini --weights

exit codes: 0 all that was asked for is in the bundle; 1 some cell was left
out, for the reason that is given; 2 usage, or there is nothing to bundle
"""
WHOLE, PARTIAL = 0, 1
MOST_SHOWN = 10


def add_arguments(parser: Parser) -> None:
    """What goes into which file."""
    parser.add_argument("out", type=Path, metavar="OUT", help="the bundle, a new file that ends in .tar")
    add_protocol(parser)
    parser.add_argument(
        "--cells",
        nargs="+",
        metavar="ID",
        help="cell ids, or patterns of them with * (default: all that are done)",
    )
    parser.add_argument("--failed", action="store_true", help="failed cells too, with their errors")
    parser.add_argument(
        "--weights",
        action="store_true",
        help="the pre-trained trunks too (backbone.safetensors), so that others can evaluate them",
    )
    parser.add_argument(
        "--with-plugins",
        action="store_true",
        help="the text of the plug-ins that --plugin names, to be read; `merge` runs none of it",
    )


def run(options: Namespace) -> int:
    """Choose, check, write."""
    out: Path = options.out
    if out.suffix != ".tar":
        raise HarnessError(f"{out}: a bundle is a plain tar file, and its name ends in .tar")
    if not out.parent.is_dir():
        raise HarnessError(f"there is no folder {out.parent}; make it, or give another file")
    protocol = load_protocol(options.protocol)
    check_asked_work_dir(options.work_dir)
    statuses, damaged = _statuses(options.work_dir / protocol.name / "cells")
    if not statuses and not damaged:
        raise HarnessError(
            f"no records of protocol {protocol.name} under {options.work_dir}; name their folder with "
            "--work-dir"
        )
    chosen = [one for one in (*statuses, *damaged) if options.cells is None or _fits(one, options.cells)]
    _check_named(options.cells, [*statuses, *damaged])
    taken = ("done", "failed") if options.failed else ("done",)
    wanted = [one for one in chosen if one in damaged or statuses[one] in taken]
    harness = Harness.of(_version(), git_state())
    written = write_bundle(
        out,
        options.work_dir,
        protocol,
        sorted(wanted),
        harness=harness,
        ids_of=ids_of_record,
        configuration=find_protocol(options.protocol).read_bytes(),
        plugins=_plugins(options) if options.with_plugins else None,
        with_weights=options.weights,
    )
    print(f"{out}: {count(len(written.cells), 'cell')} of {protocol.name}, {size(written.size)}")
    print(f"SHA-256 {written.sha256}")
    idle = Counter(statuses[one] for one in chosen if one in statuses and statuses[one] not in taken)
    for status, number in sorted(idle.items()):
        remedy = "; --failed takes them too" if status == "failed" else ""
        print(f"not in it: {count(number, 'cell')} that {'is' if number == 1 else 'are'} {status}{remedy}")
    _show_left_out(written.left_out)
    return PARTIAL if written.left_out else WHOLE


def _plugins(options: Namespace) -> dict[str, bytes]:
    """Name in the bundle -> text, of the plug-ins' files. HarnessError if none was given as a file."""
    texts: dict[str, bytes] = {}
    for given in getattr(options, "plugin", None) or ():
        path = Path(given)
        files = (
            sorted(one for one in path.rglob("*") if one.suffix in (".py", ".yaml"))
            if path.is_dir()
            else [path]
        )
        for file in files:
            name = file.name if file == path else "-".join((path.name, *file.relative_to(path).parts))
            if name in texts or not re.fullmatch(PLUGIN_NAME, name):
                raise HarnessError(
                    f"--with-plugins: {file} would be {name!r} in the bundle, which is taken, or is no name "
                    "of letters, digits, '_', '.' and '-'; rename it"
                )
            texts[name] = file.read_bytes()
    if not texts:
        raise HarnessError("--with-plugins takes the files that --plugin names; give them, or leave it out")
    return texts


def _statuses(cells: Path) -> tuple[dict[str, str], list[str]]:
    """Cell id -> status of every record; then the cells whose record cannot be read."""
    statuses: dict[str, str] = {}
    damaged: list[str] = []
    for folder in sorted(cells.iterdir()) if cells.is_dir() else ():
        try:
            record = read_record(folder) if folder.is_dir() else None
        except HarnessError:
            damaged.append(folder.name)
            continue
        if record is not None:
            statuses[folder.name] = record.status
    return statuses, damaged


def _fits(cell_id: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(cell_id, pattern) for pattern in patterns)


def _check_named(patterns: Sequence[str] | None, known: Sequence[str]) -> None:
    for pattern in patterns or ():
        if not any(fnmatchcase(one, pattern) for one in known):
            raise HarnessError(f"--cells {pattern!r}: no record of such a cell; {nearest(pattern, known)}")


def _show_left_out(left_out: Mapping[str, str]) -> None:
    for cell_id, why in list(left_out.items())[:MOST_SHOWN]:
        print(f"left out {cell_id}: {why}", file=sys.stderr)
    if len(left_out) > MOST_SHOWN:
        print(f"and {len(left_out) - MOST_SHOWN} more cells were left out", file=sys.stderr)


def _version() -> str:
    project: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return project
