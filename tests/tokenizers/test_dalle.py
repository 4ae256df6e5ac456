"""dall-e against the reference's numbers, and which state dicts it takes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from protocols.errors import HarnessError
from tests.tokenizers.reference_weights import GOLDEN, build, golden
from tokenizers import build_tokenizer
from tokenizers.dalle import Dalle
from tokenizers.network import NetworkTokenizer

NUMBERS, WEIGHTS = golden("dalle_encoder_tiny.npz")
IMAGES = NUMBERS["in.image_0_1"]


@pytest.fixture
def tokenizer() -> Dalle:
    built = build("dall-e")
    built.load_reference(WEIGHTS)
    assert isinstance(built, Dalle)
    return built


def test_logits_and_ids_are_the_references(tokenizer: Dalle) -> None:
    torch.testing.assert_close(tokenizer.network.logits(IMAGES), NUMBERS["out.logits"], atol=1e-5, rtol=0)
    ids = tokenizer.encode(IMAGES)
    assert torch.equal(ids.reshape(2, 4, 4), NUMBERS["out.ids"]), "row-major"


def test_pixels_as_they_are_would_show(tokenizer: Dalle) -> None:
    """What reaches the first convolution is 0.8x + 0.1, not x."""
    torch.testing.assert_close(0.8 * IMAGES + 0.1, NUMBERS["mid.mapped"])
    unmapped = (IMAGES - 0.1) / 0.8  # which the tokenizer itself maps to the images as they are
    logits = tokenizer.network.logits(unmapped)
    assert (logits - NUMBERS["out.logits"]).abs().max() > 1e-2
    assert (tokenizer.encode(unmapped) != NUMBERS["out.ids"].flatten(1)).any()


def test_the_released_file_has_these_keys_and_shapes() -> None:
    released = json.loads((GOLDEN / "dalle_encoder_state_dict_keys.json").read_text())
    tokenizer = build_tokenizer("dall-e")
    assert isinstance(tokenizer, NetworkTokenizer)
    assert not tokenizer.is_fitted
    shapes = tokenizer.reference_shapes()
    assert {name: list(shape) for name, shape in shapes.items()} == released
    assert len(shapes) == 74
    assert sum(shape.numel() for shape in shapes.values()) == 53_786_240
    assert (tokenizer.grid, tokenizer.codebook_size) == (14, 8192)


@pytest.mark.parametrize(
    "name", ["blocks.input.w", "blocks.group_3.block_1.id_path.b", "blocks.output.conv.b"]
)
def test_other_state_dicts_are_refused_by_key(name: str) -> None:
    tokenizer = build("dall-e")
    rest = {other: tensor for other, tensor in WEIGHTS.items() if other != name}
    with pytest.raises(HarnessError, match=rf"tokenizer dall-e, weights: {name} .* is missing"):
        tokenizer.load_reference(rest)
    with pytest.raises(HarnessError, match=rf"{name} has shape \(7,\)"):
        tokenizer.load_reference(WEIGHTS | {name: torch.zeros(7)})
    with pytest.raises(HarnessError, match=rf"{name}x is no part of this network"):
        tokenizer.load_reference(WEIGHTS | {f"{name}x": torch.zeros(7)})
    assert not tokenizer.is_fitted


def test_images_are_resized_by_lanczos() -> None:
    tokenizer = build_tokenizer("dall-e")
    pixels = np.random.default_rng(0).integers(0, 256, (150, 231, 3), dtype=np.uint8)
    square = Image.fromarray(pixels[:, 40:190])
    expected = np.asarray(square.resize((112, 112), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    assert torch.equal(tokenizer.transform(Image.fromarray(pixels)), torch.tensor(expected.copy()) / 255)
    assert tokenizer.input_transform == "centre square, lanczos to 112 x 112, RGB in [0, 1]"


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(HarnessError, match="image_size 36 is not a multiple of 8"):
        build("dall-e", image_size=36)
    with pytest.raises(HarnessError, match="width 18 is not a multiple of 4"):
        build("dall-e", width=18)
