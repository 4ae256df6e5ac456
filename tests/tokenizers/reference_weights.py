"""Small published tokenizers for tests: their sizes, golden weights, and random weights of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenizers import build_tokenizer
from tokenizers.network import NetworkTokenizer

GOLDEN = Path(__file__).parent.parent / "golden"
VQKD_SIZES: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 3,
    "codebook_size": 16, "code_width": 4,
}  # fmt: skip
DALLE_SIZES: dict[str, Any] = {"image_size": 32, "width": 16, "codebook_size": 32}
SIZES = {"vq-kd": VQKD_SIZES, "dall-e": DALLE_SIZES}


def build(name: str, **config: Any) -> NetworkTokenizer:
    tokenizer = build_tokenizer(name, **(SIZES[name] | config))
    assert isinstance(tokenizer, NetworkTokenizer)
    return tokenizer


def golden(file: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A golden file's arrays other than weights, and its weights under the reference's names."""
    with np.load(GOLDEN / file, allow_pickle=False) as archive:
        arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
    weights = {name.removeprefix("w."): array for name, array in arrays.items() if name.startswith("w.")}
    return {name: array for name, array in arrays.items() if not name.startswith("w.")}, weights


def random_reference(tokenizer: NetworkTokenizer, *, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of the tokenizer's sizes, under the reference's names; activations keep their scale."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in tokenizer.reference_shapes().items():
        fan_in = shape[1:].numel() if len(shape) > 1 else 1
        noise = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        is_gain = "norm" in name and name.endswith("weight")
        weights[name] = 1 + 0.1 * noise if is_gain else noise if len(shape) > 1 else 0.1 * noise
    return weights
