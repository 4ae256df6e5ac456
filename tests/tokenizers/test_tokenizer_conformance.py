"""What every registered tokenizer must do, on real images and at small sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from protocols.errors import HarnessError
from tests.tokenizers.reference_weights import DALLE_SIZES, VQKD_SIZES, random_reference
from tests.tokenizers.small_networks import SMALL_CLIP, register_small_networks, write_clip
from tokenizers import build_tokenizer, list_tokenizers
from tokenizers.base import Tokenizer
from tokenizers.network import NetworkTokenizer

SMALL: dict[str, dict[str, Any]] = {
    "k-pixel": {"image_size": 28, "patch_size": 7, "codebook_size": 8, "iterations": 3},
    "k-feature": {"image_size": 64, "codebook_size": 8, "iterations": 3},
    "k-clip": SMALL_CLIP,
    "vq-kd": VQKD_SIZES,
    "dall-e": DALLE_SIZES,
}
EMBEDDED = Path(__file__).parent.parent.parent / "benchmark" / "embedded" / "fashion_mnist_12k.npz"


def test_every_tokenizer_has_a_configuration_here() -> None:
    assert set(SMALL) == set(list_tokenizers())


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    with np.load(EMBEDDED, allow_pickle=False) as archive:
        return [Image.fromarray(array) for array in archive["train_images"][:24]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the weights of feature networks lie."""
    register_small_networks()
    folder = tmp_path_factory.mktemp("weights")
    SMALL["k-clip"] = SMALL_CLIP | {"weights": write_clip(folder)}
    return folder


@pytest.mark.parametrize("name", list_tokenizers())
class TestTokenizer:
    @pytest.fixture(autouse=True)
    def _folder(self, folder: Path) -> None:
        self.folder = folder

    def built(self, name: str) -> Tokenizer:
        tokenizer = build_tokenizer(name, **SMALL[name])
        if tokenizer.needs_weights and not isinstance(tokenizer, NetworkTokenizer):
            tokenizer.load_published(self.folder)
        return tokenizer

    def fitted(self, name: str, photographs: list[Image.Image]) -> tuple[Tokenizer, Tensor]:
        tokenizer = self.built(name)
        images = torch.stack([tokenizer.transform(image) for image in photographs])
        if isinstance(tokenizer, NetworkTokenizer):
            tokenizer.load_reference(random_reference(tokenizer))
        else:
            tokenizer.fit(images.split(10))
        return tokenizer, images

    def test_tokens_are_one_code_per_patch(self, name: str, photographs: list[Image.Image]) -> None:
        tokenizer, images = self.fitted(name, photographs)
        tokens = tokenizer.encode(images)
        assert tokens.dtype == torch.int64
        assert tokens.shape == (24, tokenizer.grid**2)
        assert 0 <= tokens.min() < tokens.max() < tokenizer.codebook_size
        assert not torch.equal(tokens[0], tokens[1])

    def test_an_images_tokens_depend_on_no_other_image(
        self, name: str, photographs: list[Image.Image]
    ) -> None:
        tokenizer, images = self.fitted(name, photographs)
        together = tokenizer.encode(images)
        assert torch.equal(torch.cat([tokenizer.encode(batch) for batch in images.split(1)]), together)
        assert torch.equal(tokenizer.encode(images.flip(0)).flip(0), together)

    def test_fitting_repeats_and_travels(
        self, name: str, photographs: list[Image.Image], tmp_path: Path
    ) -> None:
        tokenizer, images = self.fitted(name, photographs)
        again, _ = self.fitted(name, photographs)
        assert again.digest == tokenizer.digest
        tokenizer.save(tmp_path)
        loaded = self.built(name)
        loaded.load(tmp_path)
        assert loaded.digest == tokenizer.digest
        assert torch.equal(loaded.encode(images), tokenizer.encode(images))

    def test_unfitted_it_encodes_nothing(self, name: str, photographs: list[Image.Image]) -> None:
        tokenizer = build_tokenizer(name, **SMALL[name])
        images = tokenizer.transform(photographs[0])[None]
        with pytest.raises(HarnessError, match="fit"):
            tokenizer.encode(images)
