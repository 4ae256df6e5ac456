"""`run_benchmark.py --protocol P`: run what is not done yet, then show the board."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmark.cell_command import cell_arguments
from benchmark.cluster_file import load_cluster_file
from benchmark.commands.board import show_board
from benchmark.commands.deviations import chosen_cells, idle_lines
from benchmark.commands.imports import add_from_checkpoint, asked_imports
from benchmark.commands.options import (
    Parser,
    add_protocol,
    add_runtime,
    add_selection,
    add_spread,
    check_runtime,
)
from benchmark.commands.submit import (
    add_cluster,
    check_cluster,
    check_not_queued,
    cluster_runtime,
    submit,
)
from benchmark.commands.text import paragraph
from benchmark.execute import Placement, execute
from benchmark.layout import check_work_dir
from benchmark.measure_steps import measure_steps
from benchmark.placement import place_among_others
from benchmark.plan import Cell
from benchmark.preflight import preflight
from benchmark.progress import choose_display
from benchmark.runtime import Runtime, count_gpus, detect_runtime
from benchmark.step_costs import DamagedCosts, StepCosts, known_costs
from benchmark.survey import CellState, made_anew, refuse_damaged, survey
from benchmark.tracking import check_tracking, tracked
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.schema import Protocol

SUMMARY = "run what is not done yet, then show the board (needs no name)"
DESCRIPTION = """\
Pre-train and evaluate objectives under one shared protocol, and show the
board. The same command again goes on where it stopped.

other commands, each with its own --help:
  plan        what a command would run, in which order, at what cost
  status      which cells are done, failed, stale, running or to do
  doctor      check this machine: packages, GPUs, limits, disk, decoders
  data        is a data set whole? its manifest
  pack        decode the images of pre-training once, for all methods
  tokenize    token stores alone, in one or many processes
  verify      is a token store whole, and do its images give its tokens?
  check       a method, tokenizer or data set against its contract
  validate    a fine-tuned classifier from a file, measured as it is
  convert     weights as timm loads them, with a model card
  report      the board again, from the records alone
  compare     two rows, as checkpoints and as methods
  bundle      records and predictions in one file, for others to merge
  merge       another lab's records and predictions into this work dir
  track       curves and results to TensorBoard or W&B, also afterwards
  patterns    masks and attention masks of every method, drawn on an image
  gallery     image patches that carry a code, from a token store
  explain     every value of a protocol, and who says so
  list        protocols, methods, tokenizers, trunks, evaluations, views
  fork, lock  a protocol of your own; release one
  cell        one cell in this process: what launchers and clusters start
  completion  completion of commands, options and names for a shell

examples:
  python run_benchmark.py --protocol mini --methods all
  python run_benchmark.py --protocol mini --methods mim mapet --seeds 0 1 2
  python run_benchmark.py --protocol mini --set pretraining.peak_lr=1e-3
  python run_benchmark.py --protocol mini --from-checkpoint weights.safetensors
  python run_benchmark.py plan --protocol fair300 --methods all
  python run_benchmark.py --protocol fair300 --data-root DIR --workers 8 \\
      --precision bf16 --cluster cluster.yaml --dry-run

