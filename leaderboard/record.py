"""`record.json`: the one place where a cell's status and results stand. Atomic write, strict read."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from protocols.errors import HarnessError
from protocols.files import write_atomically
from protocols.frozen import Frozen, NonNegativeFloat, NonNegativeInt, PositiveInt, digest_of

SCHEMA_VERSION = 1
RECORD_NAME = "record.json"
PREDICTIONS_NAME = "predictions.npz"
MAX_RECORD_BYTES = 4 * 1024 * 1024
MOST_FAULTS = 20


class ProtocolUse(Frozen):
    """The protocol and the digest of every slice that moved this cell's numbers."""

    name: str
    version: PositiveInt
    slices: dict[str, str]


class Compliance(Frozen):
    """`clean` cells may be ranked; `deviations` says what a modified or imported cell changed."""

    status: Literal["clean", "modified", "imported"]
    deviations: Annotated[tuple[str, ...], Field(strict=False)] = ()


class MethodUse(Frozen):
    """`plugin` is the file, without its folder, or the distribution that brought it; empty of a built-in one.

    `title` is how such a method calls itself.
    """

    name: str
    source_digest: str
    title: str = ""
    plugin: str = ""


class TokenizerUse(Frozen):
    """`digest` identifies the fitted weights; `teacher` says how the feature network was trained.

    `plugin` is what brought it, as for a method.
    """

    name: str
    digest: str | None = None
    source_digest: str = ""
    teacher: str = ""
    plugin: str = ""


class DataUse(Frozen):
    """The images that the metrics were measured on (or that the stage read): count and digest of pixels."""

    name: str
    part: str
    n: NonNegativeInt
    digest: str


def plugin_words(plugins: Iterable[str]) -> list[str]:
    """What a command needs so that it knows what these `plugin`s of records brought: `--plugin ring_mim.py`.

    Of a file in a folder, the folder; nothing for a distribution, which is found where it is installed.
    """
    files = dict.fromkeys(one.rpartition("/")[0] or one for one in plugins if one.endswith(".py"))
    return ["--plugin", *files] if files else []


class Metric(Frozen):
    """One measured value. Accuracies are in per cent (`unit` "%") over `n` images."""

    value: float
    n: NonNegativeInt
    unit: str


class Cost(Frozen):
    """What the cell used. `train_flops` counts a multiply-add as two, forward and backward passes."""

    wall_seconds: NonNegativeFloat
    images_seen: NonNegativeInt
    train_flops: NonNegativeFloat
    peak_memory_bytes: NonNegativeInt
    device: str


class Git(Frozen):
    commit: str
    dirty: bool


class Attempt(Frozen):
    """One start of the cell: ISO 8601 UTC times, and how it ended."""

    started: str
    ended: str
    outcome: Literal["done", "failed", "interrupted"]


class Record(Frozen):
    """Everything that is known of one cell; the field names are fixed."""

    schema_version: Literal[1] = 1
    cell_id: str
    stage: str
    protocol: ProtocolUse
    resolved: dict[str, dict[str, Any]]
    compliance: Compliance
    method: MethodUse | None
    tokenizer: TokenizerUse | None
    trunk: str | None
    data_set: DataUse
    seed: NonNegativeInt | None
    metrics: dict[str, Metric]
    cost: Cost
    runtime: dict[str, Any]
    environment: dict[str, str]
    git: Git
    parents: dict[str, str]
    artefacts: dict[str, str]
    attempts: Annotated[tuple[Attempt, ...], Field(strict=False)]
    status: Literal["done", "failed", "skipped"]
    error: str | None
    # Of all other fields as they stand in the file; empty in what was written before there were digests.
    digest: str = ""

    @property
    def artefact_digest(self) -> str:
        """What a child names as this cell's digest: over the SHA-256 of every file the cell made."""
        return digest_of(self.artefacts)


def write_record(cell_dir: Path, record: Record) -> Record:
    """Put `record` into `cell_dir`, atomically, under its digest; returns it as it is read there."""
    values = record.model_dump(mode="json")
    values["digest"] = content_digest(values)
    text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomically(cell_dir / RECORD_NAME, text + "\n")
    return record.model_copy(update={"digest": values["digest"]})


def read_record(cell_dir: Path) -> Record | None:
    """The record in `cell_dir`, None if there is none yet.

    Raises HarnessError if the file is too large, damaged, edited or of another schema version.
    """
    path = cell_dir / RECORD_NAME
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    remedy = f"restore it, or delete the folder {cell_dir} and run again"
    if size > MAX_RECORD_BYTES:
        raise HarnessError(f"{path}: {size} bytes is too large for a record; {remedy}")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None  # a process that runs the cell again took it away since
    except IsADirectoryError:
        raise HarnessError(f"{path} is damaged: it is a folder; {remedy}") from None
    try:
        record = Record.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # What is no JSON at all has no field to name.
        where = f"field {'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise HarnessError(f"{path} is damaged: {where}{first['msg']}; {remedy}") from None
    fault = digest_fault(record, content)
    if fault:
        raise HarnessError(f"{path} {fault}; {remedy}")
    return record


def content_digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of a record's fields but for the digest itself, as they stand in its file.

    Of the file and not of the object: a field that a later version adds changes no older record's digest.
    ValueError if a value is none that JSON has.
    """
    return digest_of({name: value for name, value in values.items() if name != "digest"})


def digest_fault(record: Record, content: bytes) -> str:
    """Why `content`, the file of `record`, is not what was written; empty if it is, or cannot be told.

    The digest finds accidents and edits by hand. It is no signature: who means to deceive writes a new one.
    """
    if not record.digest:
        return ""
    try:
        found = content_digest(json.loads(content))
    except ValueError as error:
        return f"was edited or damaged: it holds what no record holds ({error})"
    if found == record.digest:
        return ""
    return f"was edited or damaged: its digest is {record.digest}, its content's {found}"


@contextmanager
def without_collecting() -> Iterator[None]:
    """No garbage is collected meanwhile: to look for cycles takes long among the objects of 10,000 records.

    Records hold none, and what a report makes of them is kept to its end anyway.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@without_collecting()
def read_records(work_dir: Path, protocol: str) -> list[Record]:
    """All records under WORK_DIR/PROTOCOL/cells, by cell id. Raises HarnessError that names all damaged."""
    cells = work_dir / protocol / "cells"
    if not cells.is_dir():
        return []
    with os.scandir(cells) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    return read_each(cells / name for name in names)


def read_each(folders: Iterable[Path]) -> list[Record]:
    """The records in `folders`, of those that have one. Raises HarnessError that names all damaged ones."""
    records, faults = [], []
    for folder in folders:
        try:
            record = read_record(folder)
        except HarnessError as error:
            faults.append(str(error))
            continue
        if record is not None:
            records.append(record)
    if faults:
        raise HarnessError(all_faults(faults))
    return records


def all_faults(faults: Sequence[str]) -> str:
    """One text of what is wrong with several records, each with its remedy."""
    if len(faults) == 1:
        return faults[0]
    more = [f"- and {len(faults) - MOST_FAULTS:,} more"] if len(faults) > MOST_FAULTS else []
    listed = [f"- {fault}" for fault in faults[:MOST_FAULTS]]
    return "\n".join([f"{len(faults):,} records cannot be used:", *listed, *more])
