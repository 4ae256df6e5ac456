"""Turns what a stage gave back, or how it failed, into the cell's record."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from benchmark import provenance
from benchmark.imported import Imports, is_imported
from benchmark.layout import ATTEMPTS_NAME, cell_folder
from benchmark.plan import Cell
from benchmark.plugins import plugin_of
from benchmark.runtime import Runtime
from benchmark.survey import present_sources
from leaderboard.record import (
    Attempt,
    Compliance,
    Cost,
    DataUse,
    MethodUse,
    ProtocolUse,
    Record,
    TokenizerUse,
    read_record,
    write_record,
)
from methods import method_spec
from protocols.files import append_line
from protocols.schema import Protocol, slice_values
from tokenizers import list_tokenizers, tokenizer_spec

if TYPE_CHECKING:
    from benchmark.stage import StageResult

Outcome = Literal["done", "failed", "interrupted"]


def note_attempt(folder: Path, **event: str) -> None:
    """Append the start or the end of an attempt; a start without an end was killed."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    append_line(folder / ATTEMPTS_NAME, json.dumps({"at": at, **event}))


def read_attempts(folder: Path, *, ending: Outcome) -> tuple[Attempt, ...]:
    """All attempts at the cell so far, one that is still open as ending now, in `ending`.

    A line that was cut short, by a kill or a full disk, or damaged otherwise is passed over. A killed
    attempt's end is when the next one began.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        lines = (folder / ATTEMPTS_NAME).read_bytes().splitlines()
    except (FileNotFoundError, IsADirectoryError):
        return ()
    attempts: list[Attempt] = []
    started: str | None = None
    for line in lines:
        event = _event(line)
        if event is None:
            continue
        if event["event"] == "start":
            if started is not None:
                attempts.append(Attempt(started=started, ended=event["at"], outcome="interrupted"))
            started = event["at"]
        elif started is not None:
            attempts.append(Attempt(started=started, ended=event["at"], outcome=event["event"]))
            started = None
    if started is not None:
        attempts.append(Attempt(started=started, ended=now, outcome=ending))
    return tuple(attempts)


def _event(line: bytes) -> dict[str, Any] | None:
    """What a line says, None if that is not what `note_attempt` writes."""
    try:
        event = json.loads(line)
        datetime.fromisoformat(event["at"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return event if event.get("event") in ("start", *get_args(Outcome)) else None


def write_cell_record(
    cell: Cell,
    protocol: Protocol,
    runtime: Runtime,
    work_dir: Path,
    *,
    status: Literal["done", "failed", "skipped"],
    result: StageResult | None = None,
    sources: Mapping[str, str] | None = None,
    error: str | None = None,
    device: str = "",
    peak_memory_bytes: int | None = None,
    was_killed: bool = False,
    is_kept: bool = True,
) -> Record:
    """Build and write the record of `cell`; `was_killed` says that its process ended without a word.

    `sources` are the digests of the code that made it, by default of the code as it is. Without `is_kept`
    nothing is written: another process has the cell.
    """
    sources = present_sources() if sources is None else sources
    outcome: Outcome = "done" if status == "done" else "failed"
    folder = cell_folder(work_dir, protocol.name, cell.id)
    data = protocol.data
    deviations = _deviations(cell, protocol, work_dir)
    compliance = Compliance(status="modified" if deviations else "clean", deviations=deviations)
    resolved = resolved_values(cell, protocol)
    if is_imported(cell.method):
        resolved["checkpoint"], known = Imports(work_dir=work_dir, protocol=protocol.name).stated(cell)
        compliance = Compliance(status="imported", deviations=(*known, *deviations))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    record = Record(
        cell_id=cell.id,
        stage=cell.stage,
        protocol=ProtocolUse(name=protocol.name, version=protocol.version, slices=dict(cell.slices)),
        resolved=resolved,
        compliance=compliance,
        method=_method(cell, sources),
        tokenizer=_tokenizer(cell, protocol, work_dir, result, sources),
        trunk=cell.trunk,
        data_set=DataUse(
            name=result.data.data_set if result else data.name,
            part=result.data.name if result else "",
            n=len(result.data) if result else 0,
            digest=result.data.digest if result else "",
        ),
        seed=cell.seed,
        metrics=result.metrics if result else {},
        cost=Cost(
            wall_seconds=round(result.seconds, 3) if result else 0.0,
            images_seen=result.images_seen if result else 0,
            train_flops=result.train_flops if result else 0.0,
            peak_memory_bytes=memory if peak_memory_bytes is None else peak_memory_bytes,
            device=device,
        ),
        runtime=runtime.recorded(),
        environment=provenance.environment(),
        git=provenance.git_state(),
        parents=_parents(cell, protocol, work_dir),
        artefacts=result.artefacts if result else {},
        attempts=read_attempts(folder, ending="interrupted" if was_killed else outcome),
        status=status,
        error=error,
    )
    return write_record(folder, record) if is_kept else record


def resolved_values(cell: Cell, protocol: Protocol) -> dict[str, dict[str, Any]]:
    """Every value that moves this cell's numbers: its slices and its method's hyperparameters."""
    of_plugin = f"tokenizer:{cell.tokenizer}" if cell.tokenizer not in protocol.tokenizers else ""
    resolved = {
        name: dict(cell.hyperparameters if name == of_plugin else protocol.slice(name))
        for name, _ in cell.slices
    }
    if cell.pretraining:
        resolved["pretraining"] = slice_values(protocol.pretraining_with(dict(cell.pretraining)))
    if cell.stage != "tokenise":
        resolved["hyperparameters"] = dict(cell.hyperparameters)
    return resolved


def _deviations(cell: Cell, protocol: Protocol, work_dir: Path) -> tuple[str, ...]:
    """What of --set moved this cell: values of its own slices, its method's own, and its parents'.

    A cell that none of them touches has the id, and the record, that it has without --set.
    """
    if not cell.is_modified:
        return ()
    names = [name for name, _ in cell.slices]
    if cell.method is not None and cell.method in protocol.names("methods"):
        assert cell.trunk is not None
        names.append(f"method:{protocol.method_key(cell.method, cell.trunk)}")
    found = dict.fromkeys(protocol.deviations_of(names))
    for record in _parent_records(cell, protocol, work_dir).values():
        found |= dict.fromkeys(record.compliance.deviations if record else ())
    # A modified cell is never without a deviation: nothing may pass it off as clean.
    return tuple(found) or protocol.deviations


def _method(cell: Cell, sources: Mapping[str, str]) -> MethodUse | None:
    if cell.method is None:
        return None
    if is_imported(cell.method):
        return MethodUse(name=cell.method, source_digest="")
    spec = method_spec(cell.method)
    plugin = plugin_of(spec.origin)
    return MethodUse(
        name=cell.method,
        source_digest=sources[f"method:{cell.method}"],
        title=spec.title if plugin else "",
        plugin=plugin,
    )


def _tokenizer(
    cell: Cell, protocol: Protocol, work_dir: Path, result: StageResult | None, sources: Mapping[str, str]
) -> TokenizerUse | None:
    """As the stage or the parent says it; by name alone where there is no parent's record yet."""
    if cell.tokenizer is None:
        return None
    code = sources.get(f"tokenizer:{cell.tokenizer}", "")
    plugin = plugin_of(tokenizer_spec(cell.tokenizer).origin) if cell.tokenizer in list_tokenizers() else ""
    if cell.stage == "tokenise" and result is not None and result.tokenizer is not None:
        return result.tokenizer.model_copy(update={"source_digest": code, "plugin": plugin})
    if result is not None and result.tokenizer is not None:
        return result.tokenizer
    for record in _parent_records(cell, protocol, work_dir).values():
        if record is not None and record.tokenizer is not None:
            return record.tokenizer
    return TokenizerUse(name=cell.tokenizer, source_digest=code, plugin=plugin)


def _parents(cell: Cell, protocol: Protocol, work_dir: Path) -> dict[str, str]:
    records = _parent_records(cell, protocol, work_dir)
    return {name: record.artefact_digest if record else "" for name, record in records.items()}


def _parent_records(cell: Cell, protocol: Protocol, work_dir: Path) -> Mapping[str, Record | None]:
    return {name: read_record(cell_folder(work_dir, protocol.name, name)) for name in cell.parents}
