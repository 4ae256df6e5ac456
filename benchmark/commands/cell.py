"""`cell`: one cell of a plan in this very process, or this process's share of it under a launcher."""

from __future__ import annotations

import os
import signal
import sys
from argparse import Namespace

from benchmark.cell_command import code_digest
from benchmark.commands.deviations import chosen_cells
from benchmark.commands.imports import with_known_imports
from benchmark.commands.options import (
    Parser,
    add_protocol,
    add_runtime,
    add_selection,
    check_least,
    check_runtime,
)
from benchmark.die_with_parent import die_with_parent
from benchmark.layout import check_work_dir
from benchmark.preflight import check_batches, check_inputs, world_size
from benchmark.runtime import detect_runtime
from benchmark.stopping import GOES_ON
from benchmark.survey import made_anew, present_sources, survey
from protocols.errors import HarnessError, unknown

SUMMARY = "one cell of a plan in this very process: what launchers and clusters start"
DESCRIPTION = """\
Run one cell, whose parents must be done, in this process; under torchrun, in
all of its processes together. Its id stands in `plan --json` and `status
--json`. Give the selection and the --set of the run that it belongs to.
A record is written however it ends; what is printed goes to the cell's log.

examples:
  python run_benchmark.py cell tokenise-k-pixel-0123456789ab --protocol mini
  torchrun --nproc-per-node 8 run_benchmark.py cell ID --protocol fair300 \\
      --data-root DIR --workers 8 --precision bf16

exit codes: 0 done; 1 failed, with a record that says why; 2 usage, or
something is missing; 3 the protocol would be violated; 75 another process
runs it; 129, 130 and 143 interrupted: the same command goes on
"""
# What a launcher of several machines, or of one, says of the process that it starts.
_TORCHRUN = "TORCHELASTIC_RUN_ID"


def add_arguments(parser: Parser) -> None:
    """Which cell, of which selection, and how to run it."""
    parser.add_argument("cell", metavar="CELL_ID", help="the cell's id (see plan --json)")
    add_protocol(parser)
    add_selection(parser)
    add_runtime(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of each process")
    parser.add_argument("--redo-stale", action="store_true", help="drop checkpoints of other code or parents")
    parser.add_argument("--code", metavar="DIGEST", help="refuse to run with other adapters' code than this")


def run(options: Namespace) -> int:
    """Find the cell and run it."""
    is_launched = _TORCHRUN in os.environ
    if is_launched:
        die_with_parent()
    check_runtime(options)
    check_least(("--threads", options.threads, 1))
    if options.code is not None and options.code != code_digest():
        raise HarnessError(
            "the code of methods or tokenizers is not that of the run which started this cell; start the run "
            "again, so that all of it goes on with one version"
        )
    protocol, selection, plan = chosen_cells(options)
    plan = with_known_imports(plan, options, protocol, selection)
    by_id = {cell.id: cell for cell in plan}
    if options.cell not in by_id:
        raise unknown(f"cell of this selection of protocol {protocol.name}", options.cell, by_id)
    cell = by_id[options.cell]
    processes = world_size()
    runtime = detect_runtime(
        device=options.device,
        workers=options.workers,
        precision=options.precision,
        jobs=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        processes=processes,
        accumulation=options.accumulation or 1,
        checkpoint_seconds=options.checkpoint_seconds,
        images=options.images,
        threads=options.threads,
        compile=options.compile,
        activation_checkpointing=options.activation_checkpointing,
    )
    check_work_dir(options.work_dir)
    (state,) = [one for one in survey(plan, protocol, options.work_dir, data_root=options.data_root)
                if one.cell.id == cell.id]  # fmt: skip
    if state.record is not None and state.state == "stale" and not options.redo_stale:
        raise HarnessError(f"{cell.id} is stale ({'; '.join(state.reasons)}); --redo-stale runs it again")
    check_batches([cell], protocol, runtime)
    check_inputs(made_anew([state], redo_failed=True, redo_stale=options.redo_stale), protocol)

    from benchmark.job import Job
    from benchmark.peers import hosting, launched, leave_together, local_rank
    from benchmark.process_group import leave
    from benchmark.worker import run_here

    job = Job(
        cell=cell,
        protocol=protocol,
        runtime=runtime,
        work_dir=options.work_dir,
        slot=local_rank(),
        sources=present_sources(),
        data_root=options.data_root,
        redo_stale=options.redo_stale,
        known=state.record,
    )
    with hosting():
        peers = launched()
        if state.state == "done":
            print(f"{cell.id} is done")
            # Another process may not have seen it yet.
            peers.of_cell(cell.id).end()
            code = 0
        else:
            terminal = os.dup(2)
            try:
                code = run_here(job, peers.of_cell(cell.id), is_alone=True)
            finally:
                os.dup2(terminal, 2)  # what was printed meanwhile is in the cell's log
            if code > 128:
                name = signal.Signals(code - 128).name
                print(f"\nstopped by {name}; {GOES_ON}", file=sys.stderr)
        if code == 0:
            # The work is done and recorded: a signal cannot make it undone.
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            leave_together(peers)
            leave()
    return code
