"""A row of tests/tiny.yaml from tokens to its evaluations, made once by each process, and copies of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from protocols import load_protocol
from tests.benchmark.conftest import TINY, Line


@pytest.fixture(scope="session")
def row(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Its files are for reading, or for a change that the same test takes back."""
    return Line.of(load_protocol(TINY), tmp_path_factory.mktemp("row"))


@pytest.fixture(scope="session")
def copied(row: Line) -> Callable[[Path], Line]:
    """The row in another work dir, to which cells may be added."""

    def copy(work_dir: Path) -> Line:
        shutil.copytree(row.work_dir, work_dir)
        return replace(row, work_dir=work_dir)

    return copy