exit codes: 0 all done; 1 some cell failed; 2 usage, or something is missing;
3 the protocol would be violated, or differs from its lock; 130 and 143
interrupted
"""
DONE, FAILED = 0, 1


def add_arguments(parser: Parser) -> None:
    """Which cells, and how to run them."""
    add_protocol(parser)
    add_selection(parser)
    add_from_checkpoint(parser)
    add_runtime(parser)
    add_spread(parser)
    add_cluster(parser)
    parser.add_argument(
        "--manifest",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="manifests of data sets, where they do not lie beside the data (see data)",
    )
    parser.add_argument(
        "--track",
        nargs="+",
        metavar="NAME",
        help="show curves in tensorboard or wandb, optional packages (see track)",
    )
    parser.add_argument("--redo-failed", action="store_true", help="run failed cells again")
    parser.add_argument("--redo-stale", action="store_true", help="run stale cells again (see status)")
    parser.add_argument("--quiet", action="store_true", help="show the board alone")


def run(options: Namespace) -> int:
    """Check everything, run or submit, show the board."""
    check_runtime(options)
    check_cluster(options)
    backends = check_tracking(options)
    imports = asked_imports(options)
    protocol, selection, plan = chosen_cells(options) if imports is None else imports.chosen
    if options.set and imports is None:
        for line in idle_lines(options, load_protocol(options.protocol), selection):
            print(line, file=sys.stderr)
    cluster = None if options.cluster is None else load_cluster_file(options.cluster)
    runtime = _runtime(options) if cluster is None else cluster_runtime(options, cluster)
    check_work_dir(options.work_dir)
    if imports is not None and not options.dry_run:
        imports.keep(options.work_dir)
    states = made_anew(
        survey(plan, protocol, options.work_dir, data_root=options.data_root),
        redo_failed=options.redo_failed,
        redo_stale=options.redo_stale,
    )
    refuse_damaged(states)
    stale = [one for one in states if one.state == "stale"]
    if cluster is None:
        check_not_queued(options, protocol)
    gpus = count_gpus() if cluster is None else runtime.jobs

    def placed(cell: Cell, costs: StepCosts | None) -> Runtime:
        return place_among_others(cell, protocol, runtime, costs=costs, gpus=gpus)

    is_measured = cluster is None and runtime.device == "cuda"
    report = preflight(
        plan,
        protocol,
        runtime,
        options.work_dir,
        states,
        options.data_root,
        manifest=options.manifest,
        place=placed,
        costs=_known_costs(options, protocol, runtime, is_measured=is_measured),
        measure=partial(_measured, options, protocol, runtime, states) if is_measured else None,
    )
    placement = Placement(
        of=lambda cell: placed(cell, report.costs),
        words=lambda cell, one: cell_arguments(options, cell.id, one),
    )
    if not options.quiet:
        for line in report.lines():
            print(paragraph(line, rest="  "), file=sys.stderr)
    if cluster is not None:
        return submit(options, protocol, states, cluster, runtime_of=placement.of)
    with (
        tracked(backends, options, protocol),
        choose_display(quiet=options.quiet, work_dir=options.work_dir, protocol=protocol.name) as display,
    ):
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
            placement=placement,
        )
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


def _runtime(options: Namespace) -> Runtime:
    """This machine's. HarnessError if --launcher contradicts the other options."""
    several = options.gpus_per_cell
    if options.launcher == "slurm":
        raise HarnessError("--launcher slurm: give --cluster FILE.yaml, which says what to ask Slurm for")
    if options.launcher == "none" and several is not None and several > 1:
        raise HarnessError(
            f"--launcher none starts one process a cell, and --gpus-per-cell {several} asks for more; "
            "leave one of them out"
        )
    return detect_runtime(
        device=options.device,
        workers=options.workers,
        precision=options.precision,
        jobs=options.jobs,
        accumulation=options.accumulation or 1,
        checkpoint_seconds=options.checkpoint_seconds,
        images=options.images,
        gpus_per_cell=1 if options.launcher == "none" else several,
        compile=options.compile,
        activation_checkpointing=options.activation_checkpointing,
    )


def _known_costs(
    options: Namespace, protocol: Protocol, runtime: Runtime, *, is_measured: bool
) -> StepCosts | None:
    """What a step of each cell takes on such GPUs, as far as it was measured before."""
    if runtime.device == "cpu":
        return None
    try:
        return known_costs(options.work_dir, protocol.name, runtime)
    except DamagedCosts:
        if is_measured:
            return None  # measuring replaces the file, and says so
        raise


def _measured(
    options: Namespace, protocol: Protocol, runtime: Runtime, states: Sequence[CellState]
) -> StepCosts | None:
    """The same with what was not known measured here."""
    cells = [one.cell for one in states if one.state != "done"]

    def report(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr, flush=True)

    return measure_steps(cells, protocol, options.work_dir, runtime, report=report)
