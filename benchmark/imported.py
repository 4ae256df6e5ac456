"""Rows whose weights were trained elsewhere: what their cells are, and where their weights lie. No torch.

    WORK_DIR/PROTOCOL/imported/TRUNK-SHA256.safetensors   the trunk as the protocol has it, under timm's names
    WORK_DIR/PROTOCOL/imported/TRUNK-SHA256.json          the file that it came from, and what was done to it
    WORK_DIR/PROTOCOL/cells/CELL_ID/imported.json         what was asked for, before there is a record

SHA256 is that of the file from elsewhere: it and the label make a row. So a run goes on, in any process and
on any machine that sees the work dir, though the file itself may have gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmark.layout import IMPORTED_NAME, cell_folder
from benchmark.plan import Cell, make_plan
from benchmark.selection import Selection
from leaderboard.imported import CHECKPOINT_DIGEST, PREFIX, digest_of_checkpoint, label_of
from leaderboard.lineage import SCRATCH, evaluation_name
from leaderboard.record import Record, read_record
from protocols.errors import HarnessError
from protocols.files import write_atomically
from protocols.frozen import Frozen
from protocols.schema import Protocol

REQUEST_NAME = "imported.json"
MOST_LABEL = 40


class Asked(Frozen):
    """What makes an imported cell, beside the protocol's slices."""

    label: str
    sha256: str
    trunk: str
    evaluation: str
    seed: int

    def cell(self, protocol: Protocol, original: Protocol | None = None) -> Cell:
        """The cell under `protocol`. Raises HarnessError for names that it does not have.

        It is the random trunk's in all but its weights: nothing is pre-trained for either. `original` is the
        protocol without --set, where there is one: a cell that --set moves is marked.
        """
        random_trunk = Selection(
            methods=(SCRATCH,),
            tokenizers=(),
            trunks=(self.trunk,),
            evaluations=(self.evaluation,),
            seeds=(self.seed,),
        )
        (cell,) = make_plan(protocol, random_trunk)
        own = replace(cell, method=PREFIX + self.label, hyperparameters=((CHECKPOINT_DIGEST, self.sha256),))
        return own if original is None else replace(own, is_modified=own.id != self.cell(original).id)


class Kept(Frozen):
    """What stands beside kept weights: the file that they came from, and their own digest."""

    file: str
    sha256: str
    key: str
    form: str
    weights_sha256: str
    deviations: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Imports:
    """Where a protocol's imported weights are kept."""

    work_dir: Path
    protocol: str

    def weights(self, sha256: str, trunk: str) -> Path:
        """The trunk's weights."""
        return self.work_dir / self.protocol / IMPORTED_NAME / f"{trunk}-{sha256}.safetensors"

    def facts(self, sha256: str, trunk: str) -> Path:
        """What stands beside them."""
        return self.weights(sha256, trunk).with_suffix(".json")

    def kept(self, sha256: str, trunk: str) -> Kept | None:
        """What is known of the weights of that file, None where they are not here."""
        path = self.facts(sha256, trunk)
        try:
            return Kept.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValidationError, IsADirectoryError):
            raise HarnessError(
                f"{path} is damaged; delete it, and run again with --from-checkpoint and the file"
            ) from None

    def stated(self, cell: Cell) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What the record of an imported cell says of its file, and how it deviates from the protocol."""
        sha256 = digest_of_weights(cell)
        kept = self.kept(sha256, cell.trunk or "")
        if kept is None:
            return _unknown(sha256)
        values = kept.model_dump(mode="json")
        return {name: values[name] for name in ("file", "sha256", "key", "form")}, kept.deviations


def _unknown(sha256: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    return {"sha256": sha256}, (f"weights of a file with SHA-256 {sha256}, of which nothing is kept here",)


def is_imported(method: str | None) -> bool:
    """True for the name of a row whose weights come from elsewhere."""
    return method is not None and method.startswith(PREFIX)


def digest_of_weights(cell: Cell) -> str:
    """The SHA-256 of the file that an imported cell is about."""
    return str(dict(cell.hyperparameters)[CHECKPOINT_DIGEST])


def clean_label(text: str) -> str:
    """A file's stem, or a label as given, as a part of names: small letters, digits, dots and dashes.

    HarnessError if nothing of it remains.
    """
    cleaned = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:MOST_LABEL].rstrip("-.")
    if not cleaned:
        raise HarnessError(f"--label {text!r} has no letter or digit that a name could have; give another")
    return cleaned


def note_asked(work_dir: Path, protocol: Protocol, asked: Iterable[Asked]) -> None:
    """Leave word of cells that are to run, so that `status` and other processes find them."""
    for one in asked:
        path = cell_folder(work_dir, protocol.name, one.cell(protocol).id) / REQUEST_NAME
        write_atomically(path, json.dumps(one.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")


def known_cells(work_dir: Path, protocol: Protocol, original: Protocol | None = None) -> list[Cell]:
    """The imported cells under `work_dir` that `protocol`, as it is, would make: asked for, done or merged.

    `original`: as for `Asked.cell`. By label, trunk, the protocol's order of evaluations, and seed.
    """
    folders = (work_dir / protocol.name / "cells").glob(f"*-{PREFIX}*")
    asked = [one for one in map(_asked_of, sorted(folders)) if one is not None]
    order: Sequence[str] = protocol.names("evaluations")
    known = [one for one in asked if one[1].evaluation in order and one[1].trunk in protocol.trunks]
    known.sort(key=lambda one: (one[1].label, one[1].trunk, order.index(one[1].evaluation), one[1].seed))
    cells = ((cell_id, one.cell(protocol, original)) for cell_id, one in known)
    return [cell for cell_id, cell in cells if cell.id == cell_id]


def _asked_of(folder: Path) -> tuple[str, Asked] | None:
    """Cell id and what was asked for, of a cell's folder; None where neither a record nor a note tells."""
    try:
        asked = Asked.model_validate_json((folder / REQUEST_NAME).read_bytes())
    except (OSError, ValidationError):
        try:
            record = read_record(folder)
        except HarnessError:
            return None  # what asks for records names the damaged ones
        return None if record is None else _asked_by(record)
    return folder.name, asked


def _asked_by(record: Record) -> tuple[str, Asked] | None:
    if record.trunk is None or record.seed is None:
        return None
    asked = Asked(
        label=label_of(record),
        sha256=digest_of_checkpoint(record),
        trunk=record.trunk,
        evaluation=evaluation_name(record),
        seed=record.seed,
    )
    return record.cell_id, asked
