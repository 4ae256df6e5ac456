"""Methods that each break one promise, as MIM otherwise: what `check` has to find."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.mim import MaskedImageModelling
from methods.trunk import encode, patch_tokens, with_cls
from protocols.schema import TrunkSpec

Output = dict[str, Tensor]


class Base(MaskedImageModelling):
    """MIM in parts that can be broken one by one."""

    def seen(self, patches: Tensor, pattern: Tensor) -> Tensor:
        """Patch embeddings (B, N, D) with the masked ones replaced."""
        return torch.where(pattern[:, :, None], self.mask_token.to(patches.dtype), patches)

    def blocks(self, rows: Tensor) -> Tensor:
        """Through the trunk's blocks."""
        return encode(self.trunk, rows, through=self._through)

    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> Output:
        self._check(images, tokens, pattern, self.trunk_spec.patches)
        patches = self.seen(patch_tokens(self.trunk, images), pattern)
        encoded = self.blocks(with_cls(self.trunk, patches))
        return self._prediction(self.trunk.norm(encoded[:, 1:][pattern]), tokens[pattern])


class Peeks(Base):
    def seen(self, patches: Tensor, pattern: Tensor) -> Tensor:
        return super().seen(patches, pattern) + 0.1 * patches


class MixesImages(Base):
    def seen(self, patches: Tensor, pattern: Tensor) -> Tensor:
        return super().seen(patches - patches.mean(dim=0), pattern)


class IsBlind(Base):
    def seen(self, patches: Tensor, pattern: Tensor) -> Tensor:
        return super().seen(0 * patches, pattern)


class DrawsInForward(Base):
    def seen(self, patches: Tensor, pattern: Tensor) -> Tensor:
        return super().seen(patches + 0.01 * torch.rand_like(patches), pattern)


class NeverDropsPaths(Base):
    def blocks(self, rows: Tensor) -> Tensor:
        was, _ = self.trunk.training, self.trunk.eval()
        try:
            return super().blocks(rows)
        finally:
            self.trunk.train(was)


class RecomputesNothing(Base):
    def blocks(self, rows: Tensor) -> Tensor:
        return super().blocks(rows.detach() if self.recomputes_blocks else rows)


class ReadsTokens(Base):
    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> Output:
        out = super().forward(images, tokens, pattern)
        logits = out["logits"] + F.one_hot(out["targets"], self.codebook_size)
        return {**out, "logits": logits, "loss": F.cross_entropy(logits, out["targets"])}


class SumsOverImages(Base):
    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> Output:
        out = super().forward(images, tokens, pattern)
        return {**out, "loss": out["loss"] * len(images)}


class ChangesItsImages(Base):
    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> Output:
        return super().forward(images.mul_(0.99), tokens, pattern)


class ForgetsItsState(Base):
    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.scale = 1 + torch.rand(())  # no buffer, so no part of the state dict

    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> Output:
        out = super().forward(images, tokens, pattern)
        return {**out, "loss": out["loss"] * self.scale}


class RoundsItsLoss(Base):
    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> Output:
        out = super().forward(images, tokens, pattern)
        return {**out, "loss": out["loss"].to(torch.get_autocast_dtype("cpu"))} if is_autocast() else out


class LearnsNothing(Base):
    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> Output:
        out = super().forward(images, tokens, pattern)
        return {**out, "loss": 5 + 1e-3 * out["loss"]}


class MixesItsTargets(Base):
    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> Output:
        out = super().forward(images, tokens, pattern)
        return {**out, "targets": out["targets"].flip(0)}


class CountsWrong(Base):
    def count_targets(self, pattern: Tensor) -> Tensor:
        return pattern.sum() + 1


class TakesAnything(Base):
    def _check(self, images: Tensor, tokens: Tensor, pattern: Tensor, width: int) -> None:
        return None


class KeepsItsLogits(Base):
    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> Output:
        self.keeps_logits = True
        return super().forward(images, tokens, pattern)


class HasAnIdlePart(Base):
    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.idle = nn.Linear(2, 2)


class HasAnotherHead(Base):
    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.head = nn.Linear(self.trunk_spec.width, self.codebook_size + 1)


class DrawsBeforeTheTrunk(Base):
    def __init__(self, *, trunk: TrunkSpec, codebook_size: int, mask_count: int) -> None:
        torch.rand(1)
        super().__init__(trunk=trunk, codebook_size=codebook_size, mask_count=mask_count)


class SeedsItself(Base):
    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        nn.init.constant_(self.head.bias, random.Random().random())


class DecaysPositions(Base):
    def no_weight_decay(self) -> set[str]:
        return set()


class ExportsAnother(Base):
    def export_backbone(self) -> dict[str, Tensor]:
        return {name: value * 0.5 for name, value in super().export_backbone().items()}


class DrawsGlobally(Base):
    def draw(self, sample_ids: Tensor, epoch: int, seed: int) -> Tensor:
        shift = int(np.random.randint(100, 2**31))
        return super().draw(sample_ids, epoch, seed + shift)


class DrawsByPlace(Base):
    def draw(self, sample_ids: Tensor, epoch: int, seed: int) -> Tensor:
        return super().draw(torch.arange(len(sample_ids)), epoch, seed)


class DrawsTheSame(Base):
    def draw(self, sample_ids: Tensor, epoch: int, seed: int) -> Tensor:
        return super().draw(sample_ids, 0, seed)


class DrawsNumbers(Base):
    def draw(self, sample_ids: Tensor, epoch: int, seed: int) -> Tensor:
        return super().draw(sample_ids, epoch, seed).float()


class DrawsALine(Base):
    pattern_dtype = torch.int64

    def draw(self, sample_ids: Tensor, epoch: int, seed: int) -> Tensor:
        return torch.arange(len(sample_ids))


class ReturnsItsLoss(Base):
    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> Output:
        return super().forward(images, tokens, pattern)["loss"]  # type: ignore[return-value]


class Detaches(Base):
    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> Output:
        found = super().forward(images, tokens, pattern)
        return found | {"loss": found["loss"].detach()}


class HasALossForEachImage(Base):
    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> Output:
        found = super().forward(images, tokens, pattern)
        return found | {"loss": found["loss"].expand(len(images))}


class ChangesItsWeights(Base):
    def seen(self, patches: Tensor, pattern: Tensor) -> Tensor:
        with torch.no_grad():
            self.mask_token.mul_(0.5)
        return super().seen(patches, pattern)


class Leaves(Base):
    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> Output:
        raise SystemExit(0)


class AsksWrongly(Base):
    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> Output:
        return super().forward(images, tokens.flatten(), pattern)


class Fails(Base):
    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> Output:
        raise RuntimeError("no such thing as a loss")


def is_autocast() -> bool:
    """Under autocast on the CPU."""
    return torch.is_autocast_enabled("cpu")
