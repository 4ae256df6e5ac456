"""SplitMask (arXiv 2112.10740, section 3.3): split an image, inpaint each half from the other, match both.

Each half of the patches is encoded alone. A shallow decoder predicts the tokens of the half that is missing,
so that every patch is predicted once; and the mean of the decoder's rows has to tell the image from others.

Assumed, since the paper leaves it open: the decoder has the trunk's width and heads, reads the patches
without the class token, and adds the trunk's positions to all its rows; negatives are both branches of the
other images. Those are the images of one group, whose size is a hyperparameter: the loss then does not
depend on how a batch is spread over processes and micro-batches.

Legend: B images, N patches, D width, V codebook, G images of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods import patterns
from methods.base import Method, learned_token, token_head
from methods.trunk import compile_each, encode, patch_tokens, select, with_cls
from methods.trunk_blocks import EPS, trunk_blocks
from protocols.schema import TrunkSpec


class SplitMask(Method):
    """Tokens of each half of an image from its other half, and a contrast among images."""

    pattern_dtype = torch.bool

    def __init__(
        self,
        *,
        trunk: TrunkSpec,
        codebook_size: int,
        decoder_depth: int,
        contrast_weight: float,
        temperature: float,
        contrast_group: int,
    ) -> None:
        super().__init__(trunk=trunk, codebook_size=codebook_size)
        self.contrast_weight, self.temperature = contrast_weight, temperature
        self.contrast_group = contrast_group
        self.mask_token = learned_token(trunk.width)
        self.decoder = trunk_blocks(trunk, torch.linspace(0, trunk.drop_path, decoder_depth).tolist())
        self.decoder_norm = nn.LayerNorm(trunk.width, eps=EPS)
        self.head = token_head(trunk.width, codebook_size)

    def draw(self, sample_ids: Tensor, epoch: int, seed: int) -> Tensor:
        """(B, N) bool, True = in half B, False = in half A; exactly N // 2 of every image in B."""
        patches = self.trunk_spec.patches
        return patterns.random_masks(sample_ids, patches=patches, masked=patches // 2, epoch=epoch, seed=seed)

    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> dict[str, Tensor]:
        """See `Method.forward`; logits (B, N, V), and both terms as `loss_tokens`, `loss_contrast`.

        Raises ValueError unless half of every image's patches are in B and the batch is whole groups; a
        batch that is smaller than a group is a group of its own.
        """
        patches = self.trunk_spec.patches
        self._check(images, tokens, pattern, patches)
        if (pattern.sum(dim=1) != patches // 2).any():
            predicts = "" if pattern.any() else "the pattern predicts nothing: "
            raise ValueError(f"{predicts}SplitMask puts exactly {patches // 2} patches of every image in B")
        # A stable sort of the pattern: indices of A, then of B, both row-major.
        order = pattern.int().argsort(dim=1, stable=True)
        a, b = order.split([patches - patches // 2, patches // 2], dim=1)
        embedded = with_cls(self.trunk, patch_tokens(self.trunk, images))
        from_a = self._inpaint(embedded, a, b)
        from_b = self._inpaint(embedded, b, a)
        # A patch of B is predicted from A, and the other way round.
        prediction = self._prediction(torch.where(pattern[:, :, None], from_a, from_b), tokens)
        views = torch.stack([from_a.mean(dim=1), from_b.mean(dim=1)], dim=1)  # (B, 2, D)
        loss_contrast = self.contrast_weight * self._contrast(views)
        return {
            **prediction,
            "loss": prediction["loss"] + loss_contrast,
            "loss_tokens": prediction["loss"],
            "loss_contrast": loss_contrast,
        }

    def compile_blocks(self) -> None:
        """See `Method.compile_blocks`; the decoder's blocks too."""
        super().compile_blocks()
        compile_each(self.decoder)

    def count_targets(self, pattern: Tensor) -> Tensor:
        """See `Method.count_targets`; every patch is predicted."""
        return torch.tensor(pattern.numel(), device=pattern.device)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> NoReturn:
        """Raises ValueError: no public weights have names that are read here."""
        raise ValueError("SplitMask has no public reference names to read")

    def _inpaint(self, embedded: Tensor, kept: Tensor, missing: Tensor) -> Tensor:
        """Trunk input (B, 1 + N, D) and the indices of two halves -> decoded rows of all patches (B, N, D).

        Only the class token and the patches `kept` are encoded.
        """
        seen = torch.cat([embedded[:, :1], select(embedded[:, 1:], kept)], dim=1)
        encoded = self.trunk.norm(encode(self.trunk, seen, through=self._through))[:, 1:]
        masks = self.mask_token.to(encoded.dtype).expand(*missing.shape, -1)
        places = torch.cat([kept, missing], dim=1).argsort(dim=1)  # where each patch stands among these
        rows = select(torch.cat([encoded, masks], dim=1), places)
        rows = rows + self.trunk.pos_embed[:, 1:]  # type: ignore[index]
        for block in self.decoder:
            rows = self._through(block, rows)
        decoded: Tensor = self.decoder_norm(rows)
        return decoded

    def _contrast(self, views: Tensor) -> Tensor:
        """InfoNCE of two views (B, 2, D) of each image: the other view against all views of other images."""
        group = min(len(views), self.contrast_group)
        if len(views) % group:
            raise ValueError(f"{len(views)} images are no whole number of groups of {group} (contrast_group)")
        with torch.autocast(views.device.type, enabled=False):
            unit = F.normalize(views.float(), dim=-1).view(-1, 2 * group, views.shape[-1])  # (B / G, 2G, D)
            similarity = unit @ unit.transpose(1, 2) / self.temperature  # (B / G, 2G, 2G)
            view = torch.arange(2 * group, device=views.device)
            similarity = similarity.masked_fill(view == view[:, None], -torch.inf)  # none is its own negative
            return F.cross_entropy(similarity.flatten(0, 1), (view ^ 1).repeat(len(unit)))
