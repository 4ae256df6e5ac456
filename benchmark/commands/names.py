"""`list`: what can be named, and who brings it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from benchmark.commands.options import Parser
from benchmark.commands.text import paragraph, styled
from benchmark.data_sets import broken_data_sets, registered_data_sets
from benchmark.inputs import EMBEDDED_SETS, EXTERNAL_SETS, FOLDER_PREFIX
from methods import broken_methods, list_methods, method_spec
from protocols import list_protocols, load_protocol
from protocols.load import BUILT_IN, broken_protocols, protocol_origin
from protocols.recipes import LinearProbe, NearestNeighbours, TokenClassification
from protocols.schema import Protocol
from tokenizers import broken_tokenizers, list_tokenizers, tokenizer_spec

SUMMARY = "what can be named"
DESCRIPTION = """\
What can be named on the command line.

example:
  python run_benchmark.py list methods
"""
KINDS = ("protocols", "methods", "tokenizers", "trunks", "evaluations", "views", "data-sets")


def add_arguments(parser: Parser) -> None:
    """The kind of names."""
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))


def run(options: Namespace) -> int:
    """One line for each name; what plug-ins bring says so, and what cannot be had says why."""
    kind = options.kind
    rows, broken = _of_kind(kind)
    rows += [(name, "cannot be used", reason) for name, reason in broken.items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, origin, text in rows:
        first = f"{name:{widths[0]}}  " + (f"{origin:{widths[1]}}  " if widths[1] else "")
        print(styled(paragraph(text, first=first, rest=" " * len(first)), names=True))
    return 0


def _of_kind(kind: str) -> tuple[list[tuple[str, str, str]], dict[str, str]]:
    """(name, who brings it, what it is) of each, and reasons of what cannot be had."""
    if kind == "methods":
        methods = [method_spec(name) for name in list_methods()]
        return [(one.name, one.origin, f"{one.title}: {one.paper}") for one in methods], broken_methods()
    if kind == "tokenizers":
        specs = [tokenizer_spec(name) for name in list_tokenizers()]
        rows = [(one.name, one.origin, f"{one.summary}; teacher: {one.teacher}") for one in specs]
        return rows, broken_tokenizers()
    if kind == "data-sets":
        return _data_sets(), broken_data_sets()
    protocols = [load_protocol(name) for name in list_protocols()]
    if kind == "protocols":
        return [(one.name, protocol_origin(one.name), one.summary) for one in protocols], broken_protocols()
    return [(name, "", text) for name, text in _of_protocols(kind, protocols)], {}


def _data_sets() -> list[tuple[str, str, str]]:
    embedded = [(name, BUILT_IN, "comes with the repository") for name in EMBEDDED_SETS]
    external = [(name, BUILT_IN, f"under DATA_ROOT/{one.folder}") for name, one in EXTERNAL_SETS.items()]
    of_plugins = [
        (one.name, one.origin, f"{one.summary}; {one.licence}; under DATA_ROOT/{one.place}")
        for one in registered_data_sets().values()
    ]
    folders = (f"{FOLDER_PREFIX}NAME", BUILT_IN, "DATA_ROOT/NAME/train/CLASS and DATA_ROOT/NAME/test/CLASS")
    return [*embedded, *external, *of_plugins, folders]


def _of_protocols(kind: str, protocols: Sequence[Protocol]) -> list[tuple[str, str]]:
    """One entry for each name: what it is, and the protocols that mean this by it."""
    found: dict[str, dict[str, list[str]]] = {}
    for protocol in protocols:
        for name in protocol.views if kind == "views" else protocol.names(kind):
            found.setdefault(name, {}).setdefault(_meaning(kind, name, protocol), []).append(protocol.name)
    return [
        (name, "; ".join(f"{meaning} ({', '.join(where)})" for meaning, where in meanings.items()))
        for name, meanings in found.items()
    ]


def _meaning(kind: str, name: str, protocol: Protocol) -> str:
    if kind == "views":
        return protocol.views[name].title
    if kind == "trunks":
        trunk = protocol.trunks[name]
        return f"{trunk.width} wide, {trunk.depth} deep, patches of {trunk.patch_size}"
    recipe = protocol.evaluation(name, protocol.names("trunks")[0])
    if isinstance(recipe, TokenClassification):
        return "classification from the tokens alone, by " + (
            f"the trunk {recipe.trunk}" if recipe.trunk else "an MLP"
        )
    if isinstance(recipe, LinearProbe):
        return "linear probe of the frozen trunk" + (
            f" on {recipe.transfer_set}" if recipe.transfer_set else ""
        )
    if isinstance(recipe, NearestNeighbours):
        return f"the {recipe.neighbours} nearest neighbours by features of the frozen trunk"
    return "fine-tuning of all weights"
