"""The commands of the command line: one module each, loaded when its command is called.

A module has SUMMARY (one line), DESCRIPTION (with examples), `add_arguments(parser)` and `run(options)`,
which returns the exit code.
"""

from __future__ import annotations

import importlib
from argparse import Namespace
from typing import Protocol as Interface
from typing import cast

from benchmark.commands.options import Parser

# In the order of the help. `run` needs no name: options alone mean it.
COMMANDS = {
    "run": "run",
    "plan": "plan",
    "pack": "pack",
    "tokenize": "tokenize",
    "data": "data",
    "doctor": "doctor",
    "check": "check",
    "verify": "verify",
    "validate": "validate",
    "convert": "convert",
    "status": "status",
    "report": "report",
    "compare": "compare",
    "bundle": "bundle",
    "merge": "merge",
    "track": "track",
    "gallery": "gallery",
    "patterns": "patterns",
    "explain": "explain",
    "list": "names",
    "fork": "fork",
    "lock": "lock",
    "cell": "cell",
    "completion": "completion",
}


class Command(Interface):
    """What a command's module offers."""

    SUMMARY: str
    DESCRIPTION: str

    def add_arguments(self, parser: Parser) -> None:
        """Declare the command's options."""
        ...

    def run(self, options: Namespace) -> int:
        """Do it; returns the exit code."""
        ...


def load_command(name: str) -> Command:
    """The module of the command called `name`, a key of COMMANDS."""
    return cast(Command, importlib.import_module(f"benchmark.commands.{COMMANDS[name]}"))
