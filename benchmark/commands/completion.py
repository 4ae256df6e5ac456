"""`completion SHELL`: a script that completes commands, options and names."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import shtab

from benchmark.cli import build_parser
from benchmark.commands import COMMANDS, load_command
from benchmark.commands.options import Parser
from benchmark.data_sets import registered_data_sets
from benchmark.inputs import EMBEDDED_SETS, EXTERNAL_SETS
from benchmark.metric_backends import PACKAGES
from methods import list_methods
from protocols import list_protocols, load_protocol
from tokenizers import list_tokenizers

SUMMARY = "completion of commands, options and names for a shell"
DESCRIPTION = """\
Prints a script that completes commands, options and names of
./run_benchmark.py in a shell; names of plug-ins too if --plugin is given. Of
several names after one option, bash completes each, zsh and fish the first.

examples:
  source <(./run_benchmark.py completion bash)
  ./run_benchmark.py completion zsh > ~/.zfunc/_run_benchmark.py
"""
PROGRAM = "run_benchmark.py"
FOLDERS = ("work_dir", "data_root", "stores")


def add_arguments(parser: Parser) -> None:
    """For which shell."""
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)


def run(options: Namespace) -> int:
    """Print the script."""
    script: str = shtab.complete(_everything(), shell=options.shell)
    # For zsh, shtab writes a positional that may be repeated as one that stands once.
    print(script.replace('"(*):', '"*:'))
    return 0


def _everything() -> Parser:
    """One parser of all commands, with the names that their options take."""
    parser, names = build_parser("run"), _names()
    _add_names(parser, names)
    commands = parser.add_subparsers(parser_class=_parser_of)  # type: ignore[call-overload]
    for name in COMMANDS:
        command = commands.add_parser(name, help=load_command(name).SUMMARY)
        command.description = ""  # or its first line would be shown, and not the summary
        _add_names(command, names)
    return parser


def _parser_of(*, prog: str) -> Parser:
    """A command's parser, as argparse asks for one: by what is typed before it."""
    return build_parser(prog.split()[-1])


def _names() -> dict[str, list[str]]:
    """By option; the protocols are read once for all commands."""
    protocols = [load_protocol(name) for name in list_protocols()]

    def of_protocols(kind: str) -> list[str]:
        names = (protocol.views if kind == "views" else protocol.names(kind) for protocol in protocols)
        return sorted({name for each in names for name in each})

    tokenizers = sorted({*list_tokenizers(), *of_protocols("tokenizers")})
    data_sets = [*EMBEDDED_SETS, *EXTERNAL_SETS, *registered_data_sets()]
    of_all = {kind: of_protocols(kind) for kind in ("trunks", "evaluations", "views")}
    return {
        "protocol": list_protocols(),
        "data_set": data_sets,
        "methods": ["all", "all-known", *list_methods()],
        "tokenizers": ["all", *tokenizers],
        "name": [*list_methods(), *tokenizers, *data_sets],  # of `check`
        "trunk": of_all["trunks"],
        **{key: list(PACKAGES) for key in ("track", "to")},
        **{kind: ["all", *names] for kind, names in of_all.items()},
        "views": ["all", "none", *of_all["views"]],
    }


def _add_names(parser: Parser, names: dict[str, list[str]]) -> None:
    for action in parser._actions:
        if action.dest in names and action.choices is None:
            action.choices = names[action.dest]
        if action.dest in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.type is Path or action.dest in ("plugin", "from_checkpoint"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
