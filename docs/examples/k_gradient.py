"""k-gradient: k-means on where edges lie in a patch and which way they run. No network, no labels.

Source: the histograms of oriented gradients of Dalal and Triggs (CVPR 2005), one for each quarter of a
patch. Beside `k-pixel`, whose features are the pixels themselves, it asks what the tokens should hold.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from protocols.hyperparameters import Hyperparameter
from tokenizers import tokenizer_spec
from tokenizers.features import FeatureExtractor
from tokenizers.kmeans import KMeansTokenizer
from tokenizers.specs import TokenizerSpec


class PatchGradients(FeatureExtractor):
    """(B, 3, S, S) in [0, 1] -> (B, N, 4 x bins): a histogram for each quarter of each patch."""

    def __init__(self, *, image_size: int, patch_size: int, bins: int) -> None:
        self.image_size, self.patch_size, self.bins = image_size, patch_size, bins
        self.grid, self.width = image_size // patch_size, 4 * bins

    def features(self, images: Tensor) -> Tensor:
        grey = F.pad(images.float().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        right = grey[:, 0, 1:-1, 2:] - grey[:, 0, 1:-1, :-2]  # (B, S, S)
        down = grey[:, 0, 2:, 1:-1] - grey[:, 0, :-2, 1:-1]
        angle = torch.atan2(down, right) % math.pi  # an edge has no sign
        number = (angle / math.pi * self.bins).long().clamp(max=self.bins - 1)
        votes = F.one_hot(number, self.bins) * torch.hypot(right, down)[..., None]  # (B, S, S, bins)
        half = self.patch_size // 2
        quarters = F.avg_pool2d(votes.permute(0, 3, 1, 2), half)  # (B, bins, 2 grid, 2 grid)
        parts = quarters.unflatten(3, (self.grid, 2)).unflatten(2, (self.grid, 2))
        return parts.permute(0, 2, 4, 3, 5, 1).reshape(len(images), self.grid**2, self.width)

    def to(self, device: torch.device | str) -> None:
        """Nothing to move: there are no weights, and images bring their device."""


class KGradient(KMeansTokenizer):
    """A tokenizer is built as Class(spec, config), every hyperparameter resolved."""

    def __init__(self, spec: TokenizerSpec, config: Mapping[str, Any]) -> None:
        sizes = {name: config[name] for name in ("image_size", "patch_size", "bins")}
        super().__init__(spec, config, extractor=PatchGradients(**sizes))


SIZES = ("image_size", "patch_size")
# What k-pixel takes, with its sources, but for what whitens pixels. Sizes follow the trunk, of any protocol.
SHARED = tuple(
    replace(one, default=None, follows=attrgetter(one.name)) if one.name in SIZES else one
    for one in tokenizer_spec("k-pixel").hyperparameters
    if one.name != "whitening_epsilon"
)
BINS = Hyperparameter(
    name="bins", type=int, low=2, default=9, source="Dalal and Triggs: nine orientations are enough"
)
TOKENIZERS = (
    TokenizerSpec(
        name="k-gradient",
        target="KGradient",
        summary="k-means on histograms of oriented gradients; no network, no download",
        teacher="none (gradients)",
        hyperparameters=(*SHARED, BINS),
        sources=(),
    ),
)
