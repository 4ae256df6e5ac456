"""One cell in a process of its own, or in several: log, lock, threads, and a record however it ends.

Of several processes the first one has the lock, measures and records; the others train, or encode, with it.
Exit codes: 0 done, 1 failed (recorded), 143 interrupted (nothing recorded: it goes on next time), 75
another process runs this cell, 74 a disk is full, read-only or broken (nothing recorded either).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import parent_process
from pathlib import Path
from typing import IO, Any

import torch

from benchmark import finetune, knn, pretrain, probe, provenance, token_classification, tokenise
from benchmark.allocator import keep_freed_memory
from benchmark.between_steps import TrainingDiverged
from benchmark.checkpoint import clear_checkpoints
from benchmark.die_with_parent import die_with_parent
from benchmark.disk_trouble import DISK, LAST_WORDS_VARIABLE, DiskTrouble, disk_trouble, say_last
from benchmark.file_lock import held_lock, in_brackets, is_in_place, owner_of
from benchmark.interrupt import Interrupted, StopFlag
from benchmark.job import Job
from benchmark.layout import BEGUN_NAME, CHECKPOINTS_NAME, LOCK_NAME, LOG_NAME
from benchmark.peers import CellEnded, Peers, launched
from benchmark.process_group import ShareDone, join
from benchmark.readers import named_readers
from benchmark.record_cell import note_attempt, write_cell_record
from benchmark.runtime import Runtime
from benchmark.stage import CellContext
from benchmark.survey import begun_with, changed_since_begun, present_sources
from leaderboard.record import RECORD_NAME, read_record
from protocols.errors import HarnessError
from protocols.files import remove_leftovers, write_atomically

STAGES = {
    "tokenise": tokenise.run,
    "pretrain": pretrain.run,
    "finetune": finetune.run,
    "linear-probe": probe.run,
    "knn": knn.run,
    "token-classification": token_classification.run,
}
LOCKED = 75
LOCK_SECONDS = 10.0
LAUNCHER_SECONDS = 2.0  # torchrun looks at its processes ten times a second
log = logging.getLogger(__name__)


class RunElsewhere(Exception):
    """Another process runs the cell, or may do so: nothing is recorded here."""


def run_job(job: Job) -> None:
    """Run the job's cell in this child process; always ends by SystemExit with the codes above."""
    _die_with_parent()
    # Processes of `tokenize` under a launcher share one after the other of its cells.
    sys.exit(run_here(job, launched().of_cell(job.cell.id) if job.runtime.processes > 1 else Peers()))


def run_here(job: Job, peers: Peers, *, is_alone: bool = False) -> int:
    """Run the job's cell, or this process's share of it, in this very process; returns the exit code.

    `is_alone` says that no other process of the harness started this one.
    """
    keep_freed_memory()
    context = CellContext(
        cell=job.cell,
        protocol=job.protocol,
        runtime=job.runtime,
        work_dir=job.work_dir,
        sources=job.sources,
        data_root=job.data_root,
        peers=peers,
    )
    outcry = os.dup(2) if is_alone else None
    try:
        return _run_locked(job, context, is_alone=is_alone)
    except RunElsewhere as error:
        # Not in the log: that is the other one's now.
        if outcry is not None:
            os.write(outcry, f"error: {error}\n".encode())
        return LOCKED
    except Exception as error:
        trouble = disk_trouble(error, context.folder)
        if trouble is None:
            raise
        _cry_out(trouble, job, outcry)
        return DISK


def _run_locked(job: Job, context: CellContext, *, is_alone: bool) -> int:
    """Run the job's cell under its lock, with all output in its log; returns the exit code."""
    peers = context.peers
    with cell_lock(context.folder) if peers.rank == 0 else nullcontext() as lock:
        if peers.rank == 0 and lock is None:
            peers.end()
            owner = owner_of(context.folder / LOCK_NAME)
            raise RunElsewhere(f"another process{in_brackets(owner)} runs {context.cell.id}")
        _redirect_output(context.folder / LOG_NAME, rank=peers.rank)
        try:
            if peers.rank == 0:
                record = read_record(context.folder)
                if record is not None and record.status == "done" and record != job.known:
                    log.info("another process has done this cell meanwhile")
                    return 0
                _clear_leftovers(context.folder)
                # An earlier failure's record must not pass for this attempt's.
                (context.folder / RECORD_NAME).unlink(missing_ok=True)
            context.stop.listen(is_alone=is_alone)
            return run_cell(context, slot=job.slot, redo_stale=job.redo_stale, lock=lock)
        except Interrupted as stopped:
            if peers.rank == 0:
                note_attempt(context.folder, event="interrupted")
            log.info("interrupted %s", stopped)
            return 128 + context.stop.number
        finally:
            if peers.rank == 0:
                peers.end()


