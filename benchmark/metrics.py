"""Reading a cell's metrics file, which the engine appends to while it trains."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmark.layout import METRICS_NAME

TAIL_BYTES = 4096


def newest_metrics(folder: Path) -> dict[str, Any] | None:
    """The last whole line of a cell's metrics file, None before the first."""
    try:
        with (folder / METRICS_NAME).open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - TAIL_BYTES))
            lines = stream.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    if not lines:
        return None
    try:
        newest: dict[str, Any] = json.loads(lines[-1])
    except json.JSONDecodeError:  # a line that a full disk cut short; the next one will be whole
        return None
    return newest
