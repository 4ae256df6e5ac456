"""MaskFeat (arXiv 2112.09133): BEiT's masks, and gradient histograms of the patches for tokens.

The target of a masked patch is its histogram of oriented gradients (HOG): the paper's 9 unsigned bins, cells
of half a patch's side, each colour channel by itself, each histogram of unit length. As in the authors'
released code (facebookresearch/SlowFast), gradients are Sobel's with reflected borders, bins are counted from
straight down, and a pixel gives its whole magnitude to one bin of one cell.

Legend: B images, C channels, S pixels of a side, N patches, n cells of a patch's side, D width,
F = n n 9 C targets of a patch, P masked patches of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from methods import patterns
from methods.base import Method, learned_token, token_head
from methods.trunk import encode, patch_tokens, with_cls
from protocols.schema import TrunkSpec

BINS = 9


class MaskedFeaturePrediction(Method):
    """Predict the gradient histograms of masked patches from the visible ones; no tokens are used."""

    pattern_dtype = torch.bool

    def __init__(
        self, *, trunk: TrunkSpec, codebook_size: int, mask_count: int, min_block: int, cells_per_side: int
    ) -> None:
        super().__init__(trunk=trunk, codebook_size=codebook_size)
        if codebook_size:
            raise ValueError(f"MaskFeat predicts no tokens: codebook_size must be 0, got {codebook_size}")
        if trunk.patch_size % cells_per_side:
            raise ValueError(
                f"cells_per_side must divide the patch's {trunk.patch_size} pixels, got {cells_per_side}"
            )
        self.mask_count, self.min_block, self.cells_per_side = mask_count, min_block, cells_per_side
        self.mask_token = learned_token(trunk.width)
        self.head = token_head(trunk.width, feature_width(cells_per_side))

    def draw(self, sample_ids: Tensor, epoch: int, seed: int) -> Tensor:
        """(B, N) bool, True = masked; block-wise, at most `mask_count` per image."""
        return patterns.block_masks(
            sample_ids,
            grid=self.trunk_spec.grid,
            target=self.mask_count,
            min_block=self.min_block,
            exact=False,
            epoch=epoch,
            seed=seed,
        )

    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> dict[str, Tensor]:
        """See `Method.forward`; logits and targets (P, F), loss the mean of squared differences."""
        self._check(images, tokens, pattern, self.trunk_spec.patches)
        if not pattern.any():
            raise ValueError("the pattern predicts nothing: no position is masked")
        patches = patch_tokens(self.trunk, images)
        patches = torch.where(pattern[:, :, None], self.mask_token.to(patches.dtype), patches)
        encoded = encode(self.trunk, with_cls(self.trunk, patches), through=self._through)
        predicted = self.head(self.trunk.norm(encoded[:, 1:][pattern]))  # (P, F)
        targets = gradient_histograms(
            images, patch_size=self.trunk_spec.patch_size, cells_per_side=self.cells_per_side
        )[pattern]
        result = {"loss": F.mse_loss(predicted.float(), targets), "targets": targets}
        return result | {"logits": predicted} if self.keeps_logits else result

    def count_targets(self, pattern: Tensor) -> Tensor:
        """See `Method.count_targets`."""
        return pattern.sum()

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> NoReturn:
        """Raises ValueError: no public weights have names that are read here."""
        raise ValueError("MaskFeat has no public reference names to read")


def feature_width(cells_per_side: int) -> int:
    """F: histograms of all cells of a patch, in three colour channels."""
    return 3 * cells_per_side**2 * BINS


@torch.no_grad()
def gradient_histograms(images: Tensor, *, patch_size: int, cells_per_side: int) -> Tensor:
    """Images (B, C, S, S) -> (B, N, F) float32: a patch's cells row-major, of each its channels, their bins.

    A bin holds the magnitudes of a cell's gradients whose direction, up to its sign, is in its 20 degrees;
    the first begins at straight down, so that straight across is the middle of the fifth.
    """
    with torch.autocast(images.device.type, enabled=False):
        padded = F.pad(images.float(), (1, 1, 1, 1), mode="reflect")
        # Differences come first: where neighbours are equal a gradient is zero exactly, on every device.
        across = padded[..., 2:] - padded[..., :-2]  # (B, C, S + 2, S)
        down = padded[..., 2:, :] - padded[..., :-2, :]  # (B, C, S, S + 2)
        across = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]  # (B, C, S, S)
        down = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
        # Straight down, both signs are the angle 0: rounded, pi could fall short of it.
        down = torch.where(across == 0, down.abs(), down)
        number = (torch.atan2(across, down) * (BINS / math.pi)).floor().remainder(BINS).long()
        bins, magnitudes = (
            _by_cell(one, patch_size // cells_per_side, cells_per_side)
            for one in (number, torch.hypot(across, down))
        )
        histograms = magnitudes.new_zeros(*magnitudes.shape[:-1], BINS).scatter_add_(-1, bins, magnitudes)
        return F.normalize(histograms, dim=-1).flatten(2)


def _by_cell(pixels: Tensor, cell: int, cells: int) -> Tensor:
    """(B, C, S, S) -> (B, N, n n, C, pixels of a cell); patches, cells and pixels row-major."""
    sides = pixels.unflatten(3, (-1, cells, cell)).unflatten(2, (-1, cells, cell))
    # (B, C, row of patches, of cells, of pixels, column of patches, of cells, of pixels)
    return sides.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(6).flatten(3, 4).flatten(1, 2)
