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
from benchmark.plugin_hints import check_recorded_plugins
from benchmark.runtime import CHECKPOINT_SECONDS
from benchmark.selection import Selection, select
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
    ):
        parser.add_argument(flag, nargs="+", default=["all"], metavar="NAME", help=f"{what} (default: all)")
    parser.add_argument(
        "--evaluations",
        nargs="+",
        metavar="NAME",
        help="what to measure; all: whatever the protocol has (default: the protocol's defaults)",
    )
    parser.add_argument(
        "--views",
        nargs="+",
        metavar="NAME",
        help="tables and studies whose cells to take; all: each of them; none: every combination of the "
        "names above (default: the protocol's, and tables of evaluations that are named)",
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


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """--plugin, which every command has."""
    parser.add_argument(
        "--plugin",
        action="extend",
        nargs="+",
        default=[],
        metavar="PLUGIN",
        help="methods, tokenizers, data sets and protocols of your own: a .py file, or a folder of them",
    )


def plugins_in(given: Sequence[str]) -> list[str]:
    """What follows --plugin among the words of a command, whose other options are not looked at."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_plugins(parser)
    try:
        found: list[str] = parser.parse_known_args(list(given))[0].plugin
    except argparse.ArgumentError:
        return []  # --plugin without a word after it: the command's own parser says so
    return found


def add_runtime(parser: Parser) -> None:
    """How cells run: what moves no number, but for the arithmetic of the device and the precision."""
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: GPUs if any")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast (default: fp32)"
    )
    add_step_choices(parser)
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="data-loading processes for each process of a cell (default: 0)",
    )
    parser.add_argument(
        "--images",
        choices=["auto", "packed", "files"],
        default="auto",
        help="where pre-training reads pixels; auto: packed images if there are any (see pack)",
    )
    parser.add_argument(
        "--accumulation",
        type=int,
        metavar="N",
        help="micro-batches that make up a process's share of a global batch (default: as memory asks)",
    )
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=CHECKPOINT_SECONDS,
        metavar="S",
        help=f"seconds between checkpoints (default: {CHECKPOINT_SECONDS:.0f})",
    )


def add_step_choices(parser: Parser) -> None:
    """How a training step is computed (benchmark/step_choices.py)."""
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile what runs once per block, once in each process; eager where there is no compiler",
    )
    parser.add_argument(
        "--activation-checkpointing",
        action="store_true",
        help="compute blocks again in the backward pass: less memory, more time, the same numbers",
    )


def add_spread(parser: Parser) -> None:
    """How a run's cells are spread over the machine."""
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="processes side by side (default: one per GPU, or per core)"
    )
    parser.add_argument(
        "--gpus-per-cell",
        type=int,
        metavar="N",
        help="processes that share a cell, each with a GPU (default: as many as its memory needs)",
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm"],
        help="none: one process a cell; pytorch: torchrun for cells of several; slurm: see --cluster",
    )


def check_runtime(options: Namespace) -> None:
    """HarnessError for a number of `add_runtime` that makes no sense."""
    check_least(
        ("--workers", options.workers, 0),
        ("--checkpoint-seconds", options.checkpoint_seconds, 0),
        ("--accumulation", options.accumulation, 1),
        ("--jobs", getattr(options, "jobs", None), 1),
        ("--gpus-per-cell", getattr(options, "gpus_per_cell", None), 1),
    )


def check_least(*numbers: tuple[str, float | None, int]) -> None:
    """HarnessError for the first (flag, given, least) that is given as less than its least, or no number."""
    for flag, given, least in numbers:
        if given is not None and not least <= given < float("inf"):
            raise HarnessError(f"{flag} must be {least} or more, got {given:g}")


def read_selection(options: Namespace) -> tuple[Protocol, Selection]:
    """The protocol, with what --set changes, and the cells that the options choose of it."""
    protocol = load_protocol(options.protocol, overrides=options.set)
    methods, tokenizers = _names("--methods", options.methods), _names("--tokenizers", options.tokenizers)
    try:
        selection = select(
            protocol,
            methods=methods,
            tokenizers=tokenizers,
            trunks=_names("--trunks", options.trunks),
            evaluations=None if options.evaluations is None else _names("--evaluations", options.evaluations),
            views=None if options.views is None else _names("--views", options.views),
            seeds=None if options.seeds is None else _seeds(options.seeds),
        )
    except HarnessError:
        check_recorded_plugins(protocol.name, options.work_dir, methods=methods, tokenizers=tokenizers)
        raise
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
