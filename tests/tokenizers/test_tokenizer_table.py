"""The table of tokenizers: names, hyperparameters, source digests, and no torch until one is built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tokenizers
from protocols.errors import HarnessError
from tokenizers import build_tokenizer, list_tokenizers, tokenizer_spec
from tokenizers.base import Tokenizer
from tokenizers.weights_files import OPENAI_RESNETS

REPOSITORY = Path(tokenizers.__file__).resolve().parent.parent


def test_listing_loads_no_heavy_library() -> None:
    program = (
        "import sys, tokenizers\n"
        "assert 'k-pixel' in tokenizers.list_tokenizers()\n"
        "tokenizers.tokenizer_spec('k-feature').source_digest()\n"
        "heavy = {'torch', 'numpy', 'faiss', 'timm', 'PIL', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", list_tokenizers())
def test_every_tokenizer_builds_by_name_in_any_case(name: str) -> None:
    tokenizer = build_tokenizer(name.upper())
    spec = tokenizer_spec(name)
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.name, tokenizer.teacher) == (name, spec.teacher)
    assert tokenizer.config == spec.resolve({})
    assert tokenizer.codebook_size == spec.resolve({})["codebook_size"]


def test_unknown_names_and_wrong_values_say_what_is_known() -> None:
    with pytest.raises(HarnessError, match=r"unknown tokenizer 'k-pixels'; did you mean 'k-pixel'\?"):
        build_tokenizer("k-pixels")
    with pytest.raises(HarnessError, match=r"no hyperparameter 'codebok_size'; did you mean 'codebook_size'"):
        build_tokenizer("k-pixel", codebok_size=4)
    with pytest.raises(HarnessError, match="codebook_size must be from 2 to 65536, got 70000"):
        build_tokenizer("k-pixel", codebook_size=70000)
    with pytest.raises(HarnessError, match="image_size 30 is not a multiple of patch_size 4"):
        build_tokenizer("k-pixel", image_size=30)
    with pytest.raises(HarnessError, match="image_size 100 is not a multiple of the stride 16"):
        build_tokenizer("k-feature", image_size=100)
    with pytest.raises(HarnessError, match="unknown feature network 'resnet50'"):
        build_tokenizer("k-feature", model="resnet50")


def test_source_digest_follows_the_files_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tokenizer_spec("k-pixel")
    original = spec.source_digest()
    for name in spec.sources:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    monkeypatch.setattr("tokenizers.specs._REPOSITORY", tmp_path)
    assert spec.source_digest() == original
    with (tmp_path / "tokenizers/kmeans.py").open("a") as stream:
        stream.write("#")
    assert spec.source_digest() != original


OTHER = "0123456789ab" + "c" * 52
VQKD_FILE = "vqkd_encoder_base_decoder_3x768x12_clip"


@pytest.mark.parametrize(
    ("name", "config", "stated"),
    [
        ("k-clip", {"model": "RN50"}, None),
        ("k-clip", {"model": "RN50", "weights": f"openai@{OPENAI_RESNETS['RN50'].upper()}"}, None),
        ("k-clip", {"model": "RN50", "weights": f"openai@{OTHER}"}, "openai@0123456789ab"),
        ("k-clip", {"model": "RN50", "weights": f"openai@{OPENAI_RESNETS['RN101']}"}, "openai@8fa8567bab74"),
        ("k-clip", {"model": "RN50", "weights": f"mine@{OTHER.upper()}"}, "mine@0123456789ab"),
        ("k-clip", {"model": "RN50", "weights": "mine"}, "mine"),
        ("vq-kd", {}, None),
        ("vq-kd", {"weights": f"{VQKD_FILE}@d5036aa7{OTHER[8:]}"}, None),
        ("vq-kd", {"weights": f"{VQKD_FILE}@{OTHER}"}, f"{VQKD_FILE}@0123456789ab"),
        ("vq-kd", {"weights": f"mine@{OTHER}"}, "mine@0123456789ab"),
        ("dall-e", {}, None),
        ("dall-e", {"weights": f"dall-e-encoder@{OTHER}"}, None),
        ("dall-e", {"weights": f"mine@{OTHER}"}, "mine@0123456789ab"),
    ],
)
def test_another_file_than_the_published_one_has_no_known_teacher(
    name: str, config: dict[str, Any], stated: str | None
) -> None:
    published = tokenizer_spec(name).teacher
    expected = published if stated is None else f"not known: weights {stated} (published: {published})"
    assert build_tokenizer(name, **config).teacher == expected
