"""From pixels to the tensor that a model sees.

Augmentations are batched tensor operations whose parameters are pure in (seed, epoch, sample id), so
a result depends on no batch, worker or process count. Shapes: B images of (3, S, S).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.patterns import keyed_hash

# Streams keep augmentation apart from masks (0, 1) under the same seed.
FLIP, SHIFT, JITTER = 2, 3, 4
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L" conversion


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 or [0, 1] float (B, 3, S, S) -> float32, channel-wise (x - mean) / std."""
    images = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    shape = (1, 3, 1, 1)
    return (images - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


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


def color_jitter(pixels: Tensor, sample_ids: Tensor, *, strength: float, epoch: int, seed: int) -> Tensor:
    """Brightness, contrast and saturation, each by a factor in 1 +- strength, in a random order.

    uint8 (B, 3, S, S) -> float32 in [0, 1]. The definition is torchvision's ColorJitter on floats;
    the draws are keyed and not taken from a global generator.
    """
    images = pixels.float() / 255
    if not strength:
        return images
    draws = uniform(sample_ids, epoch=epoch, seed=seed, stream=JITTER, count=6)
    factors = (1 + strength * (2 * draws[:, :3] - 1)).clamp(min=0).float()
    order = draws[:, 3:].argsort(dim=1, stable=True)
    luma = torch.tensor(_LUMA).view(1, 3, 1, 1)
    for turn in range(3):
        operation = order[:, turn]
        factor = factors.gather(1, operation[:, None]).view(-1, 1, 1, 1)
        grey = (images * luma).sum(1, keepdim=True)
        references = (torch.zeros_like(grey), grey.mean((2, 3), keepdim=True).expand_as(grey), grey)
        reference = torch.stack(references)[operation, torch.arange(len(images))]
        images = (factor * images + (1 - factor) * reference).clamp(0, 1)
    return images
