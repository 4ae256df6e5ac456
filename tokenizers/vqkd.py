"""vq-kd: the tokenizer that BEiT v2 released (Peng et al. 2022, arXiv 2208.06366, section 2.1).

A ViT learned to reproduce CLIP's features through a codebook; kept are its encoder, the head that leads
into the codebook's space, and the codebook. A token is the nearest of the unit rows to a patch's unit code.

Shapes: B images, N patches, D width, C code width, V codebook size, S image side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from protocols.errors import HarnessError
from tokenizers.network import NetworkTokenizer, Shapes
from tokenizers.specs import TokenizerSpec

_CODEBOOK = "quantize.embedding.weight"
_TRAINING_ONLY = ("loss", "teacher", "scaling")
_AFTER_THE_CODEBOOK = ("decoder.", "decode_task_layer.")
_STATISTICS = (
    "quantize.cluster_size",
    "quantize.embedding.cluster_size",
    "quantize.embedding.embed_avg",
    "quantize.embedding.initted",
)
_ROWS = 2048  # codes that are compared with the whole codebook at a time: bounds memory, changes no id


class VQKDEncoder(nn.Module):
    """(B, 3, S, S) in [0, 1] -> ids (B, N)."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        codebook_size: int,
        code_width: int,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        # Pooling by mean is what makes timm leave `norm` out and put `fc_norm` behind; nothing is pooled.
        self.encoder: Any = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            num_classes=0,
            global_pool="avg",
            device=device,
        )
        self.encode_task_layer = nn.Sequential(
            nn.Linear(width, width, device=device), nn.Tanh(), nn.Linear(width, code_width, device=device)
        )
        self.codebook = nn.Parameter(torch.empty(codebook_size, code_width, device=device))  # (V, C)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> (B, N, D). Pixels are scaled to [-1, 1], whatever the data set."""
        tokens_B1ND = self.encoder.forward_features(2 * images - 1)
        features_BND: Tensor = self.encoder.fc_norm(tokens_B1ND[:, 1:])
        return features_BND

    def codes(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> (B, N, C), not yet normalised."""
        codes_BNC: Tensor = self.encode_task_layer(self.features(images))
        return codes_BNC

    def forward(self, images: Tensor) -> Tensor:
        return nearest_rows(self.codes(images), self.codebook)


def nearest_rows(codes: Tensor, codebook: Tensor) -> Tensor:
    """Codes (..., C), normalised here, and rows (V, C) -> the id of each code's nearest row (...)."""
    rows_CV = codebook.double().T
    half_squares_V = rows_CV.square().sum(0) / 2
    units = F.normalize(codes.reshape(-1, codes.shape[-1]), dim=-1).double()
    # |z - e|^2 / 2 less |z|^2 / 2, which is the same for every row.
    ids = [torch.addmm(half_squares_V, some, rows_CV, alpha=-1).argmin(1) for some in units.split(_ROWS)]
    return torch.cat(ids).reshape(codes.shape[:-1])


class VQKD(NetworkTokenizer):
    """BEiT v2's released tokenizer, at any size. `network` is a VQKDEncoder."""

    network: VQKDEncoder

    def __init__(self, spec: TokenizerSpec, config: Mapping[str, Any]) -> None:
        image_size, patch_size = config["image_size"], config["patch_size"]
        width, heads = config["width"], config["heads"]
        if image_size % patch_size:
            raise HarnessError(
                f"image_size {image_size} is not a multiple of patch_size {patch_size}; change one of them"
            )
        if width % heads:
            raise HarnessError(f"width {width} is not a multiple of heads {heads}; change one of them")
        sizes = ("image_size", "patch_size", "width", "depth", "heads", "codebook_size", "code_width")
        network = VQKDEncoder(**{name: config[name] for name in sizes}, device="meta")
        super().__init__(spec, config, network=network, grid=image_size // patch_size)

    def codebook_rows(self) -> Tensor:
        """The unit rows (V, C). HarnessError before loading."""
        self._require_weights()
        return self.network.codebook.detach().cpu()

    def distances(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N) float64: of each patch's unit code to its nearest row."""
        self.check_images(images)
        rows_VC = self.codebook_rows().double()
        blocks = [self._exactly(self.network.codes, block) for block in self._padded_blocks(images)]
        if not blocks:
            return torch.empty(0, self.grid**2, dtype=torch.float64)
        codes_BNC = torch.cat(blocks)[: len(images)]
        ids_BN = nearest_rows(codes_BNC, rows_VC)
        return (F.normalize(codes_BNC, dim=-1).double() - rows_VC[ids_BN]).norm(dim=-1)

    def reference_shapes(self) -> Shapes:
        """One bias of queries, keys and values here is two there: keys have none."""
        shapes: Shapes = {}
        for name, tensor in self.network.state_dict().items():
            if name == "codebook":
                shapes[_CODEBOOK] = tensor.shape
            elif name.endswith("attn.qkv.bias"):
                for part in ("q_bias", "v_bias"):
                    shapes[name.replace("qkv.bias", part)] = torch.Size([len(tensor) // 3])
            else:
                shapes[name] = tensor.shape
        return shapes

    def _renamed(self, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own: dict[str, Tensor] = {}
        for name, tensor in reference.items():
            if name == _CODEBOOK:
                own["codebook"] = tensor
            elif name.endswith("attn.q_bias"):
                v_bias = reference[name.replace("q_bias", "v_bias")]
                own[name.replace("q_bias", "qkv.bias")] = torch.cat(
                    [tensor, torch.zeros_like(tensor), v_bias]
                )
            elif not name.endswith("attn.v_bias"):
                own[name] = tensor
        return own

    def _is_unused(self, name: str) -> bool:
        return name.startswith(_TRAINING_ONLY + _AFTER_THE_CODEBOOK) or name in _STATISTICS
