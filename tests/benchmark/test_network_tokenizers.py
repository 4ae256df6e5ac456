"""k-clip and k-feature with a file of weights, in a run: what is asked for first, and what is recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmark.cli import main
from benchmark.plan import make_plan, select
from benchmark.survey import survey
from protocols import load_protocol
from tests.tokenizers.small_networks import (
    SMALL_CLIP,
    timm_network,
    write,
)

TINY = Path(__file__).parent.parent / "tiny.yaml"
TEACHER = "DINO (images without labels)"
VIT: dict[str, Any] = {
    "model": "timm/test_vit", "image_size": 64, "codebook_size": 12, "iterations": 2, "restarts": 1,
    "max_points_per_centroid": 40, "seed": 3, "teacher": TEACHER, "sampled_features": 300,
}  # fmt: skip
CLIP = SMALL_CLIP | {"image_size": 128, "sampled_features": 300, "seed": 3}
pytestmark = pytest.mark.usefixtures("boards_without_drawings")


def protocol_with(folder: Path, name: str, values: dict[str, Any]) -> Path:
    """tiny with the tokenizer `name` alone, on its trunk's 4 x 4 patches."""
    lines = [f"    {field}: {{value: {json.dumps(value)}, source: test}}" for field, value in values.items()]
    text = TINY.read_text().replace("tokenizers: [k-pixel]", f"tokenizers: [{name}]")
    section = f"\ntokenizers:\n  {name}:\n" + "\n".join(lines) + "\n\nmethods:"
    text, count = re.subn(r"\ntokenizers:\n.*?\nmethods:", lambda _: section, text, flags=re.DOTALL)
    assert count == 1
    path = folder / "mine.yaml"
    path.write_text(text.replace("name: tiny", "name: mine"))
    return path


def test_a_run_records_how_the_network_was_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write(tmp_path / "data" / "tokenizers", "own", timm_network("test_vit").state_dict())
    protocol = protocol_with(tmp_path, "k-feature", VIT | {"weights": weights})
    arguments = ["--protocol", str(protocol), "--methods", "mim", "--evaluations", "linear-probe", "--quiet"]
    arguments += ["--work-dir", str(tmp_path / "runs"), "--data-root", str(tmp_path / "data")]
    assert main(arguments) == 0, capsys.readouterr().err
    (path,) = (tmp_path / "runs" / "mine" / "cells").glob("tokenise-*/record.json")
    record = json.loads(path.read_text())
    assert record["tokenizer"]["teacher"] == TEACHER
    assert record["compliance"]["status"] == "clean"
    assert TEACHER in (tmp_path / "runs" / "mine" / "leaderboard" / "index.html").read_text()


def test_what_is_missing_is_said_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    values = CLIP | {"model": "RN50", "weights": "openai"}
    protocol = load_protocol(str(protocol_with(tmp_path, "k-clip", values)))
    plan = make_plan(protocol, select(protocol, methods=["mim"]))

    def missing(data_root: Path | None) -> list[tuple[str, str]]:
        states = survey(plan, protocol, tmp_path / "runs", data_root=data_root)
        return [(one.what, one.remedy) for state in states for one in state.missing]

    ((what, remedy),) = missing(tmp_path)
    assert what == f"tokenizer k-clip: no file RN50 in {tmp_path}/tokenizers"
    assert remedy.startswith('python -c "from open_clip import download_pretrained, ')
    assert f"or: curl -L --create-dirs -o {tmp_path}/tokenizers/RN50.pt https://" in remedy
    cache = tmp_path / ".cache" / "clip"
    cache.mkdir(parents=True)
    (cache / "RN50.pt").touch()
    assert missing(tmp_path) == [], "found where open_clip keeps it, as the stage finds it"
    assert len(missing(None)) == 1
