"""docs/weights.md: its commands run in their order, and its Python as it stands."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmark.cli import main
from leaderboard.record import PREDICTIONS_NAME, read_records
from tests.benchmark.conftest import TINY, Line
from tests.benchmark.made_classifiers import timm_vit_tiny
from tests.convert.made_weights import published

PAGE = (Path(__file__).parent.parent.parent / "docs" / "weights.md").read_text()
COMMANDS = re.findall(r"^    python run_benchmark\.py (.*)$", PAGE, re.MULTILINE)
pytestmark = pytest.mark.usefixtures("boards_without_drawings")


def test_the_commands(tmp_path: Path, copied: Callable[[Path], Line]) -> None:
    """With tests/tiny.yaml in mini's place, after one row of it; the evaluation runs in its own processes."""
    row = copied(tmp_path / "runs")
    published(tmp_path / "mapet_tiny.pth", "mapet")
    cell = str(row.context("pretrain").folder)
    printed = io.StringIO()
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(printed):
        for command in COMMANDS:
            words = [TINY if word == "mini" else word for word in shlex.split(command)]
            words = [cell if word == "runs/mini/cells/CELL_ID" else word for word in words]
            small = ["--device", "cpu", "--jobs", "1", "--quiet"] if words[0] == "--protocol" else []
            assert main([*words, *small]) == 0, command
    assert len(COMMANDS) == 5
    records = [one for one in read_records(tmp_path / "runs", "tiny") if one.compliance.status == "imported"]
    (record,) = records
    assert record.method is not None
    assert record.method.name == "imported-ours"
    assert (tmp_path / "runs" / "tiny" / "cells" / record.cell_id / PREDICTIONS_NAME).is_file()
    shown = printed.getvalue()
    assert "Imported weights" in shown
    assert record.resolved["checkpoint"]["sha256"][:12] in shown
    assert {"mapet.md", "mapet.safetensors", "mapet_tiny.md"} <= {path.name for path in tmp_path.iterdir()}


def test_the_python_block(tmp_path: Path) -> None:
    (lines,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    weights = {
        name: one for name, one in timm_vit_tiny().state_dict().items() if not name.startswith("head.")
    }
    renamed = {name.replace("fc_norm.", "norm."): one for name, one in weights.items()}
    save_file(renamed, tmp_path / "vit-t.safetensors")
    names: dict[str, torch.Tensor] = {}
    with contextlib.chdir(tmp_path):
        exec(lines, names)
    assert names["features"].shape == (1, 192)
