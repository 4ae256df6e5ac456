"""The sizes of a ViT as the shapes of its weights tell them, and the calls of timm that build it.

All sizes but the number of attention heads stand in the shapes. P patch, N patches, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isqrt, nextafter
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmark.classifier_evaluation import tensor_faults
from protocols.errors import HarnessError

# (width, depth) -> heads, of the sizes that ViT's and DeiT's authors named and everybody uses since.
KNOWN_HEADS = {(192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16}
TIMM_NAMES = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 768: "vit_base_patch16_224"}
BY_OPTION = "as --heads says"
_LAYER_SCALE = 0.1  # what the protocols begin with; any number would do, since the weights replace it


@dataclass(frozen=True, kw_only=True)
class VitSizes:
    """What the shapes tell. `classes` 0 is no head; `pooling` "avg" is the patches' mean through fc_norm."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    hidden: int
    classes: int
    pooling: Literal["token", "avg"]
    has_layer_scale: bool

    @property
    def mlp_ratio(self) -> float:
        """Hidden width of the MLP over the width, so rounded that timm's int(width * ratio) is that again."""
        ratio = self.hidden / self.width
        return ratio if int(self.width * ratio) == self.hidden else nextafter(ratio, inf)

    @property
    def described(self) -> str:
        """For people: images, patches, width, blocks, MLP."""
        return (
            f"images of {self.image_size} x {self.image_size}, patches of {self.patch_size}, "
            f"width {self.width}, {self.depth} blocks, MLP ratio {self.mlp_ratio:g}"
        )

    def timm_name(self, heads: int) -> str | None:
        """timm's name of a model of these sizes, among those for images of 224 and patches of 16; or None."""
        is_named = (
            (self.image_size, self.patch_size, self.mlp_ratio) == (224, 16, 4.0)
            and self.width in TIMM_NAMES
            and KNOWN_HEADS.get((self.width, self.depth)) == heads
        )
        return TIMM_NAMES[self.width] if is_named else None

    def arguments(self, heads: int) -> dict[str, Any]:
        """What timm's VisionTransformer is called with, beyond its defaults."""
        sizes: dict[str, Any] = {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": heads,
        }
        if self.mlp_ratio != 4.0:
            sizes["mlp_ratio"] = self.mlp_ratio
        return sizes | self.beside_sizes

    @property
    def beside_sizes(self) -> dict[str, Any]:
        """The same but for the sizes: what `timm.create_model` needs beside a name."""
        chosen: dict[str, Any] = {"init_values": _LAYER_SCALE} if self.has_layer_scale else {}
        chosen["num_classes"] = self.classes
        if self.pooling == "avg":
            chosen["global_pool"] = "avg"
        return chosen

    def empty_model(self, heads: int) -> VisionTransformer:
        """The model without numbers in it: nothing is drawn, and no memory taken."""
        with torch.device("meta"):
            return VisionTransformer(weight_init="skip", **self.arguments(heads))


def sizes_of(path: Path, tensors: Mapping[str, Tensor]) -> VitSizes:
    """The sizes of the ViT in the file `path`. HarnessError where it is none, or not one of square images."""
    patches, positions = tensors.get("patch_embed.proj.weight"), tensors.get("pos_embed")
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if patches is None or patches.ndim != 4 or not depth:
        raise HarnessError(
            f"{path}: holds no ViT under the names of timm, MaPeT, BEiT or CAE (patch_embed.proj.weight "
            f"(D, 3, P, P), blocks.N...); its names begin with {', '.join(sorted(tensors)[:3]) or 'nothing'}"
        )
    width, channels, patch, patch_width = patches.shape
    if channels != 3 or patch != patch_width or 0 in patches.shape:
        raise HarnessError(
            f"{path}: patch_embed.proj.weight is {tuple(patches.shape)}; read are square patches of three "
            "channels, (D, 3, P, P)"
        )
    rows = positions.shape[1] if positions is not None and positions.ndim == 3 else 0
    if (
        positions is None
        or positions.shape != (1, rows, width)
        or rows < 2
        or isqrt(rows - 1) ** 2 != rows - 1
    ):
        found = "absent" if positions is None else str(tuple(positions.shape))
        raise HarnessError(
            f"{path}: pos_embed is {found}; read are positions of one class token and a square of patches, "
            f"(1, 1 + N, {width})"
        )
    hidden, head = tensors.get("blocks.0.mlp.fc1.weight"), tensors.get("head.weight")
    return VitSizes(
        image_size=isqrt(rows - 1) * patch,
        patch_size=patch,
        width=width,
        depth=depth,
        hidden=hidden.shape[0] if hidden is not None and hidden.ndim == 2 else 4 * width,
        classes=head.shape[0] if head is not None and head.ndim == 2 else 0,
        pooling="avg" if "fc_norm.weight" in tensors else "token",
        has_layer_scale=any(".ls1." in name or ".ls2." in name for name in tensors),
    )


def heads_of(path: Path, sizes: VitSizes, *, stated: int | None) -> tuple[int, str]:
    """How many attention heads, and who says so: `stated`, or the sizes where everybody gives them so many.

    HarnessError where neither tells, or the width is no multiple of them.
    """
    heads = KNOWN_HEADS.get((sizes.width, sizes.depth)) if stated is None else stated
    if heads is None:
        raise HarnessError(
            f"{path}: a ViT of width {sizes.width} and {sizes.depth} blocks may have any number of attention "
            "heads, and no shape tells it; say it with --heads N"
        )
    if heads < 1 or sizes.width % heads:
        raise HarnessError(f"{path}: --heads {heads} does not divide the width, {sizes.width}")
    known = "as every ViT of this width and depth has; the file does not say"
    return heads, known if stated is None else BY_OPTION


def check_fits(path: Path, tensors: Mapping[str, Tensor], model: nn.Module, *, remedy: str) -> None:
    """HarnessError naming the tensors that are missing, unexpected, misshapen, or not finite floats."""
    said = tensor_faults(tensors, model)
    if said:
        raise HarnessError(f"{path}: is no whole ViT of timm: {said}; {remedy}")
