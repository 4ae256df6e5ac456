"""`track`: curves and results of a work dir to TensorBoard or W&B, during a run or afterwards."""

from __future__ import annotations

import os
import select
import sys
import time
from argparse import SUPPRESS, Namespace

from benchmark.commands.options import Parser, add_protocol, check_asked_work_dir
from benchmark.file_lock import in_brackets, owner_of, try_lock
from benchmark.layout import TRACKING_NAME
from benchmark.metric_backends import check_backends, make_backend
from benchmark.metric_follower import Follower
from protocols import load_protocol
from protocols.errors import HarnessError

SUMMARY = "curves and results to TensorBoard or W&B, also afterwards"
DESCRIPTION = """\
Hand the metrics files of a work dir, and the results of cells that have ended,
to TensorBoard (event files under WORK_DIR/PROTOCOL/tracking/tensorboard) or to
Weights & Biases. Nothing is handed over twice; a cell that goes on from a
checkpoint keeps one curve. `run --track NAME` does the same beside a run.

examples:
  python run_benchmark.py track --protocol mini --to tensorboard
  python run_benchmark.py track --protocol mini --to wandb --follow

exit codes: 0 all is handed over; 1 a back-end failed; 2 usage, or a package
is missing
"""
GOOD, FAILED = 0, 1
POLL_SECONDS = 2.0
LOCK_NAME = ".lock"


def add_arguments(parser: Parser) -> None:
    """From where, to where."""
    add_protocol(parser)
    parser.add_argument("--to", nargs="+", required=True, metavar="NAME", help="tensorboard, wandb")
    parser.add_argument("--follow", action="store_true", help="go on until Ctrl-C, as the cells write")
    parser.add_argument("--until-input-ends", action="store_true", help=SUPPRESS)


def run(options: Namespace) -> int:
    """Hand over what is there; with --follow what comes, too."""
    names = check_backends(options.to)
    protocol = load_protocol(options.protocol)
    check_asked_work_dir(options.work_dir)
    folder = options.work_dir / protocol.name
    if not options.follow and not (folder / "cells").is_dir():
        raise HarnessError(
            f"no cells of protocol {protocol.name} under {options.work_dir}; name their folder with "
            "--work-dir"
        )
    kept = folder / TRACKING_NAME
    kept.mkdir(parents=True, exist_ok=True)
    with (kept / LOCK_NAME).open("a") as lock:
        if not try_lock(lock):
            owner = in_brackets(owner_of(kept / LOCK_NAME))
            raise HarnessError(f"another process{owner} hands over the cells of {folder}; end it first")
        followers = [
            Follower(folder, make_backend(name, folder=folder, protocol=protocol.name), warn=_warn)
            for name in names
        ]
        try:
            while True:
                is_last = not options.follow or (options.until_input_ends and _has_ended(POLL_SECONDS))
                for one in followers:
                    one.poll()
                if is_last:
                    break
                if not options.until_input_ends:
                    time.sleep(POLL_SECONDS)
        finally:
            for one in followers:
                one.close()
    return FAILED if any(one.failure for one in followers) else GOOD


def _has_ended(seconds: float) -> bool:
    """True once nobody holds the other end of standard input; waits so long for that."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1)


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
