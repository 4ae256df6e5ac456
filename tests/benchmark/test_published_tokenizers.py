"""A published tokenizer in a run: its file under the data root, what is said without it, what is recorded."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.cli import main
from benchmark.plan import make_plan, select
from benchmark.survey import survey
from protocols import load_protocol
from tests.tokenizers.reference_weights import SIZES, build, random_reference
from tokenizers.store import open_store

TINY = Path(__file__).parent.parent / "tiny.yaml"
pytestmark = pytest.mark.usefixtures("boards_without_drawings")


def protocol_with(folder: Path, name: str, weights: str) -> Path:
    """tiny with the published tokenizer `name` alone, at sizes that lie on its trunk's 4 x 4 patches."""
    values = {"weights": weights, **SIZES[name]}
    lines = [f"    {field}: {{value: {value}, source: test}}" for field, value in values.items()]
    text = TINY.read_text().replace("tokenizers: [k-pixel]", f"tokenizers: [{name}]")
    section = f"\ntokenizers:\n  {name}:\n" + "\n".join(lines) + "\n\nmethods:"
    text, count = re.subn(r"\ntokenizers:\n.*?\nmethods:", section, text, flags=re.DOTALL)
    assert count == 1
    path = folder / "mine.yaml"
    path.write_text(text.replace("name: tiny", "name: mine"))
    return path


@pytest.fixture(params=["vq-kd", "dall-e"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def file(tmp_path: Path, name: str) -> Path:
    """Random weights of the small sizes, as a checkpoint under the data root."""
    path = tmp_path / "data" / "tokenizers" / "own.pth"
    path.parent.mkdir(parents=True)
    torch.save({"model": random_reference(build(name))}, path)
    return path


def record_of(work_dir: Path, stage: str) -> dict[str, Any]:
    (path,) = (work_dir / "mine" / "cells").glob(f"{stage}-*/record.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("name", ["vq-kd"])
def test_a_run_takes_the_file_that_the_user_names(
    tmp_path: Path, name: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir, sha256 = tmp_path / "runs", hashlib.sha256(file.read_bytes()).hexdigest()
    protocol = protocol_with(tmp_path, name, "own")
    arguments = ["--protocol", str(protocol), "--methods", "mim", "--evaluations", "linear-probe", "--quiet"]
    arguments += ["--work-dir", str(work_dir), "--data-root", str(file.parent.parent)]
    assert main(arguments) == 2
    assert f"no published SHA-256 is known here to hold {file} against" in capsys.readouterr().err
    assert main([*arguments, "--set", f"tokenizers.{name}.weights=own@{sha256}"]) == 0, (
        capsys.readouterr().err
    )

    record = record_of(work_dir, "tokenise")
    assert record["status"] == "done"
    assert record["compliance"]["status"] == "modified"
    assert any(sha256 in deviation for deviation in record["compliance"]["deviations"])
    assert record["tokenizer"]["teacher"].startswith(f"not known: weights own@{sha256[:12]} (published: CLIP")
    assert record_of(work_dir, "linear-probe")["status"] == "done"

    tokenizer = build(name, weights=f"own@{sha256}")
    tokenizer.load_reference(random_reference(tokenizer))
    (store,) = (open_store(path.parent) for path in (work_dir / "tokens").rglob("manifest.json"))
    assert store.manifest.tokenizer.digest == tokenizer.digest == record["tokenizer"]["digest"]
    assert store.manifest.images == 256
    again = build(name, weights=f"own@{sha256}")
    again.load(next((work_dir / "tokens").glob(f"{name}-*")))
    assert again.digest == tokenizer.digest, "a copy of the weights is kept as safetensors"


@pytest.mark.parametrize("name", ["dall-e"])
def test_another_file_in_its_place_is_refused_and_fails_the_cell(
    tmp_path: Path, name: str, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = protocol_with(tmp_path, name, f"own@{'0' * 64}")
    arguments = ["--protocol", str(protocol), "--methods", "mim", "--evaluations", "linear-probe", "--quiet"]
    arguments += ["--work-dir", str(tmp_path / "runs"), "--data-root", str(file.parent.parent)]
    assert main(arguments) == 2
    refusal = capsys.readouterr().err
    assert f"{file} is damaged or another file: its SHA-256 is " in refusal
    assert f"that of these weights is {'0' * 64}" in refusal
    assert not (tmp_path / "runs").exists()
    # Without the check before a run, the cell itself finds it.
    monkeypatch.setattr("benchmark.preflight.damaged_weights", lambda cells, data_root: [])
    assert main(arguments) == 1
    record = record_of(tmp_path / "runs", "tokenise")
    assert record["status"] == "failed"
    assert f"{file}: its SHA-256 is " in record["error"]


def test_what_is_missing_is_said_with_its_remedy(tmp_path: Path, name: str, file: Path) -> None:
    published = {
        "vq-kd": (
            "vqkd_encoder_base_decoder_3x768x12_clip",
            ".pth https://github.com/addf400/files/releases/",
        ),
        "dall-e": ("dall-e-encoder", ".pkl https://cdn.openai.com/dall-e/encoder.pkl"),
    }[name]

    def then_name_it(own: str, path: Path | str) -> str:
        return (
            f'if you trust the file, say that it is meant, which the record keeps: --set "tokenizers.{name}.'
            f'weights={own}@$(sha256sum < {path} | cut -c1-64)"'
        )

    def missing(weights: str, data_root: Path | None) -> list[tuple[str, str]]:
        protocol = load_protocol(str(protocol_with(tmp_path, name, weights)))
        plan = make_plan(protocol, select(protocol, methods=["mim"]))
        states = survey(plan, protocol, tmp_path / "runs", data_root=data_root)
        return [(one.what, one.remedy) for state in states for one in state.missing]

    root = tmp_path / "data"
    folder = root / "tokenizers"
    ((what, remedy),) = missing(published[0], None)
    assert what == f"tokenizer {name}: no --data-root DIR is given, where its weights lie"
    assert remedy.startswith(f"curl -L --create-dirs -o DIR/tokenizers/{published[0]}{published[1]}")
    ((what, remedy),) = missing(published[0], root)
    assert what == f"tokenizer {name}: no file {published[0]} in {folder}"
    assert remedy.startswith(f"curl -L --create-dirs -o {folder}/{published[0]}{published[1]}")
    pin = then_name_it(published[0], f"{folder}/dall-e-encoder.pkl")
    assert remedy.endswith(f"; then, as no published SHA-256 is known here: {pin}") == (name == "dall-e")
    assert ("--set" in remedy) == (name == "dall-e")
    ((what, remedy),) = missing("absent", root)
    assert what == f"tokenizer {name}: no file absent in {folder}"
    assert remedy == (
        "put it there under that name, ending in .safetensors, .pt, .bin, .pth, .pkl; then, as no published "
        f"SHA-256 is known here: {then_name_it('absent', folder / 'absent.ENDING')}"
    )
    assert missing(f"own@{'0' * 64}", root) == []
    shutil.copy(file, folder / f"{published[0]}.pth")
    # Only of VQ-KD's file its authors state how its SHA-256 begins; the stage compares it.
    found = [remedy for _, remedy in missing(published[0], root)]
    assert found == [then_name_it(published[0], folder / f"{published[0]}.pth")] * (name == "dall-e")
