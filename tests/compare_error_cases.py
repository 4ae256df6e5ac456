"""Errors of the command compare, as tests/error_cases.py builds them into cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.error_settings import finished_run


def _nothing(work_dir: Path) -> None:
    return None


# A finished run of MIM's linear probe and of nothing else.
FINISHED = {"setting": finished_run(_nothing)}
ROWS = "compare mim/k-pixel mapet/k-pixel --protocol"

COMPARE_CASES: tuple[dict[str, Any], ...] = (
    {"title": "no records to compare", "command": f"{ROWS} mini", "given": "protocol mini",
     "where": "under runs", "remedy": "make some with"},
    {"title": "a row that is none", "command": "compare mim mapet/k-pixel --protocol tiny.yaml",
     "given": "'mim'", "where": "METHOD/TOKENIZER/TRUNK", "remedy": "mim/k-pixel/vit-tiny-test", **FINISHED},
    {"title": "a row of an unknown method", "given": "'mappet'",
     "command": "compare mim/k-pixel mappet/k-pixel --protocol tiny.yaml",
     "where": "method", "remedy": "did you mean 'mapet'", **FINISHED},
    {"title": "a row of imported weights", "given": "'imported-published/vit-tiny-test'",
     "command": "compare mim/k-pixel imported-published/vit-tiny-test --protocol tiny.yaml",
     "where": "is of imported weights", "remedy": "the command report", **FINISHED},
    {"title": "a row of which nothing was measured", "command": f"{ROWS} tiny.yaml",
     "given": "mapet/k-pixel/vit-tiny-test", "where": "nothing of", "remedy": "--methods mapet", **FINISHED},
    {"title": "one row twice", "command": "compare mim/k-pixel MIM/k-pixel --protocol tiny.yaml",
     "given": "'MIM/k-pixel'", "where": "are one row", "remedy": "give two different rows", **FINISHED},
)  # fmt: skip
