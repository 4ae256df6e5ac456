"""`check NAME`: does an adapter do what it must? A method, tokenizer or data set, built in or a plug-in."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmark.commands.options import Parser, protocol_argument
from benchmark.commands.text import count, paragraph
from benchmark.conformance import Finding, examined
from benchmark.data_sets import registered_data_sets
from benchmark.equal_compute import resolve_tokenizer
from benchmark.inputs import known_data_sets
from benchmark.selection import PLUGIN_HINT
from benchmark.stopping import Stopped
from methods import list_methods, method_spec
from protocols import load_protocol
from protocols.errors import HarnessError, unknown
from protocols.schema import Protocol
from tokenizers import list_tokenizers, tokenizer_spec

SUMMARY = "try a method, tokenizer or data set against what it must do"
DESCRIPTION = """\
Does an adapter do what it must? A method: its contract, shapes, gradients,
draws that are pure, no sight of what it predicts, the equal trunk, batches in
parts, bf16, weights that load in timm, FLOPs as declared, and the time of a
step beside the built-in methods. A tokenizer: tokens, independence of the
batch, identity, grid. A data set: splits, labels, the same bytes twice.
Everything runs on the CPU, at the sizes of a protocol's trunk.

examples:
  python run_benchmark.py check mim
  python run_benchmark.py check ring-mim --plugin ring_mim.py
  python run_benchmark.py check k-feature --protocol mini
  python run_benchmark.py check fashion-mnist-12k

exit codes: 0 nothing FAILED; 1 something did; 2 usage
"""
GOOD, BAD = 0, 1
KINDS = ("method", "tokenizer", "data-set")
INDENT = 8


@dataclass(frozen=True)
class Examination:
    """What is examined, in a line, and its findings as they come."""

    title: str
    findings: Iterator[Finding]


def add_arguments(parser: Parser) -> None:
    """What to examine, and at whose sizes."""
    parser.add_argument("name", metavar="NAME", help="a method, tokenizer or data set (see list)")
    parser.add_argument(
        "--kind",
        choices=KINDS,
        help="which of them, where one name stands for two (default: whatever has it)",
    )
    parser.add_argument(
        "--protocol",
        default="mini",
        type=protocol_argument,
        help="whose trunk, values and images to take (default: mini)",
    )
    parser.add_argument("--trunk", metavar="NAME", help="whose sizes (default: the protocol's first)")
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="folder that holds data sets and weights"
    )
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="SLICE.FIELD=VALUE",
        help="change a protocol value for this examination, as methods.NAME.FIELD=VALUE",
    )
    parser.add_argument("--quick", action="store_true", help="leave out the time of steps")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run(options: Namespace) -> int:
    """Try everything, say what was found as it comes."""
    name = options.name.lower()
    kind = _kind(name, options.kind)
    begin: dict[str, Callable[[str, Protocol, Namespace], Examination]] = {
        "method": _method,
        "tokenizer": _tokenizer,
        "data-set": _data_set,
    }
    found: list[Finding] = []
    try:
        # What an adapter prints is no part of JSON.
        with redirect_stdout(sys.stderr) if options.json else nullcontext():
            examination = begin[kind](name, load_protocol(options.protocol, overrides=options.set), options)
            if not options.json:
                print(paragraph(examination.title))
            for finding in examination.findings:
                found.append(finding)
                if not options.json:
                    print(_lines(finding), flush=True)
    except Stopped as stopped:
        print(f"\nstopped by {stopped}; nothing is kept, the same command begins anew.", file=sys.stderr)
        return stopped.exit_code
    counts = {
        status: sum(one.status == status for one in found) for status in ("ok", "info", "n/a", "FAILED")
    }
    if options.json:
        content = {"name": name, "kind": kind, "findings": [asdict(one) for one in found], "counts": counts}
        print(json.dumps(content, indent=1))
    else:
        print(
            f"{count(len(found), 'finding')}: " + ", ".join(f"{n} {status}" for status, n in counts.items())
        )
    return BAD if counts["FAILED"] else GOOD


def _kind(name: str, asked: str | None) -> str:
    """What `name` is. HarnessError if it is nothing that is known, or two things and not said which."""
    known = {"method": list_methods(), "tokenizer": list_tokenizers(), "data-set": known_data_sets()}
    if asked is not None:
        if name not in known[asked] and not (asked == "data-set" and name.startswith("folder-")):
            raise unknown(asked.replace("-", " "), name, known[asked])
        return asked
    kinds = [kind for kind, names in known.items() if name in names]
    if not kinds and name.startswith("folder-"):
        return "data-set"
    if not kinds:
        everything = [one for names in known.values() for one in names]
        error = unknown("method, tokenizer or data set", name, everything)
        raise HarnessError(f"{error}{PLUGIN_HINT}")
    if len(kinds) > 1:
        raise HarnessError(f"{name!r} is a {' and a '.join(kinds)}; say which with --kind {kinds[0]}")
    return kinds[0]


def _method(name: str, protocol: Protocol, options: Namespace) -> Examination:
    """A method at the sizes of a trunk, with the protocol's values where it has some."""
    # Imported late: torch would slow down every command that examines nothing.
    from benchmark.conformance_contract import CONTRACT, TRUNK_ALONE
    from benchmark.conformance_cost import COSTS, time_beside_others
    from benchmark.conformance_leaks import LEAKS
    from benchmark.conformance_method import under_test
    from benchmark.conformance_training import TRAINING

    trunk = (options.trunk or protocol.defaults.trunks[0]).lower()
    if trunk not in protocol.trunks:
        raise unknown(f"trunk of protocol {protocol.name}", trunk, protocol.trunks)
    spec = method_spec(name)
    subject = under_test(name, protocol, trunk)
    checks = [
        *CONTRACT,
        *LEAKS,
        *TRAINING,
        *COSTS,
        *([] if options.quick else [time_beside_others(protocol, trunk)]),
    ]
    if not spec.pretrains:
        checks = list(TRUNK_ALONE)
    values = ", ".join(
        f"{key} {value}" + (f" ({subject.hyperparameters[key]} in a run)" if key == spec.group else "")
        for key, value in subject.small.items()
    )
    title = (
        f"method {name} ({spec.origin}), {protocol.name}'s {trunk} of {subject.trunk.patches} patches"
        + (f", {subject.codebook_size:,} tokens" if spec.uses_tokens and spec.pretrains else "")
        + (f"; {values}" if values else "")
    )
    return Examination(title, examined(checks, subject))


