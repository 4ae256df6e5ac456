"""From a recipe to an optimiser: parameter groups, AdamW, and the warmed-up cosine, by timm and torch."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

from benchmark.batches import Steps
from protocols.recipes import Optimisation


def build_optimizer(
    model: nn.Module, recipe: Optimisation, *, undecayed: set[str], layer_decay: float | None = None
) -> torch.optim.AdamW:
    """AdamW that decays every tensor of two or more dimensions except those in `undecayed`.

    `layer_decay` multiplies the rate of each trunk layer by its power of distance from the head
    (BEiT's rule, timm's implementation), kept in the groups as `lr_scale`.
    """
    groups: list[dict[str, Any]]
    if layer_decay is None:
        groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=undecayed)
    else:
        groups = param_groups_layer_decay(
            model, recipe.weight_decay, no_weight_decay_list=undecayed, layer_decay=layer_decay
        )
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=recipe.peak_lr,
        betas=recipe.betas,
        eps=recipe.eps,
        fused=True,
    )


def build_schedule(optimizer: torch.optim.Optimizer, recipe: Optimisation, steps: Steps) -> CosineLRScheduler:
    """Linear warm-up from `warmup_lr`, then a cosine to `min_lr`; `step_update(t)` sets step t's rates.

    A function of t alone, so there is nothing to checkpoint. The cosine spans what the warm-up leaves.
    """
    warmup = round(recipe.warmup_epochs * steps.per_epoch)
    return CosineLRScheduler(
        optimizer,
        t_initial=steps.total - warmup,
        lr_min=recipe.min_lr,
        warmup_t=warmup,
        warmup_lr_init=recipe.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
