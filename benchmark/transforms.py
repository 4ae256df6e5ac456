"""From pixels to the tensor that a model sees.

Augmentations are batched tensor operations whose parameters are pure in (seed, epoch, sample id), so
a result depends on no batch, worker or process count. Shapes: B images of (3, S, S).
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.patterns import keyed_hash

# Streams keep augmentation apart from masks (0, 1) under the same seed.
FLIP, SHIFT, JITTER = 2, 3, 4
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L" conversion


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 or [0, 1] float (B, 3, S, S), on any device -> float32, channel-wise (x - mean) / std."""
    images = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    return (images - _of_channels(mean, images.device)) / _of_channels(std, images.device)


def uniform(sample_ids: Tensor, *, epoch: int, seed: int, stream: int, count: int = 1) -> Tensor:
    """(B, count) float64 in [0, 1), pure in (seed, epoch, sample id, stream)."""
    columns = [keyed_hash(seed, epoch, sample_ids, stream=stream * 64 + index) for index in range(count)]
    # 53 bits are what a float64 holds; the shift of a signed integer keeps its sign, the mask drops it.
    return ((torch.stack(columns, dim=1) >> 11) & ((1 << 53) - 1)).double() / (1 << 53)


def random_flip(images: Tensor, sample_ids: Tensor, *, probability: float, epoch: int, seed: int) -> Tensor:
    """Mirror each image left to right with `probability`."""
    flipped = uniform(sample_ids, epoch=epoch, seed=seed, stream=FLIP)[:, 0] < probability
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def random_shift(images: Tensor, sample_ids: Tensor, *, padding: int, epoch: int, seed: int) -> Tensor:
    """Pad by `padding` black pixels and crop back at a random place, each image its own."""
    if not padding:
        return images
    size = images.shape[-1]
    draws = uniform(sample_ids, epoch=epoch, seed=seed, stream=SHIFT, count=2)
    top, left = (draws * (2 * padding + 1)).long().unbind(1)
    padded = F.pad(images, (padding,) * 4)
    offsets = torch.arange(size)
    rows = (top[:, None] + offsets)[:, None, :, None]
    columns = (left[:, None] + offsets)[:, None, None, :]
    batch = torch.arange(len(images))[:, None, None, None]
    channel = torch.arange(images.shape[1])[None, :, None, None]
    return padded[batch, channel, rows, columns]


def jitter_draws(sample_ids: Tensor, *, strength: float, epoch: int, seed: int) -> tuple[Tensor, Tensor]:
    """What `color_jitter` does to each image: factors (B, 3) in 1 +- strength, and their order (B, 3) int64.

    They are computed where the batch is made, on a CPU, so that every device is given the same draws.
    """
    draws = uniform(sample_ids, epoch=epoch, seed=seed, stream=JITTER, count=6)
    factors = (1 + strength * (2 * draws[:, :3] - 1)).clamp(min=0).float()
    return factors, draws[:, 3:].argsort(dim=1, stable=True)


def color_jitter(pixels: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast and saturation, each image by its `factors` (B, 3), in its `order` (B, 3).

    uint8 (B, 3, S, S), on any device that the factors and the order are on -> float32 in [0, 1]. The
    definition is torchvision's ColorJitter on floats; the draws are keyed (`jitter_draws`) and not taken
    from a global generator.
    """
    images = pixels.float() / 255
    luma = _of_channels(_LUMA, images.device)
    each = torch.arange(len(images), device=images.device)
    for turn in range(3):
        operation = order[:, turn]
        factor = factors.gather(1, operation[:, None]).view(-1, 1, 1, 1)
        grey = (images * luma).sum(1, keepdim=True)
        references = (torch.zeros_like(grey), grey.mean((2, 3), keepdim=True).expand_as(grey), grey)
        reference = torch.stack(references)[operation, each]
        images = (factor * images + (1 - factor) * reference).clamp(0, 1)
    return images


@cache
def _of_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One value a channel, (1, 3, 1, 1); kept, for a copy to a GPU would wait for all that runs there."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)
