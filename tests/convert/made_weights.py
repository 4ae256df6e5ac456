"""Weights to convert, in the forms in which they are published, and the lines of a card run as they stand."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"
# Golden file, what stands before its weights' names, and the heads that the reference was built with.
REFERENCES = {
    "mapet": ("mapet_tiny", "weight/", 3),
    "beit": ("beit_pretrain_tiny_abspos", "w.", 3),
    "cae": ("cae_tiny_projdim", "w.", 3),
}
RELATIVE = ("beit_pretrain_tiny_sharedrelpos", "w.")


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        return {key: torch.from_numpy(np.array(archive[key])) for key in archive.files}


def weights_of(data: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}


def published(path: Path, name: str, *, key: str = "model") -> Path:
    """The reference's weights as its training script saves them."""
    golden_name, prefix, _ = REFERENCES[name]
    torch.save({key: weights_of(golden(golden_name), prefix), "epoch": 299}, path)
    return path


def run_card(card: Path) -> dict[str, Any]:
    """The card's Python, verbatim, in the folder where it lies; returns its names."""
    (lines,) = re.findall(r"^```python\n(.*?)^```$", card.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    with contextlib.chdir(card.parent):
        exec(lines, names)
    return names


@torch.inference_mode()
def tokens_of(model: nn.Module, embedded: Tensor) -> Tensor:
    """Embedded tokens (B, S, D) through the blocks of a ViT of timm; its norm is left out."""
    for block in model.blocks:
        embedded = block(embedded)
    return embedded


@torch.inference_mode()
def embedded(model: nn.Module, images: Tensor, patches: Tensor | None = None) -> Tensor:
    """Images (B, 3, S, S), or patch tokens in their place, -> class token and patches with positions."""
    patches = model.patch_embed(images) if patches is None else patches
    return torch.cat([model.cls_token.expand(len(images), -1, -1), patches], dim=1) + model.pos_embed
