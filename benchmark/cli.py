"""The command line: reads it, turns every user's mistake into a short message and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmark.data import open_part
from benchmark.execute import Stopped, execute
from benchmark.plan import make_plan, select
from benchmark.progress import choose_display
from benchmark.runtime import CHECKPOINT_SECONDS, detect_runtime
from methods import list_methods, method_spec
from protocols import list_protocols, load_protocol
from protocols.errors import HarnessError, unknown
from protocols.schema import Protocol
from tokenizers import list_tokenizers, tokenizer_spec

DONE, FAILED = 0, 1
MOST_SEED = 2**32 - 1
DESCRIPTION = """\
Pre-train and evaluate objectives under one shared protocol, and show the
board. Other commands: report, list.
"""
EPILOG = """\
examples:
  python run_benchmark.py --protocol mini --methods all
  python run_benchmark.py --protocol mini --methods mim mapet --seeds 0 1 2
  python run_benchmark.py report --protocol mini
  python run_benchmark.py list methods
  python run_benchmark.py --protocol mini --set pretraining.peak_lr=1e-3

The same command again goes on where it stopped, and shows the board when all
is done. --device auto takes the GPUs that there are.

exit codes: 0 all done; 1 some cell failed; 2 usage or missing input; 3 the
protocol would be violated; 130 and 143 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Tracebacks are for our mistakes, not for users'."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"run": _run, "report": _report, "list": _list}
    try:
        command = "run"
        if given and not given[0].startswith("-"):
            command = given.pop(0)
            if command not in commands:
                raise unknown("command", command, commands)
        return commands[command](given)
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough; what was to be kept is on disk.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        return HarnessError.exit_code
    except KeyboardInterrupt:
        return 130
    except Stopped as stopped:
        print(
            f"\nstopped by {stopped}; nothing that was finished is lost.\n"
            "The same command goes on from here.",
            file=sys.stderr,
        )
        return stopped.exit_code


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="run_benchmark.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_common(parser)
    _add_names(parser, "--methods", "objectives to run")
    _add_names(parser, "--tokenizers", "tokenizers whose tokens they predict")
    _add_names(parser, "--trunks", "trunks to train")
    _add_names(parser, "--evaluations", "what to measure")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="SLICE.FIELD=VALUE",
        help="change a protocol value to explore; such cells are marked modified and shown apart",
    )
    parser.add_argument("--seeds", nargs="+", metavar="N", help="seeds (default: the protocol's)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--checkpoint-seconds", type=float, default=CHECKPOINT_SECONDS, metavar="S")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--workers", type=int, default=0, help="data-loading processes for each cell")
    parser.add_argument("--jobs", type=int, help="cells side by side (default: one per GPU, or per core)")
    parser.add_argument("--redo-failed", action="store_true", help="run failed cells again")
    parser.add_argument("--quiet", action="store_true", help="show the board alone")
    options = parser.parse_args(arguments)
    if (
        options.workers < 0
        or options.checkpoint_seconds < 0
        or (options.jobs is not None and options.jobs < 1)
    ):
        raise HarnessError("--workers and --checkpoint-seconds must be 0 or more, --jobs 1 or more")
    protocol = load_protocol(options.protocol, overrides=options.set)
    selection = select(
        protocol,
        methods=_names(options.methods),
        tokenizers=_names(options.tokenizers),
        trunks=_names(options.trunks),
        evaluations=_names(options.evaluations),
        seeds=None if options.seeds is None else _seeds(options.seeds),
    )
    check_images(protocol)
    runtime = detect_runtime(
        device=options.device,
        workers=options.workers,
        precision=options.precision,
        jobs=options.jobs,
        checkpoint_seconds=options.checkpoint_seconds,
    )
    plan = make_plan(protocol, selection)
    with choose_display(quiet=options.quiet, work_dir=options.work_dir, protocol=protocol.name) as display:
        records = execute(
            plan, protocol, runtime, options.work_dir, display=display, redo_failed=options.redo_failed
        )
    _show_board(options.work_dir, load_protocol(options.protocol))
    failed = [record for record in records if record.status != "done"]
    if failed:
        print(
            f"{len(failed)} of {len(records)} cells did not succeed; --redo-failed tries them again",
            file=sys.stderr,
        )
    return FAILED if failed else DONE


def check_images(protocol: Protocol) -> None:
    """HarnessError, before anything runs, unless every image that the protocol names is there."""
    for name in ("pretraining", "training", "validation", "test"):
        open_part(protocol.data.name, name, getattr(protocol.data, name))


def _report(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="run_benchmark.py report", description="The board again, from the records alone."
    )
    _add_common(parser)
    parser.add_argument("--json", action="store_true", help="the board as JSON on standard output")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the board's files here instead")
    options = parser.parse_args(arguments)
    protocol = load_protocol(options.protocol)
    if not (options.work_dir / protocol.name / "cells").is_dir():
        raise HarnessError(
            f"no records of protocol {protocol.name} under {options.work_dir}; "
            f"make some with run_benchmark.py --protocol {protocol.name}"
        )
    _show_board(options.work_dir, protocol, out=options.out, as_json=options.json)
    return DONE


def _list(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run_benchmark.py list", description="What can be named.")
    kinds = ["protocols", "methods", "tokenizers", "trunks", "evaluations"]
    parser.add_argument("kind", choices=kinds)
    kind = parser.parse_args(arguments).kind
    if kind == "methods":
        rows = [(name, f"{method_spec(name).title}: {method_spec(name).paper}") for name in list_methods()]
    elif kind == "tokenizers":
        specs = [tokenizer_spec(name) for name in list_tokenizers()]
        rows = [(spec.name, f"{spec.summary}; teacher: {spec.teacher}") for spec in specs]
    elif kind == "protocols":
        rows = [(name, load_protocol(name).summary) for name in list_protocols()]
    else:
        protocols = [load_protocol(name) for name in list_protocols()]
        rows = [(name, f"protocol {each.name}") for each in protocols for name in getattr(each, kind)]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:{width}}  {text}")
    return DONE


def _show_board(
    work_dir: Path, protocol: Protocol, *, out: Path | None = None, as_json: bool = False
) -> None:
    # Imported late: pandas and matplotlib would slow down every command that needs no board.
    from leaderboard.report import write_report

    report = write_report(work_dir, protocol, out_dir=out)
    if as_json:
        print(report.json)
        return
    print(report.terminal)
    print(f"\npage: {os.path.relpath(report.paths['index.html'])}")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--protocol", required=True, help="a name (see list protocols) or a .yaml file")
    parser.add_argument(
        "--work-dir", type=Path, default=Path("runs"), help="where results go (default: runs)"
    )


def _add_names(parser: argparse.ArgumentParser, flag: str, what: str) -> None:
    parser.add_argument(flag, nargs="+", default=["all"], metavar="NAME", help=f"{what} (default: all)")


def _names(values: Sequence[str]) -> list[str]:
    """Space- or comma-separated names. Raises HarnessError if there are none."""
    names = [name for value in values for name in value.split(",") if name]
    if not names:
        raise HarnessError(f"{','.join(values)!r} names nothing; give at least one name, or all")
    return names


def _seeds(values: Sequence[str]) -> list[int]:
    names = _names(values)
    for name in names:
        if not (name.isascii() and name.isdecimal() and int(name) <= MOST_SEED):
            raise HarnessError(f"--seeds: {name!r} is not a whole number from 0 to {MOST_SEED}")
    return [int(name) for name in names]
