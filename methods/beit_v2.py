"""BEiT v2's patch aggregation (arXiv 2208.06366, section 3.3): BEiT, with a class token that must know more.

A second, shallow head predicts the same tokens again. It sees the patches of the l-th block only and the
class token of the last, so what the blocks between find out of the image has to pass through that token.

Legend: B images, N patches, D width, V codebook, P predicted positions of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from methods.beit import BlockMaskedImageModelling
from methods.reference import ReferenceReader
from methods.trunk import compile_each, patch_tokens, with_cls
from methods.trunk_blocks import trunk_blocks
from protocols.schema import TrunkSpec


class PatchAggregation(BlockMaskedImageModelling):
    """BEiT's loss twice: from the trunk, and from its last class token with earlier patches."""

    def __init__(
        self,
        *,
        trunk: TrunkSpec,
        codebook_size: int,
        mask_count: int,
        min_block: int,
        early_layer: int,
        head_depth: int,
    ) -> None:
        super().__init__(trunk=trunk, codebook_size=codebook_size, mask_count=mask_count, min_block=min_block)
        if early_layer > trunk.depth:
            raise ValueError(
                f"early_layer must be at most {trunk.depth}, the trunk's depth, got {early_layer}"
            )
        self.early_layer = early_layer
        last = early_layer + head_depth
        # The released model's rates: the head goes on from the block that its patches come from.
        rates = torch.linspace(0, trunk.drop_path, max(trunk.depth, last)).tolist()[early_layer:last]
        self.aggregator = trunk_blocks(trunk, rates)

    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> dict[str, Tensor]:
        """See `Method.forward`; logits (P, V) of the trunk, terms `loss_tokens`, `loss_aggregation`."""
        self._check(images, tokens, pattern, self.trunk_spec.patches)
        patches = patch_tokens(self.trunk, images)
        patches = torch.where(pattern[:, :, None], self.mask_token.to(patches.dtype), patches)
        rows = early = with_cls(self.trunk, patches)  # (B, 1 + N, D)
        for number, block in enumerate(self.trunk.blocks, start=1):
            rows = self._through(block, rows)
            early = rows if number == self.early_layer else early
        aggregated = torch.cat([rows[:, :1], early[:, 1:]], dim=1)
        for block in self.aggregator:
            aggregated = self._through(block, aggregated)
        # Both share the final norm and the head, as in the paper.
        main, second = (
            self._prediction(self.trunk.norm(encoded[:, 1:][pattern]), tokens[pattern])
            for encoded in (rows, aggregated)
        )
        return {
            **main,
            "loss": main["loss"] + second["loss"],
            "loss_tokens": main["loss"],
            "loss_aggregation": second["loss"],
        }

    def compile_blocks(self) -> None:
        """See `Method.compile_blocks`; the aggregation head's blocks too."""
        super().compile_blocks()
        compile_each(self.aggregator)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """BEiT v2's names with absolute positions and a shared head; a relative position bias is refused."""
        reader = ReferenceReader(state_dict, self)
        reader.beit_trunk("trunk.", "", self.trunk_spec.depth)
        reader.copy("mask_token", "mask_token")
        reader.copy_all("head.", "lm_head.", ("weight", "bias"))
        for index, _ in enumerate(self.aggregator):
            reader.beit_block(f"aggregator.{index}.", f"cls_pt_layers.{index}.")
        reader.finish()
