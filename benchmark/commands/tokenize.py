"""`tokenize`: fit tokenizers and store the tokens of a protocol's images, in one or many processes."""

from __future__ import annotations

import os
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.commands.card import card_text
from benchmark.commands.deviations import chosen_cells
from benchmark.commands.options import Parser, add_protocol, check_least
from benchmark.commands.text import width
from benchmark.die_with_parent import die_with_parent
from benchmark.disk_trouble import disk_trouble
from benchmark.encoding_progress import choose_phase_display
from benchmark.execute import POLL_SECONDS, Display, execute
from benchmark.file_lock import in_brackets, owner_of
from benchmark.layout import LOCK_NAME, cell_folder, check_work_dir
from benchmark.plan import Cell
from benchmark.preflight import check_inputs, check_parts, world_size
from benchmark.runtime import Runtime, detect_runtime
from benchmark.stopping import Stopped
from benchmark.survey import CellState, made_anew, present_sources, survey
from leaderboard.record import Record
from protocols.errors import HarnessError
from protocols.schema import Protocol
from tokenizers import list_tokenizers, tokenizer_spec

if TYPE_CHECKING:
    from benchmark.peers import Peers
    from benchmark.stage import CellContext

SUMMARY = "fit tokenizers and store the tokens of a protocol's images"
DESCRIPTION = """\
Make the token stores that a protocol needs, and nothing else: fit the
tokenizer or load its published weights, encode the images, print each store's
card. The same command again goes on where it stopped; `run` takes the stores
as they are.

Under a launcher every process encodes its share; the bytes are the same
whatever their number, on one kind of device.

examples:
  python run_benchmark.py tokenize --protocol mini
  python run_benchmark.py tokenize --protocol mini --tokenizers k-pixel --fit
  python run_benchmark.py tokenize --protocol fair300 --data-root DIR
  torchrun --nproc-per-node 8 run_benchmark.py tokenize --protocol fair300 \\
      --tokenizers vq-kd --data-root DIR --workers 8

exit codes: 0 all stores are made; 1 some was not; 2 usage, or something is
missing
"""
DONE, FAILED = 0, 1


def add_arguments(parser: Parser) -> None:
    """Which tokens, and how to make them."""
    add_protocol(parser)
    parser.add_argument(
        "--tokenizers", nargs="+", default=["all"], metavar="NAME", help="tokenizers (default: all)"
    )
    parser.add_argument(
        "--fit", action="store_true", help="only fit codebooks; the same command without it encodes"
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of data sets and weights")
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="PATH=VALUE",
        help="change a protocol value to explore; such cells are marked modified",
    )  # fmt: skip
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: GPUs if any")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="image-reading processes for each (default: 0)"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="cells side by side (default: one per GPU, or per core)"
    )
    parser.add_argument("--redo-failed", action="store_true", help="try failed cells again")
    parser.add_argument("--redo-stale", action="store_true", help="run stale cells again (see status)")
    parser.add_argument("--quiet", action="store_true", help="show the cards alone")
    parser.set_defaults(methods=["all"], trunks=["all"], evaluations=["all"], views=None, seeds=None)


def run(options: Namespace) -> int:
    """Check, make the stores, print their cards."""
    check_least(("--workers", options.workers, 0), ("--jobs", options.jobs, 1))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()  # torchrun, killed, must leave nobody who writes beside the next start
    protocol, _, plan = chosen_cells(options)
    plan = [cell for cell in plan if cell.stage == "tokenise"]
    processes = world_size()
    runtime = detect_runtime(
        device=options.device,
        workers=options.workers,
        jobs=1 if processes > 1 else options.jobs,
        processes=processes,
    )
    check_work_dir(options.work_dir)
    states = survey(plan, protocol, options.work_dir, data_root=options.data_root)
    redo_failed, redo_stale = options.redo_failed, options.redo_stale
    check_inputs(made_anew(states, redo_failed=redo_failed, redo_stale=redo_stale), protocol)
    check_parts(protocol)
    stale = {one.cell.id for one in states if one.state == "stale"} if options.redo_stale else set()
    broken = {} if options.fit else _broken(states, options.work_dir)
    for reason in broken.values():
        print(f"made again: {reason}", file=sys.stderr)
    redo = stale | set(broken)
    if processes == 1 and not options.fit:
        return _encode(options, protocol, plan, runtime, redo, peers=None)

    from benchmark.peers import hosting, launched, leave_together

    with hosting():
        peers = launched()
        if options.fit:
            done = {one.cell.id for one in states if one.state == "done"}
            code = _fit(options, protocol, [cell for cell in plan if cell.id not in done], runtime, peers)
        elif peers.rank:
            code = _assist(options, protocol, plan, runtime, peers)
        else:
            code = _encode(options, protocol, plan, runtime, redo, peers=peers)
            peers.end()
        if code in (DONE, FAILED):  # after a signal the others are ended by it too
            leave_together(peers)
    return code


def _broken(states: Sequence[CellState], work_dir: Path) -> dict[str, str]:
    """Done cells whose store is missing or not as it was written, each with what is wrong."""
    from tokenizers.store import MANIFEST_NAME, open_store

    found = {}
    for one in states:
        if one.record is None or one.record.status != "done":
            continue
        for path in (path for path in one.record.artefacts if path.endswith(f"/{MANIFEST_NAME}")):
            try:
                open_store((work_dir / path).parent)
            except HarnessError as error:
                found[one.cell.id] = str(error)
    return found


class _Announcing:
    """A display that also tells further processes which cells are over."""

    def __init__(self, display: Display, peers: Peers | None) -> None:
        self._display, self._peers = display, peers

    def running(self, cells: Sequence[Cell], finished: int, total: int) -> None:
        self._display.running(cells, finished, total)

    def ended(self, cell: Cell, record: Record) -> None:
        self._display.ended(cell, record)
        if self._peers is not None:
            self._peers.of_cell(cell.id).end()