def _tokenizer(name: str, protocol: Protocol, options: Namespace) -> Examination:
    """A tokenizer on a protocol's pre-training images, configured as there if the protocol names it."""
    from benchmark.conformance_tokenizer import TOKENIZER, TokenizerUnderTest
    from benchmark.data import open_part

    spec, data = tokenizer_spec(name), protocol.data
    listed = protocol.tokenizers.get(name)
    config = resolve_tokenizer(protocol, name)
    part = open_part(data.name, "pretraining", data.pretraining, data_root=options.data_root)
    subject = TokenizerUnderTest(spec, config, protocol, part, options.data_root)
    if spec.wanted_file(config) is not None and subject.build().needs_weights:  # which names what is missing
        raise HarnessError(f"tokenizer {name} has no weights yet; give --data-root DIR")
    where = f"as {protocol.name} configures it" if listed is not None else "at its own defaults"
    title = f"tokenizer {name} ({_origin(spec)}), {where}, on images of {data.name}"
    return Examination(title, examined(TOKENIZER, subject))


def _data_set(name: str, protocol: Protocol, options: Namespace) -> Examination:
    """A data set, whole."""
    from benchmark.conformance_data import DATA, DataSetUnderTest

    subject = DataSetUnderTest(name, options.data_root)
    subject.open("train")  # HarnessError if it is not there at all
    plugin = registered_data_sets().get(name)
    origin = f" ({plugin.origin})" if plugin else ""
    return Examination(f"data set {name}{origin}", examined(DATA, subject))


def _origin(spec: object) -> str:
    return str(getattr(spec, "origin", "built in"))


def _lines(finding: Finding) -> str:
    """A finding as it is printed: the status, what was found, and below it a table or the remedy."""
    words, _, table = finding.found.partition("\n")
    first = finding.status.ljust(INDENT)
    text = paragraph(f"{finding.what}: {words}", first=first, rest=" " * INDENT)
    if table:
        text += "".join(f"\n{' ' * INDENT}{line}" for line in table.splitlines())
    if not finding.remedy:
        return text
    return f"{text}\n{paragraph(finding.remedy, first=f'{chr(32) * INDENT}-> ', rest=' ' * (INDENT + 3))}"
