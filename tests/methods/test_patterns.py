"""Randomness as data: uniform, keyed, and the same everywhere and for ever."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from methods import build_method, patterns
from protocols.schema import TrunkSpec

FROZEN_HASHES = [2391539541053276776, 3048674281419798293, -7188976140709794574]
FROZEN_PERMUTATIONS = [[5, 4, 2, 1, 3, 0], [0, 5, 2, 3, 4, 1], [0, 5, 1, 3, 4, 2]]


def test_permutations_are_permutations_and_uniform() -> None:
    drawn = patterns.permutations(torch.arange(20_000), patches=8, epoch=0, seed=0)
    assert torch.equal(drawn.sort(dim=1).values, torch.arange(8).expand(20_000, 8))
    counts = torch.stack([torch.bincount(drawn[:, place], minlength=8) for place in range(8)]).double()
    chi_square = ((counts - 2500) ** 2 / 2500).sum()
    assert chi_square < 99  # 49 degrees of freedom; the 0.99999 quantile is 97.9


def test_hashes_do_not_tie_or_repeat() -> None:
    ids = torch.arange(200_000)
    assert len(patterns.keyed_hash(0, 0, ids).unique()) == len(ids)
    streams = [patterns.keyed_hash(0, 0, ids[:100], stream=stream) for stream in range(4)]
    assert len(torch.cat(streams).unique()) == 400


def test_draws_are_frozen() -> None:
    """A change of the generator would change every campaign: these numbers must never move."""
    ids = torch.tensor([0, 1, 123_456_789])
    assert patterns.keyed_hash(0, 0, ids).tolist() == FROZEN_HASHES
    assert patterns.permutations(ids, patches=6, epoch=2, seed=1).tolist() == FROZEN_PERMUTATIONS


def test_negative_and_large_keys_are_accepted() -> None:
    large = patterns.keyed_hash(2**63 + 5, 10**6, torch.tensor([2**62]))
    assert large.dtype == torch.int64


def test_mims_mask_is_the_tail_of_pims_order() -> None:
    trunk = TrunkSpec(image_size=32, patch_size=4, width=24, depth=1, heads=2)
    mim = build_method("mim", trunk=trunk, codebook_size=5, mask_count=20, seed=0)
    pim = build_method("pim", trunk=trunk, codebook_size=5, cutting_point=45, seed=0)
    ids = torch.arange(10)
    mask, order = mim.draw(ids, 1, 2), pim.draw(ids, 1, 2)
    assert (order[:, 0] == 0).all()
    for row in range(10):
        assert set((order[row, 45:] - 1).tolist()) == set(mask[row].nonzero()[:, 0].tolist())


@pytest.mark.parametrize(("exact", "target"), [(False, 25), (True, 25), (True, 48)])
def test_block_masks_on_a_small_grid(exact: bool, target: int) -> None:
    drawn = patterns.block_masks(
        torch.arange(2000), grid=7, target=target, min_block=4, exact=exact, epoch=0, seed=0
    )
    counts = drawn.sum(dim=1)
    assert counts.max() == target
    assert (counts == target).all() if exact else (counts > target // 2).all()
    # The last row and column can be masked: both ends of the interval count.
    share = drawn.double().mean(dim=0).reshape(7, 7)
    assert share.min() > 0.02
    np.testing.assert_allclose(share, share.flip(0, 1), atol=0.06)


def test_block_mask_draws_in_the_stated_order() -> None:
    """Area, aspect, top, left: another order gives another mask from the same stream."""

    class Recorder(random.Random):
        calls: list[str]

        def uniform(self, a: float, b: float) -> float:
            self.calls.append("uniform")
            return super().uniform(a, b)

        def randint(self, a: int, b: int) -> int:
            self.calls.append("randint")
            return super().randint(a, b)

    rng = Recorder(0)
    rng.calls = []
    patterns.block_mask(rng, 14, 20, 16, False)
    assert rng.calls[:4] == ["uniform", "uniform", "randint", "randint"]
