"""SplitMask against its definition, and what a half of an image must not know."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from methods import build_method, method_spec
from methods.splitmask import SplitMask
from protocols.schema import TrunkSpec
from tests.methods.naive_vit import (
    block,
    cross_entropy,
    embedded,
    layer_norm,
    linear,
    shaken,
    slopes,
    weights_of,
)

# 9 patches: the halves are of 5 and of 4.
TRUNK = TrunkSpec(image_size=12, patch_size=4, width=16, depth=2, heads=2, layer_scale=0.5)
CODES, TEMPERATURE = 7, 0.3


def build(**changes: float | int) -> SplitMask:
    given = {"decoder_depth": 2, "contrast_weight": 0.7, "temperature": TEMPERATURE, "contrast_group": 2}
    built = build_method("splitmask", trunk=TRUNK, codebook_size=CODES, seed=0, **(given | changes))
    assert isinstance(built, SplitMask)
    shaken(built)
    return built


@pytest.fixture(scope="module")
def method() -> SplitMask:
    return build()


@pytest.fixture(scope="module")
def batch(method: SplitMask) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 12, 12, generator=generator)
    tokens = torch.randint(CODES, (4, 9), generator=generator)
    return images, tokens, method.draw(torch.arange(4), 0, 0)


def by_definition(method: SplitMask, images: Tensor, tokens: Tensor, pattern: Tensor) -> tuple[float, float]:
    """Both terms, image by image and pair by pair in float64."""
    weights = weights_of(method)
    position = weights["trunk.pos_embed"][0]
    logits, targets, views = [], [], []
    for image, token, in_b in zip(images, tokens.tolist(), pattern.tolist(), strict=True):
        patches = embedded(weights, image, TRUNK.patch_size)
        for is_from_b in (False, True):
            kept = [n for n in range(9) if in_b[n] == is_from_b]
            rows = np.stack([weights["trunk.cls_token"][0, 0], *(patches[n] for n in kept)])
            rows = rows + position[[0, *(1 + n for n in kept)]]
            for number in range(TRUNK.depth):
                rows = block(weights, f"trunk.blocks.{number}", rows, TRUNK.heads)
            seen = dict(zip(kept, layer_norm(weights, "trunk.norm", rows)[1:], strict=True))
            rows = np.stack([seen.get(n, weights["mask_token"][0, 0]) for n in range(9)]) + position[1:]
            for number in range(2):
                rows = block(weights, f"decoder.{number}", rows, TRUNK.heads)
            rows = layer_norm(weights, "decoder_norm", rows)
            missing = [n for n in range(9) if in_b[n] != is_from_b]
            logits += [linear(weights, "head", rows[n]) for n in missing]
            targets += [token[n] for n in missing]
            mean = rows.mean(axis=0)
            views.append(mean / math.sqrt((mean**2).sum()))
    contrasts = []
    for first in range(0, len(views), 4):  # groups of two images, two views each
        group = views[first : first + 4]
        for one in range(4):
            other = one + 1 if one % 2 == 0 else one - 1
            score = {k: math.exp(group[one] @ group[k] / TEMPERATURE) for k in range(4) if k != one}
            contrasts.append(-math.log(score[other] / sum(score.values())))
    return cross_entropy(logits, targets), sum(contrasts) / len(contrasts)


def test_both_terms_are_the_definitions(method: SplitMask, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    out = method(*batch)
    of_tokens, contrast = by_definition(method, *batch)
    assert out["loss_tokens"].item() == pytest.approx(of_tokens, rel=1e-5)
    assert out["loss_contrast"].item() == pytest.approx(0.7 * contrast, rel=1e-5)
    assert out["loss"].item() == pytest.approx(of_tokens + 0.7 * contrast, rel=1e-5)
    assert torch.equal(out["targets"], batch[1])


def test_gradients_are_the_definitions(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """Of both terms together: what one of them did not hand back would be missing."""
    built = build().double()
    images, tokens, pattern = batch

    def defined() -> float:
        of_tokens, contrast = by_definition(built, images, tokens, pattern)
        return of_tokens + 0.7 * contrast

    loss = built(images.double(), tokens, pattern)["loss"]
    found, expected = slopes(built, loss, defined)
    assert found == pytest.approx(expected, rel=1e-5)


def test_every_split_is_in_half(method: SplitMask) -> None:
    pattern = method.draw(torch.arange(300), epoch=1, seed=2)
    assert (pattern.sum(dim=1) == 4).all()
    assert ((pattern.float().mean(dim=0) - 4 / 9).abs() < 0.12).all(), "no patch has a place of its own"


@pytest.mark.parametrize("in_b", [True, False])
def test_a_half_is_predicted_without_its_pixels(
    method: SplitMask, batch: tuple[Tensor, Tensor, Tensor], in_b: bool
) -> None:
    images, tokens, pattern = batch
    chosen = (pattern == in_b).view(4, 1, 3, 3)
    changed = images + 3 * chosen.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    before, after = (method(one, tokens, pattern)["logits"] for one in (images, changed))
    moved = (after - before).abs().amax(dim=2)  # (B, N)
    assert moved[pattern == in_b].max() == 0
    assert moved[pattern != in_b].min() > 1e-4


def test_whole_groups_average_to_the_whole_batch(
    method: SplitMask, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Weighted by predicted positions, as the engine adds micro-batches up."""
    whole = method(*batch)["loss"]
    parts = [[one[start : start + 2] for one in batch] for start in (0, 2)]
    positions = [method.count_targets(pattern) for _, _, pattern in parts]
    assert [int(one) for one in positions] == [18, 18]
    added = sum(method(*part)["loss"] * count for part, count in zip(parts, positions, strict=True)) / 36
    assert added.item() == pytest.approx(whole.item(), abs=1e-6)


