"""Takes the cells of a bundle into a work dir: each whole or not at all, none in the place of another."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from benchmark.file_lock import in_brackets, owner_of, try_lock
from benchmark.recorded_ids import ids_of_record
from benchmark.survey import is_locked
from leaderboard.bundle import CARD_NAME, MANIFEST, PROTOCOL, WEIGHTS_NAME, Bundle, BundledCell
from leaderboard.bundle_cells import check_cell, check_parents
from leaderboard.origins import ORIGIN_NAME, Origin, record_digest
from leaderboard.record import RECORD_NAME, Record, read_record
from protocols.errors import HarnessError
from protocols.files import naming, sync_folder

Result = Literal["merged", "weights added", "already here", "made here too", "refused"]
RESULTS: tuple[Result, ...] = ("merged", "weights added", "already here", "made here too", "refused")
MOST_ANCESTORS = 16
STAGING_NAME, LOCK_NAME = ".merging", ".merge-lock"
_NO_FOLDER = "what stands at {} is no folder; move it away, and merge again"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one entry of a bundle: a cell, or something that belongs to none.

    merged          it is here now
    weights added   the very record was here without its weights; now they are, too
    already here    the very record was here
    made here too   this work dir made the same files itself; its own record stays
    refused         for `why`
    """

    entry: str
    result: Result
    why: str = ""


def merge_bundle(bundle: Bundle, work_dir: Path, *, is_trial: bool = False) -> list[Outcome]:
    """Merge what is good of `bundle` into WORK_DIR; an outcome for each cell, then one for every other fault.

    With `is_trial` nothing is written. Raises HarnessError while another merge into the same folder goes on.
    """
    folder = work_dir / bundle.manifest.protocol.name
    if is_trial:
        return _Merge(bundle, folder / "cells", staging=None).run()
    with _staging(folder) as staging:
        return _Merge(bundle, folder / "cells", staging=staging).run()


