"""What each image's objective predicts, as data: permutations, random masks and block-wise masks.

Every pattern is a pure function of (seed, epoch, sample id): the same whatever the batch, the worker,
the rank or the device. Shapes: B images, N patches; sample ids are int64 (B,).
"""

from __future__ import annotations

import math
import random

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MAX_LOG_ASPECT = math.log(1 / 0.3)  # BEiT, section 2.3
_ATTEMPTS = 10


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as the unsigned `value`."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014) on int64 tensors, whose products wrap."""
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        state = (state ^ ((state >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return state ^ ((state >> 31) & ((1 << 33) - 1))


def keyed_hash(seed: int, epoch: int, sample_ids: Tensor, stream: int = 0) -> Tensor:
    """A counter-based hash: int64 of the shape of `sample_ids`, all 64 bits mixed.

    `stream` separates uses that must not share randomness (masks, augmentation, drop path).
    """
    state = torch.zeros_like(sample_ids, dtype=torch.int64)
    for part in (seed, epoch, stream, sample_ids):
        value = part if isinstance(part, Tensor) else _signed(part)
        state = _mix((state ^ value) + _signed(_GOLDEN_GAMMA))
    return state


def permutations(sample_ids: Tensor, *, patches: int, epoch: int, seed: int) -> Tensor:
    """(B, N) int64: for each image a uniform permutation of its patches 0..N-1.

    A 63-bit hash per patch, stably argsorted: hashes of 32 bits would tie, and devices would then
    sort differently.
    """
    per_image = keyed_hash(seed, epoch, sample_ids)[:, None]  # (B, 1)
    counter = torch.arange(1, patches + 1, device=sample_ids.device) * _signed(_GOLDEN_GAMMA)
    keys = _mix(per_image + counter) & ((1 << 63) - 1)  # (B, N)
    return torch.argsort(keys, dim=1, stable=True)


def random_masks(sample_ids: Tensor, *, patches: int, masked: int, epoch: int, seed: int) -> Tensor:
    """(B, N) bool, True = masked: the last `masked` patches of the image's permutation."""
    order = permutations(sample_ids, patches=patches, epoch=epoch, seed=seed)
    is_masked = torch.zeros_like(order, dtype=torch.bool)
    return is_masked.scatter_(1, order[:, patches - masked :], True)


def block_masks(
    sample_ids: Tensor, *, grid: int, target: int, min_block: int, exact: bool, epoch: int, seed: int
) -> Tensor:
    """(B, N) bool, True = masked: one block-wise mask per image from its own keyed stream."""
    keys = keyed_hash(seed, epoch, sample_ids, stream=1).tolist()
    masks = [block_mask(random.Random(key & _MASK64), grid, target, min_block, exact).ravel() for key in keys]
    return torch.from_numpy(np.stack(masks)).to(sample_ids.device)


def block_mask(
    rng: random.Random, side: int, target: int, min_block: int, exact: bool
) -> npt.NDArray[np.bool_]:
    """(side, side) bool, True = masked: rectangles until `target` patches are masked (BEiT, Alg. 1).

    `exact` False is BEiT: stop when ten attempts in a row add nothing, so the count may fall short
    of `target` and never exceeds it. `exact` True is CAE: go on until the count is exact.
    """
    is_masked = np.zeros((side, side), dtype=np.bool_)
    count = 0
    while count < target:
        added = _add_block(rng, is_masked, target - count, min_block)
        count += added
        if not added and not exact:
            break
    return is_masked


def _add_block(rng: random.Random, is_masked: npt.NDArray[np.bool_], budget: int, min_block: int) -> int:
    """Mask one more rectangle of at most `budget` new patches; returns how many it added."""
    side = len(is_masked)
    for _ in range(_ATTEMPTS):
        # With a budget under min_block the interval reverses; the draw is still defined and wanted.
        area = rng.uniform(min_block, budget)
        aspect = math.exp(rng.uniform(-_MAX_LOG_ASPECT, _MAX_LOG_ASPECT))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= side or width >= side:
            continue
        top, left = rng.randint(0, side - height), rng.randint(0, side - width)
        block = is_masked[top : top + height, left : left + width]
        added = block.size - int(np.count_nonzero(block))
        if 0 < added <= budget:
            block[...] = True
            return added
    return 0
