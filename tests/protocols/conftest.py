"""Shared fixtures: a protocol file like another, but for some texts in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """written("tiny", (old, new), ...) -> the file other.yaml with each old text replaced once by the new."""

    def write(name: str, *changes: tuple[str, str], file: str = "other.yaml") -> Path:
        folder = ROOT / "tests" if name in ("tiny", "full") else ROOT / "protocols"
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new, 1)
        path = tmp_path / file
        path.write_text(text, encoding="utf-8")
        return path

    return write
