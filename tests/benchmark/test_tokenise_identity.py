"""What makes unfinished tokens other tokens: whatever moves bytes begins the work anew, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark import encoding, fitting, readers, tokenise
from benchmark.layout import CHECKPOINTS_NAME, ENCODING_NAME
from benchmark.runtime import Runtime
from benchmark.stage import CellContext
from tests.benchmark.imagenet_folder import make_imagenet
from tests.benchmark.test_tokenise_shards import SHARD, context_of, shard_files, stored, write_vqkd
from tokenizers.network import NetworkTokenizer


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tokenizers.shards.SHARD_IMAGES", SHARD)
    make_imagenet(tmp_path / "data")
    return tmp_path


@pytest.fixture
def unspooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit and encode in two passes, as sets do whose features would take too much disk."""
    monkeypatch.setattr(fitting, "MOST_SPOOLED_BYTES", 0)


@pytest.mark.parametrize(
    "changed", ["code", "device", "torch", "libjpeg", "reading", "weights", "codebook", "image"]
)
def test_shards_made_from_anything_else_are_made_again(
    root: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thing at a time that moves bytes; what is left unchanged is taken as it is."""
    kept = tokens_left_by(context_of(root, tokenizers=write_vqkd(root)), monkeypatch)
    context = context_of(root, tokenizers=write_vqkd(root))
    assert tokens_left_by(context, monkeypatch) == kept, "nothing changed: every file is the one that was"
    remade = set(range(5))
    if changed == "code":
        context = replace(context, sources={**context.sources, "tokenizer:vq-kd": "0" * 64})
    elif changed == "device":
        monkeypatch.setattr("benchmark.token_work.device_kind", lambda device: "another GPU")
    elif changed == "torch":
        monkeypatch.setattr(torch, "__version__", "3.0.0")
    elif changed == "libjpeg":
        monkeypatch.setattr("benchmark.token_work.features.version", lambda name: "another")
    elif changed == "reading":
        monkeypatch.setattr("benchmark.token_work.READING", (Path(__file__),))
    elif changed == "weights":
        monkeypatch.setattr(NetworkTokenizer, "frozen_weights_digest", lambda self: "1" * 64)
    elif changed == "codebook":
        monkeypatch.setattr(NetworkTokenizer, "digest", "2" * 64)
    else:
        # Another image of the same name, of which the listing of names says nothing.
        images = context.images("pretraining")
        path = root / "data" / "imagenet-1k" / images.image_ids[12]
        path.write_bytes((path.parent / Path(images.image_ids[11]).name).read_bytes())
        remade = {1}
    now = tokens_left_by(context, monkeypatch)
    assert {shard for shard in range(5) if now[shard] != kept[shard]} == remade


def tokens_left_by(context: CellContext, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Encode and stop before the store is put together; which files the shards are, and when written."""
    with monkeypatch.context() as patch:
        patch.setattr(tokenise, "_store", lambda work, started: None)
        tokenise.run(context)
    return [(path.stat().st_ino, path.stat().st_mtime_ns) for path in shard_files(context)]


def test_a_codebook_of_other_images_is_fitted_again(root: Path, unspooled: None) -> None:
    """Killed after fitting, and an image is replaced by another before the command is given again."""
    context = context_of(root)
    tokenise.fit(context)
    path = context.folder / CHECKPOINTS_NAME / ENCODING_NAME / "codebook" / "tokenizer.safetensors"
    first = path.read_bytes()
    tokenise.fit(context_of(root))
    assert path.read_bytes() == first
    images = context.images("pretraining")
    replaced = root / "data" / "imagenet-1k" / images.image_ids[12]
    replaced.write_bytes((root / "data" / "imagenet-1k" / images.image_ids[30]).read_bytes())
    tokenise.run(context_of(root))
    assert path.read_bytes() != first
    tokenise.run(context_of(root, "fresh"))
    assert stored(root) == stored(root, "fresh")


def test_reading_processes_change_nothing_and_are_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenise.run(context_of(root, "alone"))
    asked: list[int] = []
    loader = readers.DataLoader

    def watched(*given: Any, **options: Any) -> Any:
        asked.append(options["num_workers"])
        return loader(*given, **options)

    monkeypatch.setattr(readers, "DataLoader", watched)
    monkeypatch.setattr(encoding, "BATCH", 16)
    tokenise.run(context_of(root, runtime=Runtime(device="cpu", jobs=1, threads=1, workers=2)))
    assert asked[0] == 2
    assert stored(root) == stored(root, "alone")
