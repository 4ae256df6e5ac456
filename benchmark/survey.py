"""Where every cell of a plan stands: read from records, locks and checkpoints, changing nothing. No torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmark.file_lock import owner_of, try_lock
from benchmark.imported import is_imported
from benchmark.inputs import Missing, missing_inputs
from benchmark.layout import BEGUN_NAME, CHECKPOINTS_NAME, LOCK_NAME, cell_folder, has_progress
from benchmark.metrics import newest_metrics
from benchmark.plan import Cell
from leaderboard.origins import read_origin
from leaderboard.record import PREDICTIONS_NAME, Record, all_faults, read_record
from leaderboard.staleness import stale_reasons
from methods import list_methods, method_spec
from protocols.errors import HarnessError
from protocols.schema import Protocol
from tokenizers import list_tokenizers, tokenizer_spec

State = Literal["done", "stale", "running", "resumable", "to do", "blocked", "failed", "damaged"]
STATES: tuple[State, ...] = (
    "done", "stale", "running", "resumable", "to do", "blocked", "failed", "damaged",
)  # fmt: skip

# Kept to go on from, or to read elsewhere: what is made from a pre-training takes its trunk alone.
READ_BY_NO_CELL = "checkpoints/method.safetensors"


@dataclass(frozen=True, kw_only=True)
class CellState:
    """One cell: `reasons` say why it is stale, blocked, failed or damaged.

    `missing` is what the cell itself lacks; a cell that only waits for its parents lacks nothing.
    `metrics` is the newest line of a training that runs or was interrupted.
    `is_merged`: its record came out of a bundle, and of its files the bundled ones alone are here.
    `lacking` is what a recorded cell would lack if it ran again: by parent, files of those that were merged.
    """

    cell: Cell
    state: State
    reasons: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()
    record: Record | None = None
    metrics: Mapping[str, Any] | None = None
    is_merged: bool = False
    lacking: Mapping[str, Missing] = field(default_factory=dict)


def present_sources() -> dict[str, str]:
    """`method:NAME` and `tokenizer:NAME` -> SHA-256 of the code as it is now."""
    sources = {f"method:{name}": method_spec(name).source_digest for name in list_methods()}
    return sources | {f"tokenizer:{name}": tokenizer_spec(name).source_digest() for name in list_tokenizers()}


def survey(
    plan: Sequence[Cell], protocol: Protocol, work_dir: Path, *, data_root: Path | None = None
) -> list[CellState]:
    """The state of every cell of `plan`, in its order.

    done       recorded, by the code as it is; also if it was merged from a bundle, without its weights
    stale      recorded, or begun, by other code of its method or tokenizer, or from a parent made anew since
    running    a process holds its lock
    resumable  interrupted, with a checkpoint to go on from
    to do      nothing of it is there; what it needs is, or will be
    blocked    it lacks something that no cell makes, or a cell that it needs is blocked, failed or damaged,
               or was merged without the files that it needs of it
    failed     recorded with an error
    damaged    its record cannot be read
    """
    records: dict[str, Record] = {}
    damaged: dict[str, str] = {}
    merged: set[str] = set()
    for cell in plan:
        try:
            record = read_record(cell_folder(work_dir, protocol.name, cell.id))
            if record is not None and read_origin(cell_folder(work_dir, protocol.name, cell.id)):
                merged.add(cell.id)
        except HarnessError as error:
            damaged[cell.id] = str(error)
            continue
        if record is not None:
            records[cell.id] = record
    sources = present_sources()
    stale = stale_reasons(records.values(), sources)
    states: dict[str, CellState] = {}
    for cell in plan:
        folder = cell_folder(work_dir, protocol.name, cell.id)
        record = records.get(cell.id)
        missing = tuple(missing_inputs(cell, protocol, data_root=data_root))
        lacking = _unbundled_files([states[name] for name in cell.parents], work_dir, protocol)
        if record is None or record.status == "skipped":
            missing += tuple(lacking.values())
        state, reasons = _state(cell, folder, record, damaged, stale, states, missing, sources, merged)
        is_open = state in ("running", "resumable", "stale") and record is None
        states[cell.id] = CellState(
            cell=cell,
            state=state,
            reasons=reasons,
            missing=() if state == "done" else missing,
            record=record,
            metrics=newest_metrics(folder) if is_open else None,
            is_merged=cell.id in merged,
            lacking=lacking,
        )
    return list(states.values())


def _state(
    cell: Cell,
    folder: Path,
    record: Record | None,
    damaged: Mapping[str, str],
    stale: Mapping[str, tuple[str, ...]],
    parents: Mapping[str, CellState],
    missing: Sequence[Missing],
    sources: Mapping[str, str],
    merged: Collection[str],
) -> tuple[State, tuple[str, ...]]:
    if cell.id in damaged:
        return "damaged", (damaged[cell.id],)
    if is_locked(folder):
        owner = owner_of(folder / LOCK_NAME)
        return "running", (f"by {owner}",) if owner else ()
    if record is not None and record.status == "done":
        lost = missing_artefacts(record, folder)
        if cell.id in merged:
            lost = [name for name in lost if name == PREDICTIONS_NAME]
        if lost:
            remedy = f"restore it, or delete the folder {folder} and run again"
            return "damaged", (f"{', '.join(lost)} is missing; {remedy}",)
        return ("stale", stale[cell.id]) if cell.id in stale else ("done", ())
    if record is not None and record.status == "failed":
        return "failed", ((record.error or "no reason was recorded").splitlines()[0],)
    if missing:
        return "blocked", tuple(one.what for one in missing)
    waiting = [parent for parent in cell.parents if parents[parent].state in ("blocked", "failed", "damaged")]
    if waiting:
        return "blocked", (f"needs {waiting[0]}, which is {parents[waiting[0]].state}",)
    if not has_progress(folder):
        return "to do", ()
    known = {name: parents[name].record for name in cell.parents}
    digests = {name: record.artefact_digest for name, record in known.items() if record is not None}
    changed = changed_since_begun(folder, begun_with(cell, sources, digests))
    stale_parents = [name for name in cell.parents if parents[name].state == "stale"]
    if not changed and stale_parents:
        changed = f"it was begun on its parent {stale_parents[0]}, which is stale"
    return ("stale", (changed,)) if changed else ("resumable", ())


def refuse_damaged(states: Sequence[CellState]) -> None:
    """HarnessError that names every record that cannot be used, with its remedy."""
    faults = [one.reasons[0] for one in states if one.state == "damaged" and one.record is None]
    if faults:
        raise HarnessError(all_faults(faults))


def missing_artefacts(record: Record, folder: Path) -> list[str]:
    """Files that the record names and that are not there; their bytes are checked where they are read."""
    work_dir = folder.parent.parent.parent
    return [
        name
        for name in record.artefacts
        if not ((work_dir if name.startswith("tokens/") else folder) / name).is_file()
    ]


def made_anew(
    states: Sequence[CellState], *, redo_failed: bool = False, redo_stale: bool = False
) -> list[CellState]:
    """`states` in which a recorded cell that a run makes anew misses what it would lack.

    The run removes its record first, and a merged one could not be made again. Parents that are themselves
    made anew bring their files; with `redo_stale` what was made from them follows.
    """
    new: set[str] = set()
    found = []
    for one in states:
        is_asked = (redo_failed and one.state == "failed") or (redo_stale and one.state == "stale")
        follows = redo_stale and one.state == "done" and not new.isdisjoint(one.cell.parents)
        if is_asked or follows or one.state in ("to do", "resumable"):
            new.add(one.cell.id)
        if one.cell.id in new and one.record is not None:
            lost = tuple(each for parent, each in one.lacking.items() if parent not in new)
            one = replace(one, missing=tuple(dict.fromkeys(one.missing + lost)))
        found.append(one)
    return found


def _unbundled_files(parents: Sequence[CellState], work_dir: Path, protocol: Protocol) -> dict[str, Missing]:
    """Files of a cell's parents that no bundle brings, by parent: a merged one has its record alone."""
    found = {}
    for parent in parents:
        folder = cell_folder(work_dir, protocol.name, parent.cell.id)
        lost = missing_artefacts(parent.record, folder) if parent.record and parent.is_merged else []
        lost = [name for name in lost if name != READ_BY_NO_CELL]
        if lost and parent.state in ("done", "stale"):
            found[parent.cell.id] = Missing(
                f"cell {parent.cell.id} was merged from a bundle that came without {', '.join(lost)}",
                "put the files there, as its makers have them (under the work dir, or in the cell's folder; "
                f"weights come in a bundle that was written with --weights), or delete {folder}: then this "
                "run makes the cell itself",
            )
    return found


