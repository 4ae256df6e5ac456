"""What must hold of a work dir at any moment, and what of it must be the same as if nothing had happened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leaderboard.record import RECORD_NAME, Record, read_record
from protocols.errors import HarnessError

# Of a record: field -> why it may differ from that of an undisturbed run.
MAY_DIFFER = {
    "attempts": "when, and how often, it was started: what the kills are there to change",
    "digest": "over all other fields, these ones too",
    "cost.wall_seconds": "a measurement of time",
    "cost.peak_memory_bytes": "a measurement, of the last attempt alone",
    "runtime.workers": "the campaign changes it between attempts, on purpose",
    "runtime.jobs": "the campaign changes it between attempts, on purpose",
    "git": "somebody may edit the checkout meanwhile",
}
# Files that tell of attempts and times; checkpoints are looked at apart.
OF_ATTEMPTS = ("log", "attempts.jsonl", "metrics.jsonl", RECORD_NAME, "origin.json")


def comparable(record: Record) -> dict[str, Any]:
    """What of a record must be the same, however often its cell was killed."""
    values = record.model_dump(mode="json")
    for name in MAY_DIFFER:
        *groups, last = name.split(".")
        holder = values
        for group in groups:
            holder = holder[group]
        holder.pop(last, None)
    values["metrics"] = {name: one for name, one in values["metrics"].items() if one["unit"] != "images/s"}
    return values


def faults(work_dir: Path, reference: Path, *, with_board: bool = False) -> list[str]:
    """What a reader would take for whole in `work_dir` and is not; the reference is the undisturbed one.

    Every file under its final name must have the reference's bytes, as far as they depend on no time.
    """
    found = []
    for folder in cells(work_dir):
        try:
            record = read_record(folder)
        except HarnessError as error:
            found.append(str(error))
            continue
        undisturbed = read_record(reference / folder.relative_to(work_dir))
        is_done = record is not None and record.status == "done"
        if is_done and (undisturbed is None or comparable(record) != comparable(undisturbed)):
            found.append(f"{folder.name}: its record is not that of the undisturbed run")
        for path in (folder / "checkpoints").glob("step-*.sha256"):
            weights = path.with_suffix(".pt")
            if not weights.is_file() or path.read_text().strip() != _sha256(weights):
                found.append(f"{path.name} of {folder.name}: its checkpoint is not whole")
    for path in final_files(work_dir, with_board=with_board):
        whole = reference / path.relative_to(work_dir)
        if not whole.is_file():
            found.append(f"{path.relative_to(work_dir)}: the undisturbed run has no such file")
        elif path.read_bytes() != whole.read_bytes():
            found.append(f"{path.relative_to(work_dir)}: other bytes than the undisturbed run's")
    return found


def missing(work_dir: Path, reference: Path, *, with_board: bool = False) -> list[str]:
    """What the undisturbed run made and this one, which has ended, has not."""
    there = {path.relative_to(reference) for path in final_files(reference, with_board=with_board)}
    here = {path.relative_to(work_dir) for path in final_files(work_dir, with_board=with_board)}
    lost = [f"{path}: missing" for path in sorted(there - here)]
    for folder in cells(reference):
        record = read_record(work_dir / folder.relative_to(reference))
        if record is None or record.status != "done":
            lost.append(f"{folder.name}: {'no record' if record is None else record.error}")
    return lost


def cells(work_dir: Path) -> list[Path]:
    """The folders of its cells."""
    return sorted(path for path in work_dir.glob("*/cells/*") if path.is_dir() and path.name[0] != ".")


def final_files(work_dir: Path, *, with_board: bool) -> Iterator[Path]:
    """Weights, tokens, packed pixels, predictions, and the board if it is asked for."""
    for path in sorted(work_dir.rglob("*")):
        parts = path.relative_to(work_dir).parts
        if any(part.startswith(".") for part in parts) or "checkpoints" in parts or not path.is_file():
            continue
        is_of_attempts = path.name in OF_ATTEMPTS or parts[0] == "features"
        if not is_of_attempts and (with_board or "leaderboard" not in parts):
            yield path


def leftovers(work_dir: Path) -> list[str]:
    """Files that a kill has left half-written, under names that nobody reads."""
    return [
        str(path.relative_to(work_dir))
        for path in sorted(work_dir.rglob(".*.*"))
        if path.is_file() and not path.name.endswith(".lock")
    ]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
