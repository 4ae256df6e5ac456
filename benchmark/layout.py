"""Names on disk under a work dir."""

from __future__ import annotations

from pathlib import Path

ATTEMPTS_NAME = "attempts.jsonl"
LOG_NAME = "log"
METRICS_NAME = "metrics.jsonl"


def cell_folder(work_dir: Path, protocol: str, cell_id: str) -> Path:
    """WORK_DIR/PROTOCOL/cells/CELL_ID."""
    return work_dir / protocol / "cells" / cell_id
