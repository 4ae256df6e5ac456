"""Plug-ins as a user writes them, and the smallest changes that make them wrong."""

from __future__ import annotations

METHOD = '''\
"""RingMIM: MIM that masks the outermost patches."""

import torch
from torch import Tensor

from methods.mim import MaskedImageModelling
from methods.specs import MethodSpec, masked_work
from protocols.hyperparameters import Hyperparameter


class RingMim(MaskedImageModelling):
    def draw(self, sample_ids: Tensor, epoch: int, seed: int) -> Tensor:
        """(B, N): the same patches of every image, those furthest from the centre."""
        side = self.trunk_spec.grid
        place = (torch.arange(side) - (side - 1) / 2).abs()
        far = torch.maximum(place[:, None], place[None, :]).flatten()
        mask = torch.zeros(side * side, dtype=torch.bool)
        mask[torch.argsort(far, descending=True, stable=True)[: self.mask_count]] = True
        return mask.expand(len(sample_ids), -1).clone()


METHODS = (
    MethodSpec(
        name="ring-mim",
        title="RingMIM",
        target="RingMim",
        paper="nowhere",
        hyperparameters=(
            Hyperparameter(
                name="mask_count", type=int, low=1, follows=lambda trunk: trunk.patches // 2, source="half"
            ),
        ),
        work=masked_work,
    ),
)
'''
TOKENIZER = '''\
"""Brightness: the token of a patch is its mean, in steps."""

import torch
from torch import Tensor

from protocols.hyperparameters import Hyperparameter
from tokenizers.base import Tokenizer
from tokenizers.specs import TokenizerSpec


class Brightness(Tokenizer):
    def __init__(self, spec, config):
        super().__init__(spec, config)
        self.image_size, self.grid = config["image_size"], config["grid"]
        self.codebook_size = config["codebook_size"]

    @property
    def is_fitted(self):
        return True

    def encode(self, images: Tensor) -> Tensor:
        self.check_images(images)
        means = torch.nn.functional.adaptive_avg_pool2d(images, self.grid).mean(1).flatten(1)
        return (means * self.codebook_size).long().clamp(max=self.codebook_size - 1)

    def weights(self):
        return {}

    def set_weights(self, weights):
        pass


TOKENIZERS = (
    TokenizerSpec(
        name="brightness",
        target="Brightness",
        summary="the mean of a patch, in steps",
        teacher="none (pixels)",
        hyperparameters=(
            Hyperparameter(name="codebook_size", type=int, low=2, high=256, default=8, source="a try"),
            Hyperparameter(
                name="image_size", type=int, low=1, follows=lambda trunk: trunk.image_size, source="trunk"
            ),
            Hyperparameter(name="grid", type=int, low=1, follows=lambda trunk: trunk.grid, source="trunk"),
        ),
    ),
)
'''
DATA_SET = '''\
"""Stripes: made-up images of two classes, in one file a split."""

import numpy as np

from benchmark.data_sets import DataSetSpec


def read(folder, split):
    with np.load(folder / f"{split}.npz", allow_pickle=False) as archive:
        return archive["images"], archive["labels"]


DATA_SETS = (
    DataSetSpec(
        name="stripes",
        summary="stripes that lie or stand",
        licence="CC0, made by its own script",
        classes=("lying", "standing"),
        needs=("train.npz", "test.npz"),
        remedy="run make_stripes.py {root}/stripes",
        read=read,
    ),
)
'''


def changed(text: str, *changes: tuple[str, str]) -> str:
    """`text` with each of (old, new) at the first place of old, which must be there."""
    for old, new in changes:
        assert old in text, f"{old!r} no longer stands in the plug-in"
        text = text.replace(old, new, 1)
    return text
