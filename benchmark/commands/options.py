"""Options that several commands share, and a parser whose errors are one line long."""

from __future__ import annotations

import argparse
import difflib
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from benchmark.layout import check_work_dir
from benchmark.plan import Selection, select
from protocols import list_protocols, load_protocol
from protocols.errors import HarnessError
from protocols.schema import Protocol

MOST_SEED = 2**32 - 1


class Parser(argparse.ArgumentParser):
    """argparse with errors that a user can act on, in the place of the whole usage."""

    def __init__(self, *, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but an unknown flag is named before one that it was meant for is missed."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        for given in args or ():
            name = given.partition("=")[0]
            if name.startswith("--") and name not in flags:
                close = difflib.get_close_matches(name, flags, n=1)
                self.error(f"unknown option {name}" + (f"; did you mean {close[0]}?" if close else ""))
        stray = self._stray_protocol(args or ()) if "--protocol" in flags else None
        if stray is not None:
            self.error(f"{stray!r} stands alone; did you mean --protocol {stray}?")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise HarnessError(f"{message} (see {self.prog} --help)")

    def _stray_protocol(self, given: Sequence[str]) -> str | None:
        """The first word that is no option's value and names a protocol."""
        room = 0
        for word in given:
            if word.startswith("-"):
                action = self._option_string_actions.get(word)
                takes = None if action is None else action.nargs
                room = 0 if action is None or takes == 0 else 1 if takes is None else len(given)
            elif room:
                room -= 1
            elif names_protocol(word):
                return word
        return None


def names_protocol(word: str) -> bool:
    """True for a protocol that comes with the harness, and for a protocol's file."""
    return word.lower() in list_protocols() or word.endswith((".yaml", ".yml"))


def protocol_argument(text: str) -> str:
    """The type of every argument that names a protocol: a folder is told from a file of that name."""
    if text.lower() not in list_protocols() and Path(text).is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r} is a folder, not a file; give a .yaml file, or one of {', '.join(list_protocols())}"
        )
    return text


def check_asked_work_dir(work_dir: Path) -> None:
    """HarnessError if `work_dir` cannot be one, for commands that only read: theirs may be read-only."""
    holder = work_dir
    while not holder.exists() and holder != holder.parent:
        holder = holder.parent
    if not holder.is_dir() or os.access(holder, os.W_OK | os.X_OK):
        check_work_dir(work_dir)


def add_protocol(parser: Parser) -> None:
    """--protocol and --work-dir."""
    parser.add_argument(
        "--protocol",
        required=True,
        type=protocol_argument,
        help="a name (see list protocols) or a .yaml file",
    )
    parser.add_argument(
        "--work-dir", type=Path, default=Path("runs"), help="where results are (default: runs)"
    )


def add_selection(parser: Parser) -> None:
    """The options that choose cells."""
    for flag, what in (
        ("--methods", "objectives"),
        ("--tokenizers", "tokenizers whose tokens they predict"),
        ("--trunks", "trunks to train"),
        ("--evaluations", "what to measure"),
    ):
        parser.add_argument(flag, nargs="+", default=["all"], metavar="NAME", help=f"{what} (default: all)")
    parser.add_argument(
        "--views",
        nargs="+",
        default=["all"],
        metavar="NAME",
        help="tables whose cells to take; none: every combination of the names above (default: all)",
    )
    parser.add_argument("--seeds", nargs="+", metavar="N", help="seeds (default: the protocol's)")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder that holds the data sets")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="SLICE.FIELD=VALUE",
        help="change a protocol value to explore; such cells are marked modified and shown apart",
    )


def read_selection(options: Namespace) -> tuple[Protocol, Selection]:
    """The protocol, with what --set changes, and the cells that the options choose of it."""
    protocol = load_protocol(options.protocol, overrides=options.set)
    selection = select(
        protocol,
        methods=_names("--methods", options.methods),
        tokenizers=_names("--tokenizers", options.tokenizers),
        trunks=_names("--trunks", options.trunks),
        evaluations=_names("--evaluations", options.evaluations),
        views=_names("--views", options.views),
        seeds=None if options.seeds is None else _seeds(options.seeds),
    )
    return protocol, selection


def _names(flag: str, values: Sequence[str]) -> list[str]:
    """Space- or comma-separated names. Raises HarnessError if there are none."""
    names = [name for value in values for name in value.split(",") if name]
    if not names:
        raise HarnessError(f"{flag}: {','.join(values)!r} names nothing; give at least one name, or all")
    return names


def _seeds(values: Sequence[str]) -> list[int]:
    names = _names("--seeds", values)
    for name in names:
        if not (name.isascii() and name.isdecimal() and int(name) <= MOST_SEED):
            raise HarnessError(f"--seeds: {name!r} is not a whole number from 0 to {MOST_SEED}")
    return [int(name) for name in names]
