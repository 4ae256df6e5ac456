"""Errors of records that somebody edited: a section of tests/error_cases.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.error_settings import SMALL, finished_run, only

PROTOCOL = "--protocol tiny.yaml"


def _raise_accuracy(work_dir: Path) -> None:
    """A better number, by hand."""
    _edit(only(work_dir, "tiny/cells/linear-probe-*/record.json"), "metrics", "top1_percent", "value", 99.0)


def _edit_two(work_dir: Path) -> None:
    """And a faster machine."""
    _raise_accuracy(work_dir)
    _edit(only(work_dir, "tiny/cells/pretrain-*/record.json"), "cost", "wall_seconds", 1.0)


def _edit(path: Path, *keys_and_value: Any) -> None:
    values = json.loads(path.read_text())
    *groups, name, value = keys_and_value
    holder = values
    for group in groups:
        holder = holder[group]
    holder[name] = value
    path.write_text(json.dumps(values, indent=1, sort_keys=True))


CAMPAIGN_CASES: tuple[dict[str, Any], ...] = (
    {"title": "a number in a record that somebody raised", "command": f"report {PROTOCOL}",
     "setting": finished_run(_raise_accuracy), "given": "edited or damaged: its digest is",
     "where": "record.json", "remedy": "delete the folder"},
    {"title": "two edited records, for the run", "command": " ".join([PROTOCOL, *SMALL]),
     "setting": finished_run(_edit_two), "given": "2 records cannot be used",
     "where": "record.json", "remedy": "restore it, or delete the folder"},
)  # fmt: skip
