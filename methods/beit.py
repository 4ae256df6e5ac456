"""BEiT (arXiv 2106.08254): MIM with block-wise masks, whose count varies from image to image."""

from __future__ import annotations

from torch import Tensor

from methods import patterns
from methods.mim import MaskedImageModelling
from protocols.schema import TrunkSpec


class BlockMaskedImageModelling(MaskedImageModelling):
    """MIM whose masks are rectangles of at least `min_block` patches, `mask_count` at most in all."""

    def __init__(self, *, trunk: TrunkSpec, codebook_size: int, mask_count: int, min_block: int) -> None:
        super().__init__(trunk=trunk, codebook_size=codebook_size, mask_count=mask_count)
        self.min_block = min_block

    def draw(self, sample_ids: Tensor, epoch: int, seed: int) -> Tensor:
        """(B, N) bool, True = masked; at most `mask_count` per image."""
        return patterns.block_masks(
            sample_ids,
            grid=self.trunk_spec.grid,
            target=self.mask_count,
            min_block=self.min_block,
            exact=False,
            epoch=epoch,
            seed=seed,
        )