def run_cell(
    context: CellContext, *, slot: int = 0, redo_stale: bool = False, lock: IO[Any] | None = None
) -> int:
    """Run one cell here and write its record; returns the exit code. Interrupted passes through.

    `lock` is the cell's own. Without it nothing is recorded: somebody else may run the cell by now.
    """
    cell, protocol, runtime, peers = context.cell, context.protocol, context.runtime, context.peers
    try:
        if peers.rank == 0:
            note_attempt(context.folder, event="start", pid=str(os.getpid()))
            _check_sources(context)
            check_begun(context, redo_stale=redo_stale)
        if cell.stage != "tokenise":
            # First of all: what another process records of its failure, the first one would have removed.
            peers.wait_for_all("ready")
        _prepare_device(runtime, slot)
        if cell.stage == "tokenise" and peers.rank:
            tokenise.assist(context)
            return 0
        if cell.stage != "tokenise":
            join(peers, device=runtime.device)
        with named_readers():
            result = STAGES[cell.stage](context)
        peak = torch.cuda.max_memory_allocated() if runtime.device == "cuda" else None
        device = torch.cuda.get_device_name() if peak is not None else provenance.environment()["cpu"]
        # A signal that comes now waits: the work is done, and its record is a moment away.
        with context.stop.deferred():
            _check_in_place(lock, context.folder)
            write_cell_record(
                cell,
                protocol,
                runtime.model_copy(update=context.ran),
                context.work_dir,
                status="done",
                result=result,
                sources=context.sources,
                device=device,
                peak_memory_bytes=peak,
            )
            clear_checkpoints(context.folder / CHECKPOINTS_NAME)
            note_attempt(context.folder, event="done")
            context.stop.close()
        return 0
    except ShareDone:
        # It stays: torchrun on its machine would leave soon after it, and take along, if it is the first
        # machine, the store that the others hold on to while the first process measures.
        log.info("this process has done its share")
        peers.wait_for_end()
        return 0
    except CellEnded as ended:
        log.info("this process has done its share: the cell ended %s", ended)
        return 0
    except Exception as error:
        _check_in_place(lock, context.folder)
        trouble = disk_trouble(error, context.folder)
        if trouble is not None:
            if peers.rank:
                peers.fail(str(trouble), is_of_disk=True)
            raise trouble from error
        # The one boundary: whatever went wrong in this cell is recorded, and the others go on.
        traceback.print_exc()
        # After a signal an error is that signal's doing: libraries that are no Python drop what it raises.
        context.stop.obey("by a signal, which became this error")
        # All its processes have read the same numbers; the first one says so.
        is_alike = isinstance(error, TrainingDiverged)
        if is_alike and peers.rank:
            peers.wait_for_end()
            return 1
        if peers.processes > 1 and not is_alike:
            _let_launcher_speak(context.stop)
        text = str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
        if peers.rank:
            peers.fail(text)
        elif not is_alike:
            peers.end()
        if peers.processes > 1 and not is_alike:
            if read_record(context.folder) is not None:
                return 1  # another process failed first, and this one of it
            text = f"process {peers.rank} of {peers.processes}: {text}"
        with context.stop.deferred():
            write_cell_record(
                cell,
                protocol,
                runtime,
                context.work_dir,
                status="failed",
                sources=context.sources,
                error=text[:2000],
            )
            note_attempt(context.folder, event="failed")
            context.stop.close()
        return 1


