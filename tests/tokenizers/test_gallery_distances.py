"""`codebook_rows` and `distances`: held to plain computations; batch agreement counts tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from protocols.errors import HarnessError
from tests.tokenizers.reference_weights import build, random_reference
from tokenizers import build_tokenizer
from tokenizers.base import Tokenizer
from tokenizers.card import batch_agreement

EMBEDDED = Path(__file__).parent.parent.parent / "benchmark" / "embedded" / "fashion_mnist_12k.npz"
KMEANS: dict[str, dict[str, Any]] = {
    "k-pixel": {"image_size": 28, "patch_size": 7, "codebook_size": 8, "iterations": 3},
    "k-feature": {"image_size": 64, "codebook_size": 8, "iterations": 3},
}


def fitted(name: str) -> tuple[Any, Tensor]:
    """A fitted tokenizer and 20 transformed photographs."""
    with np.load(EMBEDDED, allow_pickle=False) as archive:
        photographs = [Image.fromarray(array) for array in archive["train_images"][:20]]
    tokenizer: Tokenizer = build_tokenizer(name, **KMEANS[name]) if name in KMEANS else build(name)
    images = torch.stack([tokenizer.transform(image) for image in photographs])
    if name in KMEANS:
        tokenizer.fit(images.split(10))
    else:
        tokenizer.load_reference(random_reference(tokenizer))  # type: ignore[attr-defined,arg-type]
    return tokenizer, images


def compared_points(tokenizer: Any, name: str, images: Tensor) -> Tensor:
    """(B, N, C) float64: the patches in the space in which the nearest row is sought."""
    if name == "vq-kd":
        codes = torch.cat([tokenizer.network.codes(images[:16]), tokenizer.network.codes(images[16:])])
        points: Tensor = (codes / codes.norm(dim=-1, keepdim=True)).double()
        return points
    features = tokenizer.extract(images).double()
    if name == "k-feature":
        return features
    whitening = tokenizer.codebook.whitening
    return (features - whitening.mean) @ whitening.projection


@pytest.mark.parametrize("name", ["k-pixel", "k-feature", "vq-kd"])
def test_distances_are_those_to_the_row_of_the_own_token(name: str) -> None:
    tokenizer, images = fitted(name)
    rows_KC, distances_BN = tokenizer.codebook_rows(), tokenizer.distances(images)
    points_BNC = compared_points(tokenizer, name, images)
    assert rows_KC.shape == (tokenizer.codebook_size, points_BNC.shape[-1])
    everything_BNK = torch.stack(
        [(points_BNC - row.double()).square().sum(-1).sqrt() for row in rows_KC], dim=-1
    )
    assert distances_BN.dtype == torch.float64
    assert distances_BN.shape == (20, tokenizer.grid**2)
    torch.testing.assert_close(distances_BN, everything_BNK.amin(-1), rtol=1e-5, atol=1e-6)
    own = everything_BNK.gather(-1, tokenizer.encode(images)[..., None]).squeeze(-1)
    torch.testing.assert_close(distances_BN, own, rtol=1e-5, atol=1e-6)
    assert distances_BN.std() > 0


def test_unit_rows_of_vq_kd_are_compared_as_they_are() -> None:
    """The published rows are units; the distances of unit codes then are chords of at most 2."""
    tokenizer, images = fitted("vq-kd")
    tokenizer.network.codebook.data.copy_(torch.nn.functional.normalize(tokenizer.codebook_rows(), dim=-1))
    distances = tokenizer.distances(images)
    assert 0 < distances.min() < distances.max() <= 2


@pytest.mark.parametrize("name", ["k-pixel", "vq-kd"])
def test_no_images_have_no_distances(name: str) -> None:
    tokenizer, images = fitted(name)
    assert tokenizer.distances(images[:0]).shape == (0, tokenizer.grid**2)


def test_logits_are_no_rows() -> None:
    tokenizer, images = fitted("dall-e")
    for ask in (tokenizer.codebook_rows, lambda: tokenizer.distances(images)):
        with pytest.raises(HarnessError, match="tokenizer dall-e has no codebook rows"):
            ask()


@pytest.mark.parametrize("name", ["k-pixel", "vq-kd"])
def test_there_are_none_before_fitting_or_loading(name: str) -> None:
    tokenizer = build_tokenizer(name, **KMEANS[name]) if name in KMEANS else build(name)
    with pytest.raises(HarnessError, match="not fitted"):
        tokenizer.codebook_rows()
    with pytest.raises(HarnessError, match="not fitted"):
        tokenizer.distances(torch.zeros(1, 3, tokenizer.image_size, tokenizer.image_size))


class Wavering:
    """Four tokens an image; the first two depend on the size of the batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def encode(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        tokens = torch.arange(4) + 10 * images[:, 0, 0, :1].long()
        tokens[:, :2] += len(images) == 1
        return tokens


def test_batch_agreement_counts_tokens_at_batches_of_1_and_64() -> None:
    wavering = Wavering()
    images = torch.arange(70.0).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4)  # all different
    found = batch_agreement(wavering, images)  # type: ignore[arg-type]
    assert wavering.sizes == [1] * 8 + [64, 6]
    assert found.percent == 50.0
    assert found.images == 8
    assert found.images_per_second > 0


def test_tokenizers_agree_with_themselves() -> None:
    for name in ("k-pixel", "vq-kd"):
        tokenizer, images = fitted(name)
        assert batch_agreement(tokenizer, images).percent == 100.0


def test_of_no_images_nothing_can_be_said() -> None:
    with pytest.raises(HarnessError, match="at least one image"):
        batch_agreement(Wavering(), torch.zeros(0, 3, 4, 4))  # type: ignore[arg-type]