class _Merge:
    def __init__(self, bundle: Bundle, cells: Path, *, staging: Path | None) -> None:
        self.bundle, self.cells, self.staging = bundle, cells, staging
        self.entries = {one.cell_id: one for one in bundle.manifest.cells}
        self.outcomes: dict[str, Outcome] = {}
        # What stands in the work dir once its turn has come, whoever made it.
        self.standing: dict[str, Record | None] = {}
        # Cells that are put together, parents first.
        self.staged: dict[str, Record] = {}
        # Cells that are here, and of which the weights alone are put together.
        self.added: list[str] = []
        self.depth = 0

    def run(self) -> list[Outcome]:
        for cell_id in self.entries:
            self.stand(cell_id)
        if self.staging is not None and (self.staged or self.added):
            self._place(self.staging)
        outcomes = [self.outcomes[cell_id] for cell_id in self.entries]
        faults = {one.entry: one.why for one in self.bundle.faults if not one.entry.startswith("cells/")}
        for file in self.bundle.manifest.files:
            try:
                # No cell hangs on them: each record holds its own slices, and people read the others.
                if file.path == PROTOCOL:
                    self.bundle.protocol_slices()
                elif not file.cell_id:
                    self.bundle.read(file.path).decode()
            except (HarnessError, UnicodeDecodeError) as error:
                faults[file.path] = str(error)
        return outcomes + [Outcome(entry=entry, result="refused", why=why) for entry, why in faults.items()]

    def stand(self, cell_id: str) -> Record | None:
        """The record of a cell in the work dir once the bundle's was merged or refused; None without any."""
        if cell_id in self.standing:
            return self.standing[cell_id]
        # Until then, for a cell that is among its own parents.
        self.standing[cell_id] = None
        self.depth += 1
        try:
            if cell_id not in self.entries:
                self.standing[cell_id] = self._here(cell_id)
                return self.standing[cell_id]
            record, result = self._take(self.entries[cell_id])
            self.outcomes[cell_id] = Outcome(entry=cell_id, result=result)
            self.standing[cell_id] = record
        except HarnessError as error:
            self.outcomes[cell_id] = Outcome(entry=cell_id, result="refused", why=str(error))
            self.standing[cell_id] = self._here(cell_id)
        finally:
            self.depth -= 1
        return self.standing[cell_id]

    def _here(self, cell_id: str) -> Record | None:
        try:
            return read_record(self.cells / cell_id)
        except (HarnessError, NotADirectoryError):
            return None

    def _take(self, entry: BundledCell) -> tuple[Record, Result]:
        """Check a cell and put it into the work dir. HarnessError with the reason if it is refused."""
        cell_id, read = entry.cell_id, partial(self._read, entry.cell_id)
        record = check_cell(
            cell_id,
            protocol=self.bundle.manifest.protocol.name,
            names=self.bundle.files(cell_id),
            read=read,
            sha256_of=partial(self._sha256_of, cell_id),
            ids_of=ids_of_record,
        )
        if record.status != entry.status:
            raise HarnessError(f"{RECORD_NAME} says {record.status}, {MANIFEST} {entry.status}")
        if WEIGHTS_NAME in self.bundle.files(cell_id):
            self.bundle.verify(f"cells/{cell_id}/{WEIGHTS_NAME}")  # before anything of the cell is written
        if self.depth > MOST_ANCESTORS:
            raise HarnessError("it is made from more cells, one after the other, than any cell is")
        check_parents(record, self.stand)
        folder = self.cells / cell_id
        if folder.exists() and not folder.is_dir():
            raise HarnessError(_NO_FOLDER.format(folder))
        if is_locked(folder):
            raise HarnessError("a process runs this cell here; merge again when it has ended")
        mine = read_record(folder)
        if mine is None and folder.exists() and any(folder.iterdir()):
            raise HarnessError(
                f"it was begun here and has no record yet; run it to its end, or delete {folder}"
            )
        if mine is not None:
            return self._beside(mine, record, folder)
        if self.staging is not None:
            self._write(entry, self.staging)
            self.staged[cell_id] = record
        return record, "merged"

    def _beside(self, mine: Record, record: Record, folder: Path) -> tuple[Record, Result]:
        """What stands here already stays; only another result is refused."""
        cell_id = record.cell_id
        own, content = (folder / RECORD_NAME).read_bytes(), self._read(cell_id, RECORD_NAME)
        if own == content:
            if WEIGHTS_NAME not in self.bundle.files(cell_id) or (folder / WEIGHTS_NAME).exists():
                return mine, "already here"
            if self.staging is not None:
                self._write_weights(cell_id, self.staging / cell_id)
                self.added.append(cell_id)
            return mine, "weights added"
        if mine.status == record.status == "done" and _result(mine) == _result(record):
            return mine, "made here too"
        digests = [hashlib.sha256(one).hexdigest() for one in (own, content)]
        raise HarnessError(
            f"another record of it is here ({mine.status}, SHA-256 {digests[0]}; the bundle's: "
            f"{record.status}, SHA-256 {digests[1]}), and nothing is overwritten; keep them apart with "
            f"another --work-dir, or delete {folder}"
        )

    def _read(self, cell_id: str, name: str) -> bytes:
        return self.bundle.read(f"cells/{cell_id}/{name}")

    def _sha256_of(self, cell_id: str, name: str) -> str:
        return self.bundle.sha256_of(f"cells/{cell_id}/{name}")

    def _write_weights(self, cell_id: str, made: Path) -> None:
        (made / WEIGHTS_NAME).parent.mkdir(parents=True)
        self.bundle.copy(f"cells/{cell_id}/{WEIGHTS_NAME}", made / WEIGHTS_NAME)

    def _write(self, entry: BundledCell, staging: Path) -> None:
        """Put the cell's files together, where nobody sees them yet. A card is made from records anew."""
        made = staging / entry.cell_id
        made.mkdir()
        bundle = self.bundle
        for name in sorted(set(bundle.files(entry.cell_id)) - {WEIGHTS_NAME, CARD_NAME}):
            write_file(made / name, self._read(entry.cell_id, name))
        if WEIGHTS_NAME in bundle.files(entry.cell_id):
            self._write_weights(entry.cell_id, made)
        harness = bundle.manifest.harness
        origin = Origin(
            bundle=bundle.name,
            bundle_sha256=bundle.sha256,
            harness=harness.version,
            commit=harness.revision,
            merged=datetime.now(UTC).isoformat(timespec="seconds"),
            record_digest=record_digest((made / RECORD_NAME).read_bytes()),
            passed_through=entry.passed_through,
        )
        write_file(made / ORIGIN_NAME, origin.text())

    def _place(self, staging: Path) -> None:
        """Each folder appears with all its files at once, and those of its parents before it."""
        os.sync()  # once for all: thousands of small files, each made durable by itself, take minutes
        absent: set[str] = set()
        for cell_id, record in self.staged.items():
            lost = sorted(absent.intersection(record.parents))
            why = f"its parent {lost[0]} is not there, or was refused" if lost else ""
            why = why or _appear(staging / cell_id, self.cells / cell_id)
            if why:
                absent.add(cell_id)
                self.outcomes[cell_id] = Outcome(entry=cell_id, result="refused", why=why)
        for cell_id in self.added:
            out = self.cells / cell_id / WEIGHTS_NAME
            out.parent.mkdir(exist_ok=True)
            os.rename(staging / cell_id / WEIGHTS_NAME, out)
            sync_folder(out.parent)
        sync_folder(self.cells)


def _appear(made: Path, folder: Path) -> str:
    """Rename `made` to `folder`, which is not there, or is empty; why not, if it cannot be, else empty."""
    try:
        # A folder that is not empty is never replaced: a run that began the cell meanwhile keeps it.
        os.rename(made, folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return "a process began this cell here meanwhile; merge again when it has ended"
        if error.errno == errno.ENOTDIR:
            return _NO_FOLDER.format(folder)
        raise
    return ""


def write_file(path: Path, content: bytes) -> None:
    """Write a file that nobody sees yet: neither atomically nor for good."""
    with naming(path):
        path.write_bytes(content)


def _result(record: Record) -> object:
    """What two runs of one command have in common: the files, and what was measured but for rates."""
    metrics = {name: one for name, one in record.metrics.items() if one.unit != "images/s"}
    return record.artefacts, metrics, record.data_set, record.parents, record.compliance


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder in which cells are put together, on the file system of the cells and not among them."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    # A link to another disk may stand in the place of the cells' folder.
    home = (folder / "cells").resolve().parent
    staging = home / STAGING_NAME
    with (home / LOCK_NAME).open("a") as lock:
        if not try_lock(lock):
            owner = in_brackets(owner_of(home / LOCK_NAME))
            raise HarnessError(
                f"another merge{owner} into {folder} is going on; give the command again after it"
            )
        shutil.rmtree(staging, ignore_errors=True)  # what a merge that was killed left
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging)
