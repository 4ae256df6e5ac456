"""ViT from random initialisation: Table 2's baseline. It has a trunk and no pre-training stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import torch
from torch import Tensor

from methods.base import Method


class Scratch(Method):
    """A trunk that nothing was learned on: fine-tuned from scratch, probed as the random floor."""

    pattern_dtype = torch.bool

    def draw(self, sample_ids: Tensor, epoch: int, seed: int) -> NoReturn:
        """Raises ValueError: there is nothing to draw."""
        raise ValueError("scratch has no pre-training and so no pattern")

    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> NoReturn:
        """Raises ValueError: there is no objective."""
        raise ValueError("scratch has no pre-training objective")

    def count_targets(self, pattern: Tensor) -> NoReturn:
        """Raises ValueError: nothing is predicted."""
        raise ValueError("scratch predicts nothing")

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> NoReturn:
        """Raises ValueError: a random initialisation has no reference weights."""
        raise ValueError("scratch has no reference weights")
