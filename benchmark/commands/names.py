"""`list`: what can be named."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from benchmark.commands.options import Parser
from benchmark.commands.text import paragraph
from methods import list_methods, method_spec
from protocols import list_protocols, load_protocol
from protocols.recipes import LinearProbe, NearestNeighbours, TokenClassification
from protocols.schema import Protocol
from tokenizers import list_tokenizers, tokenizer_spec

SUMMARY = "what can be named"
DESCRIPTION = """\
What can be named on the command line.

example:
  python run_benchmark.py list methods
"""
KINDS = ("protocols", "methods", "tokenizers", "trunks", "evaluations", "views")


def add_arguments(parser: Parser) -> None:
    """The kind of names."""
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))


def run(options: Namespace) -> int:
    """One line for each name."""
    kind = options.kind
    if kind == "methods":
        rows = [(name, f"{method_spec(name).title}: {method_spec(name).paper}") for name in list_methods()]
    elif kind == "tokenizers":
        specs = [tokenizer_spec(name) for name in list_tokenizers()]
        rows = [(spec.name, f"{spec.summary}; teacher: {spec.teacher}") for spec in specs]
    elif kind == "protocols":
        rows = [(name, load_protocol(name).summary) for name in list_protocols()]
    else:
        rows = _of_protocols(kind, [load_protocol(name) for name in list_protocols()])
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(paragraph(text, first=f"{name:{width}}  ", rest=" " * (width + 2)))
    return 0


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
