"""CAE's own layers: the latent regressor's cross-attention block, and fixed sin-cos positions.

Legend: B images, M masked patches, S = N keys (visible, then masked), W decoder width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn

EPS = 1e-6


class CrossAttention(nn.Module):
    """Separate q, k and v projections; biases on q and v alone (a k bias cancels in the softmax)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query (B, M, W), key and value (B, S, W) -> (B, M, W)."""
        split = [
            layer(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, rows in ((self.q, query), (self.k, key), (self.v, value))
        ]
        mixed = F.scaled_dot_product_attention(*split)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class RegressorBlock(nn.Module):
    """Queries at masked patches read visible patches and each other; visible ones never change."""

    def __init__(self, width: int, heads: int, *, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.norm_q = nn.LayerNorm(width, eps=EPS)
        self.norm_k = nn.LayerNorm(width, eps=EPS)
        self.norm_v = nn.LayerNorm(width, eps=EPS)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.attn = CrossAttention(width, heads)
        self.mlp = Mlp(width, 4 * width)
        self.ls1 = LayerScale(width, layer_scale)
        self.ls2 = LayerScale(width, layer_scale)
        self.drop_path1 = DropPath(drop_path)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, query: Tensor, visible: Tensor, masked_position: Tensor, position: Tensor) -> Tensor:
        """query (B, M, W), visible (B, N - M, W), positions of masked and of all N patches -> (B, M, W)."""
        rows = torch.cat([visible, query], dim=1)
        attended = self.attn(
            self.norm_q(query + masked_position), self.norm_k(rows + position), self.norm_v(rows)
        )
        query = query + self.drop_path1(self.ls1(attended))
        # The reference's second norm replaces the residual stream; adding it instead is another model.
        query = self.norm2(query)
        return query + self.drop_path2(self.ls2(self.mlp(query)))


def sin_cos_positions(grid: int, width: int) -> Tensor:
    """(1, N, W) fixed table, row-major: [sin(row w), cos(row w), sin(col w), cos(col w)].

    w_k = 10000^(-k / (W/4)), k = 0..W/4-1. Raises ValueError unless W is a multiple of four.
    """
    if width % 4:
        raise ValueError(f"sin-cos positions need a width that is a multiple of 4, got {width}")
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency  # (grid, W/4)
    row = angle[:, None, :].expand(grid, grid, -1)
    column = angle[None, :, :].expand(grid, grid, -1)
    table = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=-1)
    return table.reshape(1, grid * grid, width).float()
