"""`explain PROTOCOL`: every value, and who says so; first those that no source fixes."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from benchmark.commands.options import Parser, protocol_argument
from benchmark.commands.text import count, paragraph
from protocols import load_protocol
from protocols.errors import HarnessError, nearest
from protocols.load import value_at
from protocols.lock import unlocked_slices
from protocols.schema import Protocol

SUMMARY = "every value of a protocol, and who says so"
DESCRIPTION = """\
Every value of a protocol with its source: first the assumed ones, which no
source fixes, with the reason and the alternatives; then all.

examples:
  python run_benchmark.py explain mini
  python run_benchmark.py explain fair300 evaluations.finetune
  python run_benchmark.py explain fair300 --json
"""


def add_arguments(parser: Parser) -> None:
    """Which protocol, and which part of it."""
    parser.add_argument(
        "protocol",
        type=protocol_argument,
        metavar="PROTOCOL",
        help="a name (see list protocols) or a .yaml file",
    )
    parser.add_argument("part", nargs="?", metavar="PART", help="only values under this name, such as data")
    parser.add_argument("--json", action="store_true", help="the values as JSON on standard output")


def run(options: Namespace) -> int:
    """Print the values."""
    protocol = load_protocol(options.protocol)
    values = explained(protocol)
    if options.part is not None:
        part = options.part.rstrip(".")
        values = [one for one in values if f"{one['path']}.".startswith(f"{part}.")]
        if not values:
            known = {path for one in explained(protocol) for path in _prefixes(one["path"])}
            raise HarnessError(
                f"protocol {protocol.name} has no values under {part!r}; {nearest(part, known)}"
            )
    unlocked = unlocked_slices(protocol)
    if options.json:
        print(json.dumps(_as_json(protocol, values, unlocked), indent=1, ensure_ascii=False))
        return 0
    assumed = [one for one in values if one["assumed"]]
    print(paragraph(f"{protocol.name}, version {protocol.version}: {protocol.summary.strip()}"))
    print(paragraph(f"digest {protocol.digest}, {_lock_state(protocol, unlocked)}") + "\n")
    if assumed:
        share = f"{len(assumed)} of {count(len(values), 'value')}"
        is_one = len(assumed) == 1
        verb, them = ("is", "it") if is_one else ("are", "them")
        print(paragraph(f"{share} {verb} assumed: no source fixes {them}."))
        print(_listed(assumed, with_source=True))
    else:
        print("None of the values is assumed: each has a source.")
    print(f"\nall {count(len(values), 'value')}, with their sources (assumed ones marked *)")
    print(_listed(values, with_source=False))
    if protocol.views and options.part is None:
        print("\nviews (tables; they are in no digest)")
        for name, view in protocol.views.items():
            print(paragraph(f"{name}: {view.title}", first="  ", rest="    "))
    return 0


def explained(protocol: Protocol) -> list[dict[str, Any]]:
    """One entry for each value, in the file's order: path, value, source, assumed, alternatives."""
    return [
        {
            "path": path,
            "value": _plain(value_at(protocol, path)),
            "source": source.source,
            "assumed": source.assumed,
            "alternatives": list(source.alternatives),
        }
        for path, source in protocol.sources.items()
    ]


def _as_json(protocol: Protocol, values: Sequence[dict[str, Any]], unlocked: Sequence[str]) -> dict[str, Any]:
    return {
        "name": protocol.name,
        "version": protocol.version,
        "summary": protocol.summary.strip(),
        "digest": protocol.digest,
        "slices": protocol.slices,
        "unlocked": list(unlocked),
        "values": list(values),
        "views": {name: view.model_dump(mode="json") for name, view in protocol.views.items()},
        "reported_cost": protocol.reported_cost and protocol.reported_cost.model_dump(mode="json"),
    }


def _lock_state(protocol: Protocol, unlocked: Sequence[str]) -> str:
    if not unlocked:
        return "locked"
    if len(unlocked) == len(protocol.slices):
        return "not released (no lock)"
    return f"locked but for {', '.join(unlocked)}"


def _listed(values: Sequence[dict[str, Any]], *, with_source: bool) -> str:
    """Grouped by what holds the value; one line for each value, with its source under it, or beside it.

    Under neighbours that share a source it stands once.
    """
    lines: list[str] = []
    group = None
    for one, following in zip(values, [*values, None][1:], strict=True):
        holder, field = _place(one["path"])
        if holder != group:
            lines += ["", f"{holder}"]
            group = holder
        value = "none" if one["value"] is None else _shown(one["value"])
        if with_source:
            lines.append(paragraph(f"{field} = {value}", first="  ", rest="      "))
            reason = _reason(one)
            if following is None or _reason(following) != reason or _place(following["path"])[0] != holder:
                lines.append(paragraph(reason, first="      ", rest="      "))
        else:
            mark = "*" if one["assumed"] else " "
            text = f"{field} = {value}" + ("" if one["assumed"] else f"  [{one['source']}]")
            lines.append(paragraph(text, first=f" {mark}", rest="      "))
    return "\n".join(lines)


def _place(path: str) -> tuple[str, str]:
    """What holds the value, and its name there; one of several trunks keeps its field: `epochs.vit-t`."""
    holder, _, field = path.rpartition(".")
    if holder.count(".") > 1 and holder.startswith(("methods.", "evaluations.")):
        holder, _, outer = holder.rpartition(".")
        field = f"{outer}.{field}"
    return holder, field


def _reason(one: dict[str, Any]) -> str:
    alternatives = ", ".join(_shown(each) for each in one["alternatives"])
    return str(one["source"]) + (f" (alternatives: {alternatives})" if alternatives else "")


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:size]) for size in range(1, len(parts) + 1)]
