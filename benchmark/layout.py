"""Names on disk under a work dir, and whether a folder can be one."""

from __future__ import annotations

import os
from pathlib import Path

from protocols.errors import HarnessError

ATTEMPTS_NAME = "attempts.jsonl"
LOG_NAME = "log"
LOCK_NAME = ".lock"  # of a cell, and of a run in the protocol's folder
METRICS_NAME = "metrics.jsonl"
STEP_COSTS_NAME = "step-costs.json"  # in the protocol's folder: what `plan --probe` measured
TOKENS_NAME = "tokens"  # in the work dir, as is the next: stores serve every protocol and method
FEATURES_NAME = "features"
IMPORTED_NAME = "imported"  # in the protocol's folder: weights that were trained elsewhere
CHECKPOINTS_NAME = "checkpoints"
TRACKING_NAME = "tracking"  # in the protocol's folder: what metric back-ends were given
ENCODING_NAME = "encoding"  # in the checkpoints' folder: what a tokenising cell has not finished
SCRATCH_PREFIX = ".doctor-"  # in a work dir: what `doctor` tries it with; a kill leaves it there
BEGUN_NAME = "begun.json"  # in the checkpoints' folder: the code and the parents that they come from


def cell_folder(work_dir: Path, protocol: str, cell_id: str) -> Path:
    """WORK_DIR/PROTOCOL/cells/CELL_ID."""
    return work_dir / protocol / "cells" / cell_id


def has_progress(folder: Path) -> bool:
    """True if the cell in `folder` has a checkpoint, or parts of its tokens, to go on from."""
    checkpoints = folder / CHECKPOINTS_NAME
    encoding = checkpoints / ENCODING_NAME
    return (
        any(checkpoints.glob("step-*.sha256"))
        or any(encoding.glob("*/done/*.json"))
        or any(encoding.glob("*/tokenizer.safetensors"))
    )


def check_work_dir(work_dir: Path) -> None:
    """HarnessError unless `work_dir` can be made, or is a folder of ours that can be written to.

    A folder with other things in it is refused: results would be scattered among them.
    """
    holder = work_dir
    while not holder.exists() and holder != holder.parent:
        holder = holder.parent
    if not holder.is_dir():
        raise HarnessError(
            f"work dir {work_dir} cannot be used: {holder} is not a folder; give another with --work-dir"
        )
    if not os.access(holder, os.W_OK | os.X_OK):
        raise HarnessError(
            f"work dir {work_dir} cannot be used: no permission to write to {holder}; give another with "
            "--work-dir"
        )
    if not work_dir.exists():
        return
    entries = sorted(path.name for path in work_dir.iterdir() if not path.name.startswith(SCRATCH_PREFIX))
    is_ours = any(
        name in ("tokens", "packed")
        or (work_dir / name / "cells").is_dir()
        or (work_dir / name / "leaderboard" / "patterns").is_dir()
        or (work_dir / name / IMPORTED_NAME).is_dir()
        or (work_dir / name / LOCK_NAME).is_file()
        or (work_dir / name / STEP_COSTS_NAME).is_file()
        or (work_dir / name / TRACKING_NAME).is_dir()
        for name in entries
    )
    others = [name for name in entries if not _is_empty(work_dir / name)]
    if others and not is_ours:
        raise HarnessError(
            f"work dir {work_dir} holds other things ({', '.join(others[:3])}) and no results of this "
            "harness; give a new or an empty folder with --work-dir"
        )


def _is_empty(path: Path) -> bool:
    """True for a folder with nothing in it: a command that was killed as it began leaves the protocol's."""
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK) and not any(path.iterdir())
