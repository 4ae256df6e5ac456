"""The command line: finds the command, turns every user's mistake into a short message and an exit code."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

from benchmark.commands import COMMANDS, load_command
from benchmark.commands.options import Parser, add_plugins, names_protocol, plugins_in
from benchmark.disk_trouble import REMEDIES
from benchmark.plugins import plugins_loaded
from benchmark.stopping import Stopped, check_stopped, stopped_by_signals
from protocols.errors import HarnessError, shown, unknown

READER_GONE = 128 + signal.SIGPIPE  # what a shell shows of a program that this signal ends
PROGRAM = "run_benchmark.py"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Tracebacks are for our mistakes, and for --debug."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    is_debugging = "--debug" in given
    given = [one for one in given if one != "--debug"]
    try:
        name = "run"
        if given and not given[0].startswith("-"):
            name = given.pop(0)
            if name not in COMMANDS and names_protocol(name):
                raise HarnessError(f"{name!r} is no command but a protocol; did you mean --protocol {name}?")
            if name not in COMMANDS:
                raise unknown("command", name, COMMANDS)
        with stopped_by_signals():
            code = _run(name, given)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone, maybe before the work was at its end: not 0.
        return READER_GONE
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # what rich makes of it
            return READER_GONE
        raise
    except HarnessError as error:
        _explain(f"error: {error}", is_debugging)
        return error.exit_code
    except OSError as error:
        _explain(
            f"error: {error.filename or 'standard output'}: {error.strerror}; {_remedy(error)}", is_debugging
        )
        return HarnessError.exit_code
    except Stopped as stopped:
        stopped.say()
        return stopped.exit_code


def _run(name: str, given: Sequence[str]) -> int:
    """Run the command. An error after a signal is that signal's doing, however it got there.

    Libraries that are no Python drop what a handler raises, and call a file damaged instead.
    """
    try:
        # Before the words are looked at: they may name what plug-ins bring.
        with plugins_loaded(plugins_in(given)):
            command = load_command(name)
            code = command.run(build_parser(name).parse_args(given))
    except Exception:
        check_stopped()
        raise
    if 0 < code < 128:
        check_stopped()
    return code


def build_parser(name: str) -> Parser:
    """The parser of one command."""
    command = load_command(name)
    parser = Parser(prog=PROGRAM if name == "run" else f"{PROGRAM} {name}", description=command.DESCRIPTION)
    command.add_arguments(parser)
    # Read above, before any command is known; named here for the help.
    add_plugins(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _remedy(error: OSError) -> str:
    """What to do about an error of the file system that no command foresees."""
    remedies = REMEDIES | {
        errno.EISDIR: "a file belongs there: move the folder away",
        errno.ENOTDIR: "a folder belongs there, or above it: give another, or move the file away",
        errno.EACCES: "give yourself the permission, or another folder",
    }
    return remedies.get(error.errno or 0, "--debug shows where this happened")


def _explain(text: str, is_debugging: bool) -> None:
    with suppress(OSError):  # nobody reads it any more
        if is_debugging:
            traceback.print_exc()
        print(shown(text), file=sys.stderr)
