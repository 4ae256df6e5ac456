"""The contract of a method: draw a pattern first, compute second.

Shapes: B images, N patches, D width, V codebook, K targets of one image, P predicted positions of
the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from methods.chunked_loss import chunked_cross_entropy, has_large_logits
from methods.trunk import build_trunk, compile_each
from protocols.schema import TrunkSpec


class Method(nn.Module, ABC):
    """A pre-training objective on the shared trunk.

    Subclasses build their own parts after `super().__init__`, which draws the trunk first: equal
    seeds give equal trunks whatever the method.
    """

    pattern_dtype: ClassVar[torch.dtype]
    # A training run's choices, set on the instance. Without its logits `forward` may save their memory.
    keeps_logits: bool = True
    # The backward pass computes each block again, in the place of keeping what is in it.
    recomputes_blocks: bool = False

    head: nn.Linear

    def __init__(self, *, trunk: TrunkSpec, codebook_size: int) -> None:
        """`codebook_size` 0 means that no tokens are predicted: `MethodSpec.uses_tokens` is False."""
        super().__init__()
        if codebook_size < 2 and codebook_size != 0:
            raise ValueError(f"codebook_size must be at least 2, or 0 (no tokens), got {codebook_size}")
        self.trunk_spec = trunk
        self.codebook_size = codebook_size
        self.trunk = build_trunk(trunk)

    @abstractmethod
    def draw(self, sample_ids: Tensor, epoch: int, seed: int) -> Tensor:
        """sample ids int64 (B,) -> pattern; pure in (seed, epoch, sample id), no weights involved."""

    @abstractmethod
    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> dict[str, Tensor]:
        """images (B, 3, H, W) normalised, tokens int64 (B, N), or (B, 0) for no codebook, pattern as drawn.

        Returns `loss` (mean over all predicted positions), `targets` and, unless `keeps_logits` is False,
        `logits` (one row per position, V wide: what is predicted of it). Raises ValueError if the pattern
        predicts nothing, or if a shape or type is wrong.
        """

    @abstractmethod
    def count_targets(self, pattern: Tensor) -> Tensor:
        """Predicted positions of the batch, a scalar int64: the denominator of its loss."""

    @abstractmethod
    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the public reference implementation's weights, strictly.

        Raises ValueError that names every missing, unexpected or misshapen key.
        """

    def export_backbone(self) -> dict[str, Tensor]:
        """The trunk's weights under timm's names; timm loads them strictly with `num_classes=0`."""
        return {name: value.detach().clone() for name, value in self.trunk.state_dict().items()}

    def compile_blocks(self) -> None:
        """Compile what runs once per block, in place: no key of the state dict changes.

        A method whose blocks are not called as modules, or not all in the trunk, overrides this.
        """
        compile_each(self.trunk.blocks)

    def no_weight_decay(self) -> set[str]:
        """Parameters of two or more dimensions that AdamW must not decay."""
        return {"trunk.pos_embed", "trunk.cls_token"}

    def _prediction(self, rows: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Rows (..., D) that went through the final norm, targets int64 (...) -> what `forward` returns."""
        if not self.keeps_logits and has_large_logits(rows, self.codebook_size):
            loss = chunked_cross_entropy(rows.flatten(0, -2), self.head, targets.flatten())
            return {"loss": loss, "targets": targets}
        logits = self.head(rows)
        result = {"loss": mean_cross_entropy(logits, targets), "targets": targets}
        return result | {"logits": logits} if self.keeps_logits else result

    def _through(self, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """`function` of the inputs; one that runs once per block, so that it is what is recomputed.

        Drop path draws the same again: the state of the random numbers is kept.
        """
        if self.recomputes_blocks and self.training and torch.is_grad_enabled():
            result: Tensor = checkpoint(function, *inputs, use_reentrant=False)
            return result
        return function(*inputs)

    def _check(self, images: Tensor, tokens: Tensor, pattern: Tensor, width: int) -> None:
        columns = self.trunk_spec.patches if self.codebook_size else 0
        expected: tuple[tuple[str, Tensor, tuple[int, ...], torch.dtype | None], ...] = (
            ("tokens", tokens, (len(images), columns), torch.int64),
            ("pattern", pattern, (len(images), width), self.pattern_dtype),
        )
        for name, value, shape, dtype in expected:
            if tuple(value.shape) != shape or value.dtype != dtype:
                raise ValueError(
                    f"{name} must be {dtype} of shape {shape}, "
                    f"got {value.dtype} of shape {tuple(value.shape)}"
                )


def learned_token(width: int) -> nn.Parameter:
    """A learned (1, 1, D) token, truncated normal(0.02)."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))


def token_head(width: int, codebook_size: int) -> nn.Linear:
    """Linear(D, V) with bias, initialised like any Linear of the trunk."""
    head = nn.Linear(width, codebook_size)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """One mean over all predicted positions: logits (..., V), targets int64 (...)."""
    if targets.numel() == 0:
        raise ValueError("the pattern predicts nothing: no position is masked")
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())
