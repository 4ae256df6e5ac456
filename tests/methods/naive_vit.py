"""A vision transformer in plain numpy and float64, one image at a time: what methods are held against.

Weights come from a method's state dict under timm's names. Legend: S rows of one image, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Array = npt.NDArray[np.float64]
_ERF = np.vectorize(math.erf)


def weights_of(module: nn.Module) -> dict[str, Array]:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def shaken(module: nn.Module) -> None:
    """Larger weights, so that what is wrong shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def linear(weights: dict[str, Array], name: str, rows: Array) -> Array:
    return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(weights: dict[str, Array], name: str, rows: Array) -> Array:
    centred = rows - rows.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def block(weights: dict[str, Array], name: str, rows: Array, heads: int) -> Array:
    """One pre-norm block with layer scale: (S, D) -> (S, D)."""
    width = rows.shape[1]
    query, key, value = np.split(
        linear(weights, f"{name}.attn.qkv", layer_norm(weights, f"{name}.norm1", rows)), 3, axis=1
    )
    mixed = np.zeros_like(rows)
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        score = np.exp(query[:, part] @ key[:, part].T / math.sqrt(width / heads))
        mixed[:, part] = score / score.sum(axis=1, keepdims=True) @ value[:, part]
    rows = rows + weights[f"{name}.ls1.gamma"] * linear(weights, f"{name}.attn.proj", mixed)
    hidden = linear(weights, f"{name}.mlp.fc1", layer_norm(weights, f"{name}.norm2", rows))
    hidden = hidden * 0.5 * (1 + _ERF(hidden / math.sqrt(2)))
    return rows + weights[f"{name}.ls2.gamma"] * linear(weights, f"{name}.mlp.fc2", hidden)


def embedded(weights: dict[str, Array], image: Tensor, patch: int) -> Array:
    """Patches of one image (C, S, S), positions not yet added: (N, D)."""
    pixels, filters = image.double().numpy(), weights["trunk.patch_embed.proj.weight"]
    rows = []
    for top in range(0, pixels.shape[1], patch):
        for left in range(0, pixels.shape[2], patch):
            window = pixels[:, top : top + patch, left : left + patch]
            rows.append([(one * window).sum() for one in filters])
    return np.array(rows) + weights["trunk.patch_embed.proj.bias"]


def cross_entropy(logits: Sequence[Array], targets: Sequence[int]) -> float:
    """Mean over rows."""
    losses = [math.log(np.exp(row).sum()) - row[target] for row, target in zip(logits, targets, strict=True)]
    return sum(losses) / len(losses)


def slopes(module: nn.Module, loss: Tensor, by_definition: Callable[[], float]) -> tuple[float, float]:
    """How steep the loss of `module`, all in float64, is along one direction of all weights.

    By the gradients of `loss`; and by differences of what `by_definition` makes of the weights.
    """
    weights = list(module.parameters())
    generator = torch.Generator().manual_seed(2)
    ways = [torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in weights]
    gradients = torch.autograd.grad(loss, weights)
    by_gradients = sum(float((one * way).sum()) for one, way in zip(gradients, ways, strict=True))
    step, there = 1e-5, []
    with torch.no_grad():
        for sign in (1, -2, 1):  # ahead, behind, and back
            for one, way in zip(weights, ways, strict=True):
                one += sign * step * way
            there.append(by_definition())
    return by_gradients, (there[0] - there[1]) / (2 * step)
