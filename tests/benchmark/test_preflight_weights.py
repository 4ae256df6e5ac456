"""Files of tokenizers' weights are held against their SHA-256 before anything runs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark import inputs
from benchmark.inputs import damaged_weights
from benchmark.plan import Cell, make_plan, select
from benchmark.preflight import preflight
from benchmark.runtime import Runtime
from benchmark.survey import survey
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.files import sha256_of_file
from protocols.schema import Protocol

WRONG = b"cut short"
FOUND = hashlib.sha256(WRONG).hexdigest()
VQ_KD = "vqkd_encoder_base_decoder_3x768x12_clip"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root whose files of weights all hold the same few bytes; a home without caches."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tokenizers").mkdir()
    for name in ("RN50x64.pt", f"{VQ_KD}.pth", "dall-e-encoder.pkl"):
        (tmp_path / "tokenizers" / name).write_bytes(WRONG)
    return tmp_path


def tokenising(protocol: Protocol) -> list[Cell]:
    return [cell for cell in make_plan(protocol, select(protocol)) if cell.stage == "tokenise"]


def test_damaged_weights_are_named_with_what_was_expected_and_the_remedy(root: Path) -> None:
    cells = tokenising(load_protocol("fair300"))
    clip, vq_kd = sorted(damaged_weights(cells, data_root=root))  # of dall-e's file nothing is published
    file = root / "tokenizers" / "RN50x64.pt"
    assert clip.what == (
        f"tokenizer k-clip: {file} is damaged or another file: its SHA-256 is {FOUND}, that of these weights "
        "is be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"
    )
    assert f"curl -L --create-dirs -o {file} https://openaipublic" in clip.remedy
    assert vq_kd.what.endswith(f"SHA-256 is {FOUND}, that of these weights begins d5036aa7")
    assert vq_kd.remedy.startswith(f"curl -L --create-dirs -o {root}/tokenizers/{VQ_KD}.pth https://")
    assert damaged_weights(cells, data_root=None) == []


def test_each_file_is_read_once_and_the_right_bytes_pass(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return sha256_of_file(path)

    monkeypatch.setattr(inputs, "sha256_of_file", counted)
    protocol = load_protocol("fair300", overrides=[f"tokenizers.dall-e.weights=dall-e-encoder@{FOUND}"])
    cells = tokenising(protocol)
    assert len({cell.id for cell in cells if cell.tokenizer == "k-clip"}) > 1
    assert {one.what.split(":")[0] for one in damaged_weights(cells, data_root=root)} == {
        "tokenizer k-clip",
        "tokenizer vq-kd",
    }
    assert sorted(read) == ["RN50x64.pt", "dall-e-encoder.pkl", f"{VQ_KD}.pth"]


@pytest.mark.parametrize("is_done", [False, True])
def test_preflight_lists_them_for_cells_that_are_not_done(is_done: bool, root: Path) -> None:
    protocol = load_protocol("fair300")
    plan = tokenising(protocol)
    runs = root / "runs"
    found = survey(plan, protocol, runs, data_root=root)
    states = [replace(one, state="done" if is_done else "to do") for one in found]
    with pytest.raises(HarnessError) as caught:  # there is no image: what is missing stands beside it
        preflight(plan, protocol, Runtime(device="cpu", jobs=1, threads=1), runs, states, root)
    assert "data set imagenet-1k: no folder" in str(caught.value)
    assert str(caught.value).count("is damaged or another file") == (0 if is_done else 2)


def test_no_torch_is_loaded_for_it(root: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from benchmark.inputs import damaged_weights\n"
        "from benchmark.plan import make_plan, select\n"
        "from protocols import load_protocol\n"
        "protocol = load_protocol('fair300')\n"
        "found = damaged_weights(make_plan(protocol, select(protocol)), data_root=Path(sys.argv[1]))\n"
        "print(len(found), 'torch' in sys.modules)\n"
    )
    told = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["2", "False"]
