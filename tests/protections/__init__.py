"""What the harness promises, the line that keeps each promise, and the test that fails without that line.

python -m tests.protections                     remove each in turn, in a copy, and see its test fail
python -m tests.protections --only disks        those of tests/protections/disks.py
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, kw_only=True)
class Protection:
    """`removed` stands exactly once in `file` (relative to the repository); with `instead` in its place
    `test` (`path::function`, or several of them parted by spaces) fails.
    """

    promise: str
    file: str
    removed: str
    instead: str
    test: str


def groups() -> dict[str, tuple[Protection, ...]]:
    """Module name -> its PROTECTIONS, of every module beside this one that has some."""
    found = {}
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        if module != "__main__" and not module.startswith("test_"):
            found[module] = importlib.import_module(f"{__name__}.{module}").PROTECTIONS
    return found
