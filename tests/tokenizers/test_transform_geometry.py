"""Every tokenizer's transform starts with the one square crop, and its patches are row-major."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from protocols.geometry import square_crop_box
from tokenizers import build_tokenizer
from tokenizers.features import PixelPatches

GOLDEN = Path(__file__).parent.parent / "golden"
BOXES = json.loads((GOLDEN / "square_crop_boxes.json").read_text())["boxes"]


@pytest.mark.parametrize("size", [size for size, box in BOXES.items() if isinstance(box, list)])
def test_crop_boxes_are_the_reference_ones(size: str) -> None:
    width, height = map(int, size.split("x"))
    top, left, crop_height, crop_width = BOXES[size]
    assert square_crop_box(width, height) == (left, top, left + crop_width, top + crop_height)


def test_an_odd_margin_rounds_down() -> None:
    assert square_crop_box(500, 499) == (0, 0, 499, 499)
    assert square_crop_box(7, 10) == (0, 1, 7, 8)


@pytest.mark.parametrize("name", ["k-pixel", "k-feature", "vq-kd"])
def test_transform_crops_the_original_before_it_resizes(name: str) -> None:
    tokenizer = build_tokenizer(name)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 411, 3), dtype=np.uint8)
    side = tokenizer.image_size
    left = (411 - 300) // 2
    square = Image.fromarray(pixels[:, left : left + 300])
    expected = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    found = tokenizer.transform(Image.fromarray(pixels))
    assert found.dtype == torch.float32
    assert found.shape == (3, side, side)
    torch.testing.assert_close(found, torch.from_numpy(expected.astype(np.float32) / 255))


def test_grey_images_become_three_equal_channels() -> None:
    pixels = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
    found = build_tokenizer("k-pixel").transform(Image.fromarray(pixels))
    assert torch.equal(found, torch.from_numpy(pixels.astype(np.float32) / 255).expand(3, 28, 28))


def test_patches_are_row_major() -> None:
    extractor = PixelPatches(patch_size=4, image_size=12)
    image = torch.zeros(1, 3, 12, 12)
    image[0, 1, 4:8, 8:12] = 1  # the green of patch row 1, column 2
    features = extractor.features(image)
    assert features.shape == (1, 9, 48)
    assert features.sum(2).argmax() == 1 * 3 + 2
    assert torch.equal(features[0, 5].reshape(4, 4, 3)[..., 1], torch.ones(4, 4))
    assert features[0, 5].sum() == 16
