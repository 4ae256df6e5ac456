"""`list`: what can be named."""

from __future__ import annotations

from argparse import Namespace

from benchmark.commands.options import Parser
from benchmark.commands.text import paragraph
from methods import list_methods, method_spec
from protocols import list_protocols, load_protocol
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
        protocols = [load_protocol(name) for name in list_protocols()]
        rows = [
            (name, f"protocol {each.name}" + (f": {each.views[name].title}" if kind == "views" else ""))
            for each in protocols
            for name in (each.views if kind == "views" else each.names(kind))
        ]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(paragraph(text, first=f"{name:{width}}  ", rest=" " * (width + 2)))
    return 0
