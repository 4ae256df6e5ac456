"""Two-stream attention in permuted order, shared by PIM and MaPeT.

Tokens are gathered into the permuted order once. Every attention rule is then the same constant for
every image, head and step, so it is built once per (N, c) and never per sample.

Legend: B images, N patches, D width, H heads, V codebook, c cutting point (counts the class token),
K = 1 + N - c targets. Rows of the sequence, in this order:

    context   c      class token and visible patches
    mask      K      (MaPeT only) mask token + position of target k
    target    K      content of target k
    query     K      predicts target k; starts without its content

The first c (+ K) rows are `dense`: they see each other and nothing else, an ordinary ViT pass.
Target and query rows see what `sees` says. Keys and values come from all rows but the queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods import patterns
from methods.base import Method, learned_token, mean_cross_entropy, token_head
from methods.reference import ReferenceReader
from methods.trunk import patch_tokens, select, with_cls
from protocols.schema import TrunkSpec


def visibility(context: int, targets: int, *, mask_tokens: bool) -> Tensor:
    """(2K, keys) bool, True = sees: K target rows, then K query rows, over context (, mask), target keys.

    A target sees the targets up to itself, a query those before its own; with mask tokens each sees
    the mask tokens of exactly the targets whose content it does not see.
    """
    sees_content = torch.ones(targets, targets, dtype=torch.bool).tril()
    before_own = sees_content.tril(-1)
    rows = []
    for content in (sees_content, before_own):
        masks = [~content] if mask_tokens else []
        rows.append(torch.cat([torch.ones(targets, context, dtype=torch.bool), *masks, content], dim=1))
    return torch.cat(rows)


class PermutedPrediction(Method):
    """Predict the tokens of the last K patches of a random order, each from those before it."""

    pattern_dtype = torch.int64
    has_mask_tokens: bool

    def __init__(self, *, trunk: TrunkSpec, codebook_size: int, cutting_point: int) -> None:
        super().__init__(trunk=trunk, codebook_size=codebook_size)
        self.cutting_point = cutting_point
        self.targets = 1 + trunk.patches - cutting_point
        self.dense_rows = cutting_point + self.targets * self.has_mask_tokens
        self.query_token = learned_token(trunk.width)
        self.head = token_head(trunk.width, codebook_size)
        sees = visibility(cutting_point, self.targets, mask_tokens=self.has_mask_tokens)
        self.register_buffer("sees", sees, persistent=False)
        self.sees: Tensor

    def draw(self, sample_ids: Tensor, epoch: int, seed: int) -> Tensor:
        """(B, 1 + N) int64 trunk slots: the class token's 0, then patch slots 1..N in permuted order."""
        order = patterns.permutations(sample_ids, patches=self.trunk_spec.patches, epoch=epoch, seed=seed)
        return F.pad(order + 1, (1, 0))

    def forward(self, images: Tensor, tokens: Tensor, pattern: Tensor) -> dict[str, Tensor]:
        """See `Method.forward`; logits (B, K, V) in permuted order."""
        self._check(images, tokens, pattern, 1 + self.trunk_spec.patches)
        content = select(with_cls(self.trunk, patch_tokens(self.trunk, images)), pattern)
        context, target = content.split([self.cutting_point, self.targets], dim=1)
        target_slots = pattern[:, self.cutting_point :]
        position = self.trunk.pos_embed.expand(len(images), -1, -1)  # type: ignore[union-attr]
        query = self.query_token + select(position, target_slots)
        masks = [query] if self.has_mask_tokens else []
        rows = torch.cat([context, *masks, target, query], dim=1)
        *inner, last = self.trunk.blocks
        for block in inner:
            rows = self._block(block, rows, all_rows=True)
        query = self._block(last, rows, all_rows=False)
        logits = self.head(self.trunk.norm(query))
        targets = torch.gather(tokens, 1, target_slots - 1)
        return {"loss": mean_cross_entropy(logits, targets), "logits": logits, "targets": targets}

    def count_targets(self, pattern: Tensor) -> Tensor:
        """See `Method.count_targets`."""
        return torch.tensor(len(pattern) * self.targets)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """MaPeT's names; PIM, which has no reference implementation, takes the same."""
        reader = ReferenceReader(state_dict, self)
        reader.mapet_trunk("trunk.", self.trunk_spec.depth)
        reader.copy("query_token", "mask_positional_token")
        reader.copy_all("head.", "decoder.", ("weight", "bias"))
        reader.finish()

    def _block(self, block: Any, rows: Tensor, *, all_rows: bool) -> Tensor:
        """One trunk block on (B, R, D); with `all_rows` False only the K query rows come out.

        The loss reads the query rows alone, so the last block computes no others. Each residual
        branch makes one call of drop path, whose draw per image both streams so share.
        """
        normed = block.norm1(rows)
        kept = rows if all_rows else rows[:, -self.targets :]
        asking = normed if all_rows else normed[:, -self.targets :]
        attended = self._attention(block, asking, normed[:, : -self.targets], all_rows=all_rows)
        kept = kept + block.drop_path1(block.ls1(attended))
        return kept + block.drop_path2(block.ls2(block.mlp(block.norm2(kept))))

    def _attention(self, block: Any, asking: Tensor, keys: Tensor, *, all_rows: bool) -> Tensor:
        """asking (B, R, D), keys (B, S, D) -> (B, R, D), both already normed."""
        attn = block.attn
        width = asking.shape[-1]
        query_weight, key_value_weight = attn.qkv.weight.split([width, 2 * width])
        query_bias, key_value_bias = attn.qkv.bias.split([width, 2 * width])
        query = _heads(F.linear(asking, query_weight, query_bias), attn.num_heads)
        key_value = F.linear(keys, key_value_weight, key_value_bias)
        key, value = (_heads(half, attn.num_heads) for half in key_value.chunk(2, dim=-1))
        if not all_rows:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.sees[self.targets :])
        else:
            dense = self.dense_rows
            mixed = torch.cat(
                [
                    F.scaled_dot_product_attention(
                        query[:, :, :dense], key[:, :, :dense], value[:, :, :dense]
                    ),
                    F.scaled_dot_product_attention(query[:, :, dense:], key, value, attn_mask=self.sees),
                ],
                dim=2,
            )
        return attn.proj(mixed.transpose(1, 2).flatten(2))


def _heads(rows: Tensor, heads: int) -> Tensor:
    """(B, R, D) -> (B, H, R, D / H)."""
    return rows.unflatten(-1, (heads, -1)).transpose(1, 2)