def _check_in_place(lock: IO[Any] | None, folder: Path) -> None:
    """RunElsewhere if the lock is no longer the one that others meet: what they make here is not ours."""
    if lock is not None and not is_in_place(lock):
        raise RunElsewhere(f"{folder} was deleted while its cell ran; the same command begins it again")


def _cry_out(trouble: DiskTrouble, job: Job, outcry: int | None) -> None:
    """Say what the disk did: in the log, if that can be, and to whoever started this process."""
    log.error("%s", trouble)
    say_last(job.last_words or os.environ.get(LAST_WORDS_VARIABLE, ""), str(trouble))
    # What the log has no room for must not fail the end of this process, and change its exit code.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    if outcry is not None:
        os.write(outcry, f"error: cell {job.cell.id} was ended by its disk: {trouble}\n".encode())


def _let_launcher_speak(stop: StopFlag) -> None:
    """Interrupted if another process of the cell was lost first: then its launcher ends this one, too.

    What failed here is that other one's doing, a broken connection, and no failure of the cell.
    """
    if stop.raised:
        stop.interrupt("with the other processes of its cell")
    time.sleep(LAUNCHER_SECONDS)


def check_begun(context: CellContext, *, redo_stale: bool) -> None:
    """A training goes on only with the code of its method, and on the parents, that it was begun with."""
    records = {name: context.record(name) for name in context.cell.parents}
    parents = {name: record.artefact_digest for name, record in records.items() if record is not None}
    now, checkpoints = begun_with(context.cell, context.sources, parents), context.folder / CHECKPOINTS_NAME
    changed = changed_since_begun(context.folder, now)
    if changed and not redo_stale:
        raise HarnessError(
            f"{changed}, and would end as neither the one nor the other; --redo-failed --redo-stale trains "
            "it again from its start, or restore what it was begun with to go on"
        )
    if changed:
        log.warning("%s: its checkpoints are dropped", changed)
        clear_checkpoints(checkpoints)
    write_atomically(checkpoints / BEGUN_NAME, json.dumps(now, indent=1) + "\n")


def _check_sources(context: CellContext) -> None:
    """The code on disk must be the code that this run began with: modules are loaded from either."""
    present = present_sources()
    used = (f"method:{context.cell.method}", f"tokenizer:{context.cell.tokenizer}")
    for name in used:
        if present.get(name) != context.sources.get(name):
            raise HarnessError(
                f"the code of {name.replace(':', ' ')} changed while this run was going on; start the "
                "command again with --redo-failed, so that the whole cell runs with one version of it"
            )


def cell_lock(folder: Path) -> AbstractContextManager[IO[Any] | None]:
    """Hold the cell's lock, which the kernel drops with its owner; a dying owner gets a few seconds.

    Gives None if another process keeps it.
    """
    return held_lock(folder / LOCK_NAME, seconds=LOCK_SECONDS)


def _clear_leftovers(folder: Path) -> None:
    """Remove what a kill left of half-written files (protocols/files.py). Under the cell's lock."""
    remove_leftovers(folder, older_than=0.0)


def _die_with_parent() -> None:
    """A killed harness must not leave cells training: they would write beside its next start.

    Nor must a killed fork server, whose cells the harness takes for ended, and starts again.
    """
    parent = parent_process()
    if parent is None:
        return
    die_with_parent()

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _redirect_output(log: Path, *, rank: int) -> None:
    """Everything that this process prints, C++ libraries included, goes to the cell's log."""
    log.parent.mkdir(parents=True, exist_ok=True)  # of several processes the first one need not be the first
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    who = f" process {rank}:" if rank else ""
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s{who} %(message)s", force=True)
    logging.captureWarnings(True)
    warnings.simplefilter("default")


def _prepare_device(runtime: Runtime, slot: int) -> None:
    torch.set_num_threads(runtime.threads)
    if runtime.device == "cuda":
        gpus = torch.cuda.device_count()
        # With one GPU in sight a launcher may have given each process its own.
        if runtime.processes > 1 and slot >= gpus > 1:
            raise HarnessError(
                f"process {slot} of this machine (LOCAL_RANK) has no GPU: {gpus} are visible; start as many "
                "processes on a machine as it has GPUs"
            )
        torch.cuda.set_device(slot % gpus)
