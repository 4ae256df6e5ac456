"""MaskFeat against its definition: histograms of oriented gradients, pixel by pixel, and their prediction."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor

from methods import build_method, method_spec
from methods.maskfeat import MaskedFeaturePrediction, gradient_histograms
from protocols.errors import HarnessError
from protocols.schema import TrunkSpec
from tests.methods.naive_vit import Array, block, embedded, layer_norm, linear, shaken, slopes, weights_of

TRUNK = TrunkSpec(image_size=16, patch_size=4, width=16, depth=2, heads=2, layer_scale=0.5)
SOBEL = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))
NO_TOKENS = torch.zeros(3, 0, dtype=torch.int64)


@pytest.fixture(scope="module")
def method() -> MaskedFeaturePrediction:
    built = build_method("maskfeat", trunk=TRUNK, codebook_size=0, seed=0, mask_count=6, min_block=2)
    assert isinstance(built, MaskedFeaturePrediction)
    shaken(built)
    return built


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def pixel(channel: Array, row: int, column: int) -> float:
    """With reflected borders: the neighbour of a border's pixel outside is that inside."""
    side = len(channel)
    row, column = (side - 2 if one == side else abs(one) for one in (row, column))
    return float(channel[row, column])


def by_definition(image: Tensor, *, patch: int, cells: int) -> Array:
    """(N, F), pixel by pixel in float64."""
    channels, cell = image.double().numpy(), patch // cells
    side = channels.shape[1]
    features = []
    for top in range(0, side, patch):
        for left in range(0, side, patch):
            feature: list[float] = []
            for at in range(cells**2):
                corner = (top + at // cells * cell, left + at % cells * cell)
                for channel in channels:
                    bins = [0.0] * 9
                    for row in range(corner[0], corner[0] + cell):
                        for column in range(corner[1], corner[1] + cell):
                            window = [
                                [pixel(channel, row + i, column + j) for j in (-1, 0, 1)] for i in (-1, 0, 1)
                            ]
                            across = sum(SOBEL[i][j] * window[i][j] for i in range(3) for j in range(3))
                            down = sum(SOBEL[j][i] * window[i][j] for i in range(3) for j in range(3))
                            degrees = math.degrees(math.atan2(across, down)) % 180
                            bins[int(degrees // 20)] += math.sqrt(across**2 + down**2)
                    length = math.sqrt(sum(one**2 for one in bins))
                    feature += [one / length for one in bins]
            features.append(feature)
    return np.array(features)


@pytest.mark.parametrize(("patch", "cells"), [(4, 2), (8, 2), (4, 1), (8, 4)])
def test_histograms_are_the_definitions(images: Tensor, patch: int, cells: int) -> None:
    found = gradient_histograms(images, patch_size=patch, cells_per_side=cells)
    assert found.shape == (3, (16 // patch) ** 2, 27 * cells**2)
    for image, features in zip(images, found, strict=True):
        np.testing.assert_allclose(
            features, by_definition(image, patch=patch, cells=cells), rtol=1e-4, atol=1e-5
        )


def cells_of(images: Tensor) -> Tensor:
    """(B, rows of cells, columns, C, 9) of cells of 4 pixels, in patches of 8."""
    found = gradient_histograms(images, patch_size=8, cells_per_side=2)
    return found.view(-1, 2, 2, 2, 2, 3, 9).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def test_a_known_edge_fills_one_bin_of_the_cells_that_it_crosses() -> None:
    """Bright from column 6 on: gradients straight across, in columns 5 and 6 alone. Turned: straight down."""
    image = torch.zeros(1, 3, 16, 16)
    image[..., 6:] = 1.0
    for edge, number in ((image, 4), (-image, 4), (image.transpose(2, 3), 0), (-image.transpose(2, 3), 0)):
        expected = torch.zeros(1, 4, 4, 3, 9)
        expected[:, :, 1, :, number] = 1
        if number == 0:
            expected = expected.transpose(1, 2)
        assert torch.equal(cells_of(edge), expected)


def test_a_slope_fills_the_bin_of_its_direction() -> None:
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    for number in range(9):
        angle = math.radians(20 * number + 10)
        image = (math.sin(angle) * column + math.cos(angle) * row).expand(1, 3, 16, 16)
        inside = cells_of(image)[:, 1:3, 1:3]  # away from the reflected borders
        torch.testing.assert_close(inside, torch.eye(9)[number].expand_as(inside))


def test_mirrored_images_have_mirrored_bins(images: Tensor) -> None:
    """Nine bins of 20 degrees: a quarter turn is four and a half of them, so that only mirrors permute.

    At a border half of a gradient is zero, and its direction on the edge of a bin.
    """
    inner = cells_of(images)[:, 1:3, 1:3].flip(-1)
    torch.testing.assert_close(cells_of(images.flip(3))[:, 1:3, 1:3], inner.flip(2))
    torch.testing.assert_close(cells_of(images.flip(2))[:, 1:3, 1:3], inner.flip(1))


def test_contrast_and_brightness_move_nothing_and_flat_cells_are_zero(images: Tensor) -> None:
    torch.testing.assert_close(cells_of(3 * images + 2), cells_of(images), rtol=1e-4, atol=1e-5)
    assert not cells_of(torch.full((1, 3, 16, 16), 0.7)).any()


def test_histograms_are_exact_under_autocast(images: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = cells_of(images)
    assert torch.equal(found, cells_of(images))


def predicted_by_definition(method: MaskedFeaturePrediction, images: Tensor, pattern: Tensor) -> Array:
    """(P, F), image by image in float64."""
    weights = weights_of(method)
    predictions = []
    for image, masked in zip(images, pattern.tolist(), strict=True):
        patches = embedded(weights, image, TRUNK.patch_size)
        for number in range(16):
            if masked[number]:
                patches[number] = weights["mask_token"][0, 0]
        rows = np.concatenate([weights["trunk.cls_token"][0], patches]) + weights["trunk.pos_embed"][0]
        for number in range(TRUNK.depth):
            rows = block(weights, f"trunk.blocks.{number}", rows, TRUNK.heads)
        predicted = linear(weights, "head", layer_norm(weights, "trunk.norm", rows[1:]))
        predictions += [predicted[number] for number in range(16) if masked[number]]
    return np.array(predictions)


def test_loss_and_gradients_are_the_definitions(method: MaskedFeaturePrediction, images: Tensor) -> None:
    pattern = method.draw(torch.arange(3), 0, 0)
    targets = np.stack([by_definition(image, patch=TRUNK.patch_size, cells=2) for image in images])[pattern]
    predictions = predicted_by_definition(method, images, pattern)
    out = method(images, NO_TOKENS, pattern)
    np.testing.assert_allclose(out["logits"].detach(), predictions, rtol=1e-4, atol=1e-4)
    assert out["loss"].item() == pytest.approx(((predictions - targets) ** 2).mean(), rel=1e-5)
    assert targets.shape == (int(method.count_targets(pattern)), 108)

    double = deepcopy(method).double()
    found, expected = slopes(
        double,
        double(images.double(), NO_TOKENS, pattern)["loss"],
        lambda: float(((predicted_by_definition(double, images, pattern) - targets) ** 2).mean()),
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_pixels_of_masked_patches_move_targets_alone(method: MaskedFeaturePrediction, images: Tensor) -> None:
    pattern = method.draw(torch.arange(3), 0, 0)
    chosen = pattern.view(3, 1, 4, 4).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    changed = torch.where(chosen, images.flip(1) ** 3, images)
    before, after = (method(one, NO_TOKENS, pattern) for one in (images, changed))
    assert torch.equal(before["logits"], after["logits"])
    assert ((before["targets"] - after["targets"]).abs().amax(dim=1) > 0.01).all()


def test_masks_are_beits(method: MaskedFeaturePrediction) -> None:
    beit = build_method("beit", trunk=TRUNK, codebook_size=9, seed=0, mask_count=6, min_block=2)
    assert torch.equal(method.draw(torch.arange(50), 3, 1), beit.draw(torch.arange(50), 3, 1))


def test_what_it_cannot_do_is_said(method: MaskedFeaturePrediction, images: Tensor) -> None:
    with pytest.raises(ValueError, match="predicts nothing"):
        method(images, NO_TOKENS, torch.zeros(3, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="tokens must be"):
        method(images, torch.zeros(3, 16, dtype=torch.int64), method.draw(torch.arange(3), 0, 0))
    with pytest.raises(ValueError, match="codebook_size must be 0"):
        MaskedFeaturePrediction(trunk=TRUNK, codebook_size=9, mask_count=6, min_block=2, cells_per_side=2)
    with pytest.raises(ValueError, match="cells_per_side must divide"):
        build_method("maskfeat", trunk=TRUNK, codebook_size=0, seed=0, cells_per_side=3)
    with pytest.raises(ValueError, match="no public reference"):
        method.load_reference({})
    spec = method_spec("maskfeat")
    assert spec.work is not None
    with pytest.raises(HarnessError, match="cells_per_side must divide the patch's 4 pixels, got 3"):
        spec.work(TRUNK, spec.resolve({"cells_per_side": 3}, trunk=TRUNK))
