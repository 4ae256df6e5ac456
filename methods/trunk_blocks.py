"""Blocks like the trunk's that a method stacks on it for pre-training, and that are thrown away after it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.models.vision_transformer import Block, init_weights_vit_timm
from torch import nn

from protocols.schema import TrunkSpec

EPS = 1e-6  # of timm's ViT


def trunk_blocks(spec: TrunkSpec, drop_path: Sequence[float]) -> nn.ModuleList:
    """One block for each rate in `drop_path`, of the trunk's width, heads, MLP ratio and layer scale.

    Initialised as timm initialises the trunk's.
    """
    norm_layer: Any = partial(nn.LayerNorm, eps=EPS)
    blocks = nn.ModuleList(
        Block(
            spec.width,
            spec.heads,
            mlp_ratio=spec.mlp_ratio,
            qkv_bias=True,
            init_values=spec.layer_scale,
            drop_path=rate,
            norm_layer=norm_layer,
        )
        for rate in drop_path
    )
    blocks.apply(init_weights_vit_timm)
    return blocks