def test_the_order_of_groups_moves_nothing_and_their_members_do(
    method: SplitMask, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    def contrast(*order: int) -> float:
        return method(*(one[list(order)] for one in batch))["loss_contrast"].item()

    assert contrast(2, 3, 1, 0) == pytest.approx(contrast(0, 1, 2, 3), abs=1e-6)
    assert abs(contrast(0, 2, 1, 3) - contrast(0, 1, 2, 3)) > 1e-3


def test_the_contrast_of_known_views(method: SplitMask) -> None:
    """Two images whose views agree and whose descriptors are at right angles: both negatives are 0."""
    views = torch.zeros(2, 2, 16)
    views[0, :, 0] = 5
    views[1, :, 3] = 0.1
    expected = math.log(1 + 2 * math.exp(-1 / TEMPERATURE))
    assert method._contrast(views).item() == pytest.approx(expected, rel=1e-5)
    opposite = views.clone()
    opposite[:, 1] *= -1
    expected = math.log(1 + 2 * math.exp(1 / TEMPERATURE))
    assert method._contrast(opposite).item() == pytest.approx(expected, rel=1e-5)


def test_the_contrast_trains_the_trunk_and_not_the_head(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    built = build()
    built(*batch)["loss_contrast"].backward()
    assert built.head.weight.grad is None
    for parameter in (built.trunk.cls_token, built.trunk.patch_embed.proj.weight, built.mask_token):
        assert parameter.grad is not None  # type: ignore[union-attr]
        assert parameter.grad.abs().sum() > 0  # type: ignore[union-attr, operator]
    assert "loss_contrast" in build(contrast_weight=0.0)(*batch)


def test_batches_of_no_whole_groups_are_refused(
    method: SplitMask, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    with pytest.raises(ValueError, match="3 images are no whole number of groups of 2"):
        method(*(one[:3] for one in batch))
    alone = method(*(one[:1] for one in batch))
    assert alone["loss_contrast"].item() == pytest.approx(0, abs=1e-6), "a group of one has no negatives"
    assert method_spec("splitmask").images_in_a_group({"contrast_group": 2}) == 2


def test_splits_of_other_sizes_are_refused(method: SplitMask, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    images, tokens, pattern = batch
    with pytest.raises(ValueError, match="exactly 4 patches"):
        method(images, tokens, ~pattern)
    with pytest.raises(ValueError, match="predicts nothing"):
        method(images, tokens, torch.zeros_like(pattern))
    with pytest.raises(ValueError, match="no public reference"):
        method.load_reference({})
