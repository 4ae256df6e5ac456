"""`run_benchmark.py --protocol P`: run what is not done yet, then show the board."""

from __future__ import annotations

import sys
from argparse import Namespace

from benchmark.commands.board import show_board
from benchmark.commands.deviations import idle_lines, planned
from benchmark.commands.options import Parser, add_protocol, add_selection, read_selection
from benchmark.execute import Stopped, execute
from benchmark.layout import check_work_dir
from benchmark.plan import mark_modified
from benchmark.preflight import check_batches, check_images, check_inputs, world_size
from benchmark.progress import choose_display
from benchmark.runtime import CHECKPOINT_SECONDS, detect_runtime
from benchmark.survey import survey
from protocols import load_protocol
from protocols.errors import HarnessError

SUMMARY = "run what is not done yet, then show the board (needs no name)"
DESCRIPTION = """\
Pre-train and evaluate objectives under one shared protocol, and show the
board. The same command again goes on where it stopped.

other commands, each with its own --help:
  plan        what a command would run, in which order, at what cost
  status      which cells are done, failed, stale, running or to do
  tokenize    token stores alone, in one or many processes
  verify      is a token store whole, and do its images give its tokens?
  report      the board again, from the records alone
  gallery     image patches that carry a code, from a token store
  explain     every value of a protocol, and who says so
  list        protocols, methods, tokenizers, trunks, evaluations, views
  fork, lock  a protocol of your own; release one
  completion  completion of commands, options and names for a shell

examples:
  python run_benchmark.py --protocol mini --methods all
  python run_benchmark.py --protocol mini --methods mim mapet --seeds 0 1 2
  python run_benchmark.py --protocol mini --set pretraining.peak_lr=1e-3
  python run_benchmark.py plan --protocol fair300 --methods all

exit codes: 0 all done; 1 some cell failed; 2 usage, or something is missing;
3 the protocol would be violated, or differs from its lock; 130 and 143
interrupted
"""
DONE, FAILED = 0, 1


def add_arguments(parser: Parser) -> None:
    """Which cells, and how to run them."""
    add_protocol(parser)
    add_selection(parser)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: GPUs if any")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast (default: fp32)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="data-loading processes for each cell (default: 0)",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="cells side by side (default: one per GPU, or per core)"
    )
    parser.add_argument(
        "--accumulation", type=int, default=1, metavar="N", help="micro-batches that make up a global batch"
    )
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=CHECKPOINT_SECONDS,
        metavar="S",
        help=f"seconds between checkpoints (default: {CHECKPOINT_SECONDS:.0f})",
    )
    parser.add_argument("--redo-failed", action="store_true", help="run failed cells again")
    parser.add_argument("--redo-stale", action="store_true", help="run stale cells again (see status)")
    parser.add_argument("--quiet", action="store_true", help="show the board alone")


def run(options: Namespace) -> int:
    """Check everything, run, show the board."""
    for flag, given, least in (
        ("--workers", options.workers, 0),
        ("--checkpoint-seconds", options.checkpoint_seconds, 0),
        ("--accumulation", options.accumulation, 1),
        ("--jobs", options.jobs, 1),
    ):
        if given is not None and not least <= given < float("inf"):
            raise HarnessError(f"{flag} must be {least} or more, got {given:g}")
    protocol, selection = read_selection(options)
    plan = planned(protocol, selection, given=options.protocol)
    if options.set:
        original = load_protocol(options.protocol)
        if protocol.deviations:
            plan = mark_modified(plan, original, selection)
        for line in idle_lines(options, original, selection):
            print(line, file=sys.stderr)
    runtime = detect_runtime(
        device=options.device,
        workers=options.workers,
        precision=options.precision,
        jobs=options.jobs,
        processes=world_size(),
        accumulation=options.accumulation,
        checkpoint_seconds=options.checkpoint_seconds,
    )
    check_batches(plan, protocol, runtime)
    check_work_dir(options.work_dir)
    states = survey(plan, protocol, options.work_dir, data_root=options.data_root)
    check_inputs(states, protocol)
    check_images(plan, protocol)
    stale = [one for one in states if one.state == "stale"]
    try:
        with choose_display(
            quiet=options.quiet, work_dir=options.work_dir, protocol=protocol.name
        ) as display:
            records = execute(
                plan,
                protocol,
                runtime,
                options.work_dir,
                display=display,
                redo_failed=options.redo_failed,
                redo_stale=options.redo_stale,
                stale={one.cell.id for one in stale},
                data_root=options.data_root,
            )
    except Stopped as stopped:
        print(
            f"\nstopped by {stopped}; nothing that was finished is lost.\n"
            "The same command goes on from here.",
            file=sys.stderr,
        )
        return stopped.exit_code
    show_board(options.work_dir, load_protocol(options.protocol))
    left = survey(plan, protocol, options.work_dir, data_root=options.data_root)
    stale = [one for one in left if one.state == "stale"]
    if stale:
        print(
            f"{len(stale)} of {len(plan)} cells are stale (status says why); --redo-stale runs them again",
            file=sys.stderr,
        )
    failed = [record for record in records if record.status != "done"]
    if failed:
        print(
            f"{len(failed)} of {len(records)} cells did not succeed; --redo-failed tries them again",
            file=sys.stderr,
        )
    return FAILED if failed else DONE