def _encode(
    options: Namespace,
    protocol: Protocol,
    plan: Sequence[Cell],
    runtime: Runtime,
    redo: set[str],
    *,
    peers: Peers | None,
) -> int:
    known = {one.cell.id for one in survey(plan, protocol, options.work_dir) if one.state == "failed"}
    try:
        with choose_phase_display(
            quiet=options.quiet, work_dir=options.work_dir, protocol=protocol.name
        ) as display:
            records = execute(
                plan,
                protocol,
                runtime,
                options.work_dir,
                display=_Announcing(display, peers),
                redo_failed=options.redo_failed,
                redo_stale=bool(redo),
                stale=redo,
                data_root=options.data_root,
            )
    except Stopped as stopped:
        print(
            f"\nstopped by {stopped}; a codebook that was fitted and shards that were encoded are kept. The "
            "same command goes on from here.",
            file=sys.stderr,
        )
        return stopped.exit_code
    for record in records:
        if record.status == "done":
            print(card_text(record, width=width()) + "\n")
    failed = [record for record in records if record.status != "done"]
    for record in failed:
        is_old = record.cell_id in known and not options.redo_failed
        earlier = ", earlier and not tried again" if is_old else ""
        print(f"{record.cell_id} {record.status}{earlier}: {record.error}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed)} of {len(records)} stores were not made; --redo-failed tries them again",
            file=sys.stderr,
        )
    left = survey(plan, protocol, options.work_dir, data_root=options.data_root)
    if any(one.state == "stale" for one in left):
        print("some stores are stale (status says why); --redo-stale makes them again", file=sys.stderr)
    return FAILED if failed else DONE


def _assist(
    options: Namespace, protocol: Protocol, plan: Sequence[Cell], runtime: Runtime, peers: Peers
) -> int:
    """A further process: helps with every cell that the first one begins, until all are over."""
    from benchmark import tokenise

    waiting = {cell.id: cell for cell in plan}
    while not peers.has_ended():
        for cell in list(waiting.values()):
            of_cell = peers.of_cell(cell.id)
            if of_cell.has_ended():
                del waiting[cell.id]
            elif of_cell.has_begun():
                del waiting[cell.id]
                try:
                    tokenise.assist(_context(options, protocol, cell, runtime, of_cell))
                except Exception as error:
                    trouble = disk_trouble(error, cell_folder(options.work_dir, protocol.name, cell.id))
                    text = str(trouble) if trouble else f"{type(error).__name__}: {error}"
                    of_cell.fail(text, is_of_disk=trouble is not None)
                    raise
        time.sleep(POLL_SECONDS)
    return DONE


def _fit(options: Namespace, protocol: Protocol, plan: Sequence[Cell], runtime: Runtime, peers: Peers) -> int:
    """Only codebooks, in this very process; what is fitted waits in each cell's folder."""
    from benchmark import tokenise
    from benchmark.encoding import DamagedImages
    from benchmark.peers import CellEnded
    from benchmark.worker import cell_lock, check_begun

    if not plan:
        print("nothing to fit: these stores are made")
        return DONE
    fitted_here = {name for name in list_tokenizers() if tokenizer_spec(name).published is None}
    cells = [cell for cell in plan if cell.part is None and cell.tokenizer in fitted_here]
    if not cells:
        raise HarnessError(
            "there is nothing to fit: what is left to make comes with published weights, or with a codebook "
            "that another cell fits; leave --fit away"
        )
    for cell in cells:
        context = _context(options, protocol, cell, runtime, peers.of_cell(cell.id))
        context.folder.mkdir(parents=True, exist_ok=True)
        with cell_lock(context.folder) if peers.rank == 0 else nullcontext() as lock:
            if peers.rank == 0 and lock is None:
                other = f"another process{in_brackets(owner_of(context.folder / LOCK_NAME))}"
                raise HarnessError(f"{context.folder}: {other} works on this cell; wait for it")
            try:
                if peers.rank == 0:
                    check_begun(context, redo_stale=options.redo_stale)
                with _watched(options, protocol, cell, is_shown=peers.rank == 0):
                    path = tokenise.fit(context)
            except CellEnded:
                continue
            except DamagedImages as error:
                context.peers.end()
                if peers.rank == 0:
                    print(f"error: {error}", file=sys.stderr)
                return FAILED
            except Exception as error:
                context.peers.fail(f"{type(error).__name__}: {error}")
                raise
        if peers.rank == 0:
            print(f"{cell.row}: codebook in {path}; the same command without --fit encodes with it")
    return DONE


@contextmanager
def _watched(options: Namespace, protocol: Protocol, cell: Cell, *, is_shown: bool) -> Iterator[None]:
    """Show the progress of `cell`, which this very process runs meanwhile."""
    over = threading.Event()
    with choose_phase_display(
        quiet=options.quiet or not is_shown, work_dir=options.work_dir, protocol=protocol.name
    ) as display:

        def watch() -> None:
            while not over.wait(POLL_SECONDS):
                display.running([cell], 0, 1)
            display.running([cell], 0, 1)

        display.running([cell], 0, 1)
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def _context(
    options: Namespace, protocol: Protocol, cell: Cell, runtime: Runtime, peers: Peers
) -> CellContext:
    import torch

    from benchmark.peers import local_rank
    from benchmark.stage import CellContext

    torch.set_num_threads(runtime.threads)
    if runtime.device == "cuda":
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    return CellContext(
        cell=cell,
        protocol=protocol,
        runtime=runtime,
        work_dir=options.work_dir,
        data_root=options.data_root,
        sources=present_sources(),
        peers=peers,
    )
