"""Writes a bundle: cells that are whole, with all that they were made from, and why others are left out."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from leaderboard.bundle import (
    CELL_ID,
    CONFIGURATION,
    MANIFEST,
    MAX_BUNDLE_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_MEMBER_BYTES,
    MAX_WEIGHTS_BYTES,
    METRICS_NAME,
    PROTOCOL,
    WEIGHTS_NAME,
    BundledCell,
    BundledFile,
    BundledProtocol,
    Harness,
    Manifest,
    ending,
    member_header,
    padding,
)
from leaderboard.bundle_cells import IdsOf, check_cell, check_parents, names_a_folder
from leaderboard.card_parts import CARRIED
from leaderboard.cards import CARD_NAME, card_text
from leaderboard.origins import MOST_PASSED, read_origin
from leaderboard.record import PREDICTIONS_NAME, RECORD_NAME, Record
from protocols.errors import HarnessError
from protocols.files import naming, sha256_of_file, sync_folder
from protocols.schema import Protocol

BUNDLED = (METRICS_NAME, PREDICTIONS_NAME, RECORD_NAME)
_CHUNK = 1024**2


@dataclass(frozen=True, kw_only=True)
class Written:
    """`cells` and `size` of the bundle and its SHA-256; `left_out` says why a cell that was asked for is not
    in it, or one that it was made from, or a file."""

    cells: tuple[str, ...]
    size: int
    sha256: str
    left_out: Mapping[str, str]


def write_bundle(
    out: Path,
    work_dir: Path,
    protocol: Protocol,
    cell_ids: Iterable[str],
    *,
    harness: Harness,
    ids_of: IdsOf,
    configuration: bytes = b"",
    plugins: Mapping[str, bytes] | None = None,
    with_weights: bool = False,
) -> Written:
    """Write the cells `cell_ids` of `protocol` and all their ancestors into the new file `out`.

    `configuration` is the protocol's file, `plugins` the texts of plug-ins by name; with `with_weights` the
    trunks of pre-trainings go along. A cell that `merge` would refuse, or whose record names a folder of a
    machine, is left out with what was made from it; so is a text that does. Raises HarnessError if `out`
    exists, or if nothing is left to be written.
    """
    if out.exists():
        raise HarnessError(f"{out} exists already; give another name, or delete it first")
    cells = work_dir / protocol.name / "cells"
    chosen = _Chosen(cells, protocol.name, ids_of, with_weights=with_weights)
    for cell_id in cell_ids:
        chosen.take(cell_id)
    if not chosen.records:
        why = "; ".join(f"{cell_id}: {reason}" for cell_id, reason in chosen.left_out.items())
        raise HarnessError(f"nothing can be bundled: {why or 'no cell was chosen'}")
    document = {"name": protocol.name, "version": protocol.version, "slices": {
        name: dict(protocol.slice(name)) for name in sorted(protocol.slices)}}  # fmt: skip
    own = {PROTOCOL: (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()}
    cards = {cell_id: card_text(record, chosen.records.values(), protocol=protocol)
             for cell_id, record in chosen.records.items() if record.stage in CARRIED}  # fmt: skip
    own |= {f"cells/{cell_id}/{CARD_NAME}": text.encode() for cell_id, text in cards.items()}
    texts = {f"plugins/{name}.txt": content for name, content in (plugins or {}).items()}
    texts |= {CONFIGURATION: configuration} if configuration else {}
    own |= {name: content for name, content in texts.items() if chosen.may_take(name, content)}
    paths = {f"cells/{cell_id}/{name}": cells / cell_id / name
             for cell_id in chosen.records for name in chosen.names(cell_id)}  # fmt: skip
    files = [
        BundledFile(path=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in own.items()
    ]
    files += [
        BundledFile(path=name, size=path.stat().st_size, sha256=sha256_of_file(path))
        for name, path in paths.items()
    ]
    manifest = Manifest(
        harness=harness,
        protocol=BundledProtocol(name=protocol.name, version=protocol.version, digest=protocol.digest),
        cells=tuple(_entry(cells / one, record) for one, record in sorted(chosen.records.items())),
        files=tuple(sorted(files, key=lambda file: file.path)),
    ).with_digest()
    size = _write(out, manifest, paths, own)
    return Written(
        cells=tuple(sorted(chosen.records)), size=size, sha256=sha256_of_file(out), left_out=chosen.left_out
    )


class _Chosen:
    """Cells as they are taken, parents first; each is checked once."""

    def __init__(self, cells: Path, protocol: str, ids_of: IdsOf, *, with_weights: bool) -> None:
        self._cells, self._protocol, self._ids_of = cells, protocol, ids_of
        self._with_weights = with_weights
        self.records: dict[str, Record] = {}
        self.left_out: dict[str, str] = {}

    def names(self, cell_id: str) -> list[str]:
        """The files of a cell that a bundle takes."""
        taken = (*BUNDLED, WEIGHTS_NAME) if self._with_weights else BUNDLED
        return [name for name in taken if (self._cells / cell_id / name).is_file()]

    def may_take(self, name: str, text: bytes) -> bool:
        """False, with the reason in `left_out`, for a text that names a folder or is none."""
        path = names_a_folder(text)
        try:
            text.decode()
            why = f"it names {path}, and a bundle names no machine's folders" if path else ""
        except UnicodeDecodeError as error:
            why = f"it is no text: {error}"
        self.left_out |= {name: why} if why else {}
        return not why

    def take(self, cell_id: str) -> Record | None:
        """The record of a cell that may be bundled; None if it is left out, for the reason in `left_out`."""
        if cell_id in self.records or cell_id in self.left_out:
            return self.records.get(cell_id)
        folder = self._cells / cell_id
        self.left_out[cell_id] = "it is among its own parents"
        try:
            if not re.fullmatch(CELL_ID, cell_id):
                raise HarnessError(
                    "its id is too long, or holds other than letters, digits, '_', '.' and '-'"
                )
            record = check_cell(
                cell_id,
                protocol=self._protocol,
                names=self.names(cell_id),
                read=lambda name: _bounded(folder / name),
                sha256_of=lambda name: sha256_of_file(folder / name),
                ids_of=self._ids_of,
            )
            weights = folder / WEIGHTS_NAME
            if WEIGHTS_NAME in self.names(cell_id) and weights.stat().st_size > MAX_WEIGHTS_BYTES:
                raise HarnessError(f"{WEIGHTS_NAME} is larger than {MAX_WEIGHTS_BYTES:,} bytes")
            check_parents(record, self.take)
            for name in set(self.names(cell_id)) - {PREDICTIONS_NAME, WEIGHTS_NAME}:
                path = names_a_folder((folder / name).read_bytes())
                if path:
                    raise HarnessError(f"its {name} names {path}, and a bundle names no machine's folders")
        except HarnessError as error:
            self.left_out[cell_id] = str(error)
            return None
        del self.left_out[cell_id]
        self.records[cell_id] = record
        if self._with_weights and WEIGHTS_NAME in record.artefacts and not (folder / WEIGHTS_NAME).is_file():
            self.left_out[f"{cell_id}/{WEIGHTS_NAME}"] = "it is not in the work dir; the cell goes without it"
        return record


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _bounded(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_MEMBER_BYTES:
        raise HarnessError(
            f"{path.name} has {size:,} bytes; a file of a bundle has {MAX_MEMBER_BYTES:,} at most"
        )
    return path.read_bytes()


def _entry(folder: Path, record: Record) -> BundledCell:
    origin = read_origin(folder)
    earlier = (*origin.passed_through, origin.bundle_sha256) if origin else ()
    return BundledCell(
        cell_id=record.cell_id,
        status="done" if record.status == "done" else "failed",
        passed_through=earlier[-MOST_PASSED:],
    )


def _write(out: Path, manifest: Manifest, paths: Mapping[str, Path], own: Mapping[str, bytes]) -> int:
    """Write all members; returns the size. The file appears whole or not at all."""
    text = manifest.text()
    if len(text) > MAX_MANIFEST_BYTES:
        raise HarnessError(
            f"{len(manifest.cells):,} cells are too many for one bundle; split it with --cells"
        )
    temporary = out.with_name(f".{out.name}.{os.uname().nodename}-{os.getpid()}")
    size = 0
    try:
        with naming(out, instead_of=temporary), temporary.open("wb") as stream:
            size += stream.write(member_header(MANIFEST, len(text)) + text + padding(len(text)))
            for file in manifest.files:
                size += stream.write(member_header(file.path, file.size))
                digest = hashlib.sha256()
                for chunk in [own[file.path]] if file.path in own else _chunks(paths[file.path]):
                    digest.update(chunk)
                    size += stream.write(chunk)
                if digest.hexdigest() != file.sha256:
                    raise HarnessError(
                        f"{paths[file.path]} changed while it was bundled; give the command again"
                    )
                size += stream.write(padding(file.size))
            size += stream.write(ending(size))
            if size > MAX_BUNDLE_BYTES + sum(file.size for file in manifest.files if file.is_weights):
                raise HarnessError(
                    f"{size:,} bytes are too many for a bundle, which has {MAX_BUNDLE_BYTES:,} at most; "
                    "split it with --cells"
                )
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(out.parent)
    return size