def begun_with(cell: Cell, sources: Mapping[str, str], parents: Mapping[str, str]) -> dict[str, str]:
    """What a training of `cell` is begun with: digests of its method's code and of its parents' files."""
    # Of weights from elsewhere no code is known.
    has_code = cell.method is not None and not is_imported(cell.method)
    code = {f"method:{cell.method}": sources[f"method:{cell.method}"]} if has_code else {}
    return code | {f"parent:{parent}": parents[parent] for parent in cell.parents if parent in parents}


def changed_since_begun(folder: Path, now: Mapping[str, str]) -> str | None:
    """A sentence if the checkpoints in `folder` come from other code, or other parents, than `now`."""
    checkpoints = folder / CHECKPOINTS_NAME
    if not has_progress(folder):
        return None
    try:
        begun = json.loads((checkpoints / BEGUN_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError, IsADirectoryError):
        begun = None
    if not isinstance(begun, dict):
        path = checkpoints / BEGUN_NAME
        return f"it may have been begun with other code or parents ({path} is missing or damaged)"
    changed = [name for name, digest in now.items() if begun.get(name) != digest]
    if not changed:
        return None
    kind, _, name = changed[0].partition(":")
    return (
        f"it was begun with other code of method {name}"
        if kind == "method"
        else (f"it was begun on an earlier version of its parent {name}")
    )


def is_locked(folder: Path) -> bool:
    """True while a process runs the cell in `folder`."""
    try:
        lock = (folder / LOCK_NAME).open()
    except FileNotFoundError:
        return False
    with lock:
        return not try_lock(lock, shared=True)
