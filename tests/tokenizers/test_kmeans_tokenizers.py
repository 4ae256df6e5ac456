"""k-pixel and k-feature end to end: fitting, encoding, keeping the weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from protocols.errors import HarnessError
from tokenizers import build_tokenizer
from tokenizers.base import WEIGHTS_NAME, Tokenizer
from tokenizers.kmeans import KMeansTokenizer, load_centroids

CONFIGS: dict[str, dict[str, Any]] = {
    "k-pixel": {"image_size": 12, "patch_size": 4, "codebook_size": 16, "iterations": 4},
    "k-feature": {"image_size": 48, "codebook_size": 16, "iterations": 4},
}
NAMES = list(CONFIGS)


def build(name: str, **config: Any) -> KMeansTokenizer:
    tokenizer = build_tokenizer(name, **(CONFIGS[name] | config))
    assert isinstance(tokenizer, KMeansTokenizer)
    return tokenizer


def images_for(tokenizer: Tokenizer, count: int = 64) -> Tensor:
    side = tokenizer.image_size
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(7))


def in_batches(images: Tensor, size: int = 24) -> Iterator[Tensor]:
    return (images[start : start + size] for start in range(0, len(images), size))


def fitted(name: str, **config: Any) -> tuple[KMeansTokenizer, Tensor]:
    tokenizer = build(name, **config)
    images = images_for(tokenizer)
    tokenizer.fit(in_batches(images))
    return tokenizer, images


@pytest.mark.parametrize("name", NAMES)
def test_ids_do_not_depend_on_the_batch(name: str) -> None:
    tokenizer, images = fitted(name)
    together = tokenizer.encode(images)
    assert together.shape == (64, tokenizer.grid**2) == (64, 9)
    assert together.dtype == torch.int64
    assert 0 <= together.min() <= together.max() < tokenizer.codebook_size
    assert len(together.unique()) > 8
    for size, count in ((1, 8), (7, 64)):  # a network takes as long for one image as for a block
        apart = torch.cat([tokenizer.encode(batch) for batch in in_batches(images[:count], size)])
        assert torch.equal(apart, together[:count])


@pytest.mark.parametrize("name", NAMES)
def test_fits_repeat_by_their_seed(name: str) -> None:
    first, again, other = fitted(name)[0], fitted(name)[0], fitted(name, seed=5)[0]
    assert torch.equal(first.codebook.centroids, again.codebook.centroids)
    assert first.digest == again.digest
    assert not torch.equal(first.codebook.centroids, other.codebook.centroids)
    assert first.digest != other.digest


@pytest.mark.parametrize("name", NAMES)
def test_fit_encode_is_fit_and_encode_in_one_pass(name: str, tmp_path: Path) -> None:
    # Fewer points than patches, so that the sample is at work.
    tokenizer, images = fitted(name, max_points_per_centroid=20)
    at_once = build(name, max_points_per_centroid=20)
    tokens = at_once.fit_encode(in_batches(images, 10), scratch=tmp_path)
    assert at_once.is_fitted
    assert at_once.digest == tokenizer.digest
    assert torch.equal(torch.cat(list(tokens)), tokenizer.encode(images))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_saved_weights_come_back(name: str, tmp_path: Path) -> None:
    tokenizer, images = fitted(name)
    tokenizer.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS_NAME]
    content = (tmp_path / WEIGHTS_NAME).read_bytes()
    tokenizer.save(tmp_path)
    assert (tmp_path / WEIGHTS_NAME).read_bytes() == content

    loaded = build(name)
    assert not loaded.is_fitted
    loaded.load(tmp_path)
    assert loaded.digest == tokenizer.digest
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))

    by_file = load_centroids(tmp_path / WEIGHTS_NAME)
    features = tokenizer.extractor.features(images)
    assert torch.equal(by_file.assign(features), tokenizer.assign(features))


def test_weights_of_another_configuration_are_refused(tmp_path: Path) -> None:
    tokenizer, _ = fitted("k-pixel")
    tokenizer.save(tmp_path)
    other = build("k-pixel", iterations=3)
    with pytest.raises(HarnessError, match=r'"iterations":4.*"iterations":3') as caught:
        other.load(tmp_path)
    assert tokenizer.digest in str(caught.value)
    assert not other.is_fitted


def test_damaged_and_missing_weights_are_refused(tmp_path: Path) -> None:
    tokenizer, _ = fitted("k-pixel")
    with pytest.raises(HarnessError, match="no such file"):
        tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    path = tmp_path / WEIGHTS_NAME
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(HarnessError, match="damaged"):
        build("k-pixel").load(tmp_path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(HarnessError, match="fit this one again"):
        build("k-pixel").load(tmp_path)


def test_an_unfitted_tokenizer_says_so(tmp_path: Path) -> None:
    tokenizer = build("k-pixel")
    for use in (
        lambda: tokenizer.encode(images_for(tokenizer)),
        lambda: tokenizer.assign(torch.zeros(1, 48)),
        lambda: tokenizer.digest,
        lambda: tokenizer.save(tmp_path),
    ):
        with pytest.raises(HarnessError, match="tokenizer k-pixel is not fitted: call fit"):
            use()


def test_images_of_another_form_are_refused() -> None:
    tokenizer, images = fitted("k-pixel")
    for wrong in (images[:, :1], images[..., :8], images[0], (images * 255).byte()):
        with pytest.raises(HarnessError, match=r"takes float images \(B, 3, 12, 12\)"):
            tokenizer.encode(wrong)


def test_centroids_must_fit_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = build("k-pixel")
    path = tmp_path / "centroids.npy"
    np.save(path, np.eye(16, 48, dtype=np.float32))
    tokenizer.load_centroids(path)
    assert tokenizer.is_fitted
    np.save(path, np.eye(15, 48, dtype=np.float32))
    with pytest.raises(HarnessError, match=r"15 centroids for features of width 48.*configured for 16"):
        tokenizer.load_centroids(path)


def test_fitting_on_nothing_is_an_error() -> None:
    with pytest.raises(HarnessError, match="0 patches cannot make 16 centroids"):
        build("k-pixel").fit([])
    with pytest.raises(HarnessError, match="0 patches cannot make 16 centroids"):
        build("k-pixel").fit_encode([])
