"""k-CLIP from image files to a verified store: sampled features on disk, processes, kills, damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark import fitting, tokenise
from benchmark.data import open_part
from benchmark.encoding import DamagedImages
from benchmark.layout import CHECKPOINTS_NAME, ENCODING_NAME
from benchmark.verification import compare, load_tokenizer
from protocols.schema import Part
from tests.benchmark.imagenet_folder import COUNT, make_imagenet
from tests.benchmark.test_tokenise_shards import context_of, damage_keeping_sizes, stored, together
from tests.tokenizers.small_networks import SMALL_CLIP, register_small_networks, write_clip
from tokenizers import build_tokenizer
from tokenizers.kmeans import KMeansTokenizer
from tokenizers.store import open_store

SAMPLED = 100  # of 48 images with 16 patches each: two from most of them, three from some


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    register_small_networks()
    monkeypatch.setattr("tokenizers.shards.SHARD_IMAGES", 10)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_imagenet(tmp_path / "data")
    return tmp_path


@pytest.fixture
def k_clip(root: Path) -> str:
    """The YAML of a small k-clip whose weights lie under the data root."""
    weights = write_clip(root / "data" / "tokenizers")
    values = {**SMALL_CLIP, "weights": weights, "image_size": 128, "sampled_features": SAMPLED, "seed": 7}
    return "  k-clip:\n" + "".join(
        f"    {name}: {{value: {value}, source: test}}\n" for name, value in values.items()
    )


def test_the_codebook_is_that_of_the_stated_sample(root: Path, k_clip: str) -> None:
    """Read plainly: image i gives rows floor(i M / n) to floor((i + 1) M / n); k-means of just these."""
    context = context_of(root, tokenizers=k_clip)
    tokenise.run(context)
    (manifest,) = (root / "runs" / "tokens").rglob("manifest.json")
    store = open_store(manifest.parent)
    images = open_part(
        "imagenet-1k", "pretraining", Part(split="train", count=COUNT), data_root=root / "data"
    )
    plain = build_tokenizer("k-clip", **dict(context.cell.hyperparameters))
    assert isinstance(plain, KMeansTokenizer)
    plain.load_published(root / "data" / "tokenizers")
    rows = []
    for position in range(COUNT):
        features = plain.extract(plain.transform(images.image(position))[None])[0]  # (16, D)
        count = (position + 1) * SAMPLED // COUNT - position * SAMPLED // COUNT
        words = np.random.Philox(key=np.array([7, position], dtype=np.uint64)).random_raw(16)
        rows.append(features[np.sort(np.argsort(words)[:count])])
    plain.fit_features(torch.cat(rows).numpy().astype(np.float16))
    assert plain.digest == store.manifest.tokenizer.digest
    encoded = plain.encode(
        torch.stack([plain.transform(images.image(position)) for position in range(COUNT)])
    )
    assert np.array_equal(store.tokens(range(COUNT)), encoded.numpy())
    assert len(np.unique(encoded)) > 4
    name, sha256 = str(dict(context.cell.hyperparameters)["weights"]).split("@")
    assert store.manifest.tokenizer.teacher == (
        f"not known: weights {name}@{sha256[:12]} (published: CLIP (image-text pairs))"
    )


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_bytes(root: Path, k_clip: str, processes: int) -> None:
    tokenise.run(context_of(root, "alone", tokenizers=k_clip))
    assert not together(root, "many", processes, tokenizers=k_clip)
    assert stored(root, "alone") == stored(root, "many")


def test_sampled_shards_outlive_damage_and_stopping(
    root: Path, k_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenise.run(context_of(root, "whole", tokenizers=k_clip))
    expected = stored(root, "whole")
    ((path, content),) = damage_keeping_sizes(root, 12).items()
    context = context_of(root, tokenizers=k_clip)
    with pytest.raises(DamagedImages, match="1 of 48 images"):
        tokenise.run(context)
    done = context.folder / CHECKPOINTS_NAME / ENCODING_NAME / "features" / "done"
    assert sorted(marker.name for marker in done.iterdir()) == [f"0000{shard}.json" for shard in (0, 2, 3, 4)]
    path.write_bytes(content)
    sampled: list[int] = []
    sample = fitting._sampled

    def watched(*given: object) -> object:
        sampled.append(len(given[2]))  # type: ignore[arg-type]
        return sample(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(fitting, "_sampled", watched)

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KMeansTokenizer, "fit_features", stopped)
        with pytest.raises(KeyboardInterrupt):
            tokenise.run(context_of(root, tokenizers=k_clip))
    tokenise.run(context_of(root, tokenizers=k_clip))
    assert sampled == [10], "the one shard that was open, once"
    assert stored(root) == expected


def test_verify_finds_the_network_and_what_was_altered(root: Path, k_clip: str) -> None:
    tokenise.run(context_of(root, tokenizers=k_clip))
    (manifest,) = (root / "runs" / "tokens").rglob("manifest.json")
    store = open_store(manifest.parent)
    tokenizer = load_tokenizer(store, manifest.parent, data_root=root / "data", device="cpu")
    rows = list(range(0, COUNT, 5))
    found = list(compare(store, tokenizer, rows, data_root=root / "data"))
    assert sum(number for number, _ in found) == len(rows)
    assert not any(mismatches for _, mismatches in found)
    damage_keeping_sizes(root, 10)
    named = [
        one.image_id for _, found in compare(store, tokenizer, rows, data_root=root / "data") for one in found
    ]
    assert named == [store.image_ids[10]]
