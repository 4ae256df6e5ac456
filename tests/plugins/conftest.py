"""Every test of plug-ins ends with none of them loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmark.plugins import load_plugins, unload_plugins

Load = Callable[..., Path]


@pytest.fixture(autouse=True)
def _unloaded() -> Iterator[None]:
    yield
    unload_plugins()


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Writes a plug-in's text to a file of that name, loads it, and returns the file."""

    def written(text: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        load_plugins([path], packages=False)
        return path

    return written
