"""dall-e: the encoder of the discrete VAE that DALL-E released (Ramesh et al. 2021, arXiv 2102.12092, A.2).

Convolutions alone, trained to reconstruct pixels; BEiT took its tokens (arXiv 2106.08254, section 2.1).
A token is the largest of the V logits at a place of the last map, whose stride is 8.

Shapes: B images, g = S / 8 tokens along a side, N = g x g, V codebook size, S image side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from protocols.errors import HarnessError
from tokenizers.network import NetworkTokenizer, Shapes
from tokenizers.specs import TokenizerSpec

_GROUPS, _BLOCKS = 4, 2
_STRIDE = 2 ** (_GROUPS - 1)  # each group but the last halves the map
_RESIDUAL_GAIN = 1 / (_GROUPS * _BLOCKS) ** 2


class DalleEncoder(nn.Module):
    """(B, 3, S, S) in [0, 1] -> ids (B, N). `width` is the first group's; each further one doubles it."""

    def __init__(self, *, width: int, codebook_size: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(input=_conv(3, width, 7, device))
        before = width
        for group in range(_GROUPS):
            after = width * 2**group
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            for block in range(_BLOCKS):
                parts[f"block_{block + 1}"] = _Block(before, after, device)
                before = after
            if group < _GROUPS - 1:
                parts["pool"] = nn.MaxPool2d(2)
            layers[f"group_{group + 1}"] = nn.Sequential(parts)
        layers["output"] = nn.Sequential(
            OrderedDict(relu=nn.ReLU(), conv=_conv(before, codebook_size, 1, device))
        )
        self.blocks = nn.Sequential(layers)

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> (B, V, g, g). The VAE's pixels lay in [0.1, 0.9]."""
        logits_BVgg: Tensor = self.blocks(0.8 * images + 0.1)
        return logits_BVgg

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images).argmax(1).flatten(1)


class _Block(nn.Module):
    """x -> id(x) + gain * residual(x); `id` is a 1 x 1 convolution where the width changes."""

    def __init__(self, before: int, after: int, device: torch.device | str | None) -> None:
        super().__init__()
        hidden = after // 4
        self.id_path = nn.Identity() if before == after else _conv(before, after, 1, device)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (wide, out, kernel) in enumerate(
            [(before, hidden, 3), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, after, 1)], start=1
        ):
            layers[f"relu_{number}"] = nn.ReLU()
            layers[f"conv_{number}"] = _conv(wide, out, kernel, device)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.id_path(x) + _RESIDUAL_GAIN * self.res_path(x)
        return out


def _conv(before: int, after: int, kernel: int, device: torch.device | str | None) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, padding=kernel // 2, device=device)


class Dalle(NetworkTokenizer):
    """DALL-E's released encoder, at any size. `network` is a DalleEncoder."""

    resampling: ClassVar[Image.Resampling] = Image.Resampling.LANCZOS
    network: DalleEncoder

    def __init__(self, spec: TokenizerSpec, config: Mapping[str, Any]) -> None:
        image_size, width = config["image_size"], config["width"]
        for name, value, factor in (("image_size", image_size, _STRIDE), ("width", width, 4)):
            if value % factor:
                raise HarnessError(f"{name} {value} is not a multiple of {factor}; change it")
        network = DalleEncoder(width=width, codebook_size=config["codebook_size"], device="meta")
        super().__init__(spec, config, network=network, grid=image_size // _STRIDE)

    def reference_shapes(self) -> Shapes:
        """`w` and `b` there are `weight` and `bias` here."""
        own = self.network.state_dict()
        return {_published_name(name): tensor.shape for name, tensor in own.items()}

    def _renamed(self, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: reference[_published_name(name)] for name in self.network.state_dict()}


def _published_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    return f"{stem}.{kind[0]}"
