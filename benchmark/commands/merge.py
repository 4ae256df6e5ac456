"""`merge BUNDLE...`: another lab's records and predictions into this work dir, each checked."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.commands.options import Parser, protocol_argument
from benchmark.commands.text import count, paragraph
from benchmark.layout import check_work_dir
from benchmark.merging import RESULTS, Outcome, merge_bundle
from leaderboard.bundle import CONFIGURATION, Bundle, open_bundle
from protocols import list_protocols, load_protocol
from protocols.errors import HarnessError
from protocols.frozen import digest_of
from protocols.schema import Protocol

SUMMARY = "another lab's records and predictions into this work dir"
DESCRIPTION = """\
Take the cells of bundles into a work dir. Every digest is verified: of each
file, of each record's values and id, of the parents that it was made from, and
the predictions against the accuracy that the record states. What does not
match is refused, with the reason; the rest is merged. Nothing that is here is
overwritten. Weights come along where the bundle has them; the board says where
a merged cell comes from. No text of a plug-in that a bundle holds is ever run.

examples:
  python run_benchmark.py merge mini-there.tar
  python run_benchmark.py merge *.tar --work-dir both --dry-run

exit codes: 0 all is here now; 1 something was refused; 2 usage, or a file
that is no bundle
"""
GOOD, REFUSED = 0, 1
WOULD = {"merged": "would be merged", "weights added": "weights to add"}
MOST_SHOWN = 20


def add_arguments(parser: Parser) -> None:
    """Which bundles, and where to."""
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="files that `bundle` wrote")
    parser.add_argument(
        "--protocol",
        type=protocol_argument,
        help="a name or a .yaml file: refuse bundles of another (default: the bundle's own)",
    )
    parser.add_argument(
        "--work-dir", type=Path, default=Path("runs"), help="where results are (default: runs)"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    parser.add_argument("--json", action="store_true", help="the outcomes as JSON on standard output")


def run(options: Namespace) -> int:
    """Every bundle in turn; the worst exit code."""
    check_work_dir(options.work_dir)
    given = None if options.protocol is None else load_protocol(options.protocol)
    worst, documents = GOOD, []
    for path in options.bundles:
        try:
            with open_bundle(path) as bundle:
                outcomes, lines = _merge(bundle, given, options)
        except HarnessError as error:
            print(f"error: {error}", file=sys.stderr)
            documents.append({"bundle": str(path), "error": str(error)})
            worst = HarnessError.exit_code
            continue
        refused = [one for one in outcomes if one.result == "refused"]
        worst = max(worst, REFUSED if refused else GOOD)
        documents.append(_as_json(path, bundle, outcomes, lines))
        if not options.json:
            _show(path, bundle, outcomes, lines, is_trial=options.dry_run)
    if options.json:
        print(json.dumps(documents, indent=1))
    return worst


def _merge(bundle: Bundle, given: Protocol | None, options: Namespace) -> tuple[list[Outcome], list[str]]:
    name = bundle.manifest.protocol.name
    if name in ("tokens", "packed", "features"):
        raise HarnessError(f"{bundle.name}: protocol {name!r} would be taken for the folder of that name")
    if given is not None and given.name != name:
        raise HarnessError(
            f"{bundle.name} is of protocol {name}, not {given.name}; leave out --protocol, or name that one"
        )
    known = load_protocol(name) if given is None and name in list_protocols() else given
    outcomes = merge_bundle(bundle, options.work_dir, is_trial=options.dry_run)
    try:
        lines = _compared(bundle, known)
    except HarnessError:
        lines = []  # its slices are damaged, which is among the outcomes
    return outcomes, lines


def _compared(bundle: Bundle, known: Protocol | None) -> list[str]:
    """Sentences about a protocol that is not the one here; its cells are merged, and stand apart.

    Raises HarnessError if the bundle's own slices cannot be read.
    """
    slices = {name: digest_of(values) for name, values in bundle.protocol_slices().items()}
    theirs = bundle.manifest.protocol
    if known is None:
        return [
            f"Protocol {theirs.name} is not known here: report needs its file{_in_bundle(bundle)}. With "
            "--protocol FILE.yaml it is compared with the bundle's."
        ]
    if theirs.digest == known.digest:
        return []
    names = sorted(name for name in {*slices, *known.slices} if slices.get(name) != known.slices.get(name))
    return [
        f"It was written under version {theirs.version} of {theirs.name}, which is version {known.version} "
        f"here and differs in {', '.join(names)}: cells that used what differs stand apart on the board."
    ]


def _in_bundle(bundle: Bundle) -> str:
    """How to get the protocol's file out of a bundle that has it: any tar reads one."""
    if any(one.path == CONFIGURATION for one in bundle.manifest.files):
        return f", which `tar xf {bundle.name} {CONFIGURATION}` takes out of the bundle"
    return ""


def _show(
    path: Path, bundle: Bundle, outcomes: Sequence[Outcome], lines: Sequence[str], *, is_trial: bool
) -> None:
    manifest = bundle.manifest
    print(
        paragraph(
            f"{path}: {count(len(manifest.cells), 'cell')} of {manifest.protocol.name}, version "
            f"{manifest.protocol.version}, written by harness {manifest.harness.version}, commit "
            f"{manifest.harness.revision}",
            rest="  ",
        )
    )
    numbers = Counter(one.result for one in outcomes)
    for result in RESULTS:
        if numbers[result]:
            name = WOULD[result] if is_trial and result in WOULD else result
            print(f"  {name:15} {numbers[result]:6,}")
    for line in lines:
        print(paragraph(line, rest="  "))
    refused = [one for one in outcomes if one.result == "refused"]
    for one in refused[:MOST_SHOWN]:
        print(f"refused {one.entry}: {one.why}", file=sys.stderr)
    if len(refused) > MOST_SHOWN:
        print(f"and {len(refused) - MOST_SHOWN} more were refused (--json lists all)", file=sys.stderr)


def _as_json(path: Path, bundle: Bundle, outcomes: Sequence[Outcome], lines: Sequence[str]) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle": str(path),
        "sha256": bundle.sha256,
        "harness": manifest.harness.model_dump(mode="json"),
        "protocol": manifest.protocol.model_dump(mode="json"),
        "notes": list(lines),
        "entries": [{"entry": one.entry, "result": one.result, "why": one.why} for one in outcomes],
    }
