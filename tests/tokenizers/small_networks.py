"""Small feature networks for tests: configurations of open_clip's, and files of random or golden weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

GOLDEN = Path(__file__).parent.parent / "golden"
SMALL_RESNET, SMALL_VIT = "small-resnet", "small-vit"
SMALL_CLIP: dict[str, Any] = {
    "model": SMALL_RESNET, "image_size": 64, "codebook_size": 8, "sampled_features": 40, "iterations": 3,
    "restarts": 2, "max_points_per_centroid": 64,
}  # fmt: skip


def register_small_networks() -> None:
    """Make open_clip know the small networks, as a user's own configuration files would."""
    if SMALL_RESNET not in open_clip.list_models():
        open_clip.add_model_config(Path(__file__).parent / "open_clip_configs")


def golden_clip() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The golden ResNet's arrays, and its weights as open_clip's state dict names them."""
    with np.load(GOLDEN / "kclip_rn_layer4_tiny.npz", allow_pickle=False) as archive:
        arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
    weights = {
        f"visual.{name.removeprefix('w.')}": array for name, array in arrays.items() if name.startswith("w.")
    }
    return arrays, weights


def write_clip(folder: Path, name: str = "small") -> str:
    """The golden ResNet's weights as `folder`/NAME.safetensors; returns NAME@SHA256."""
    return write(folder, name, golden_clip()[1])


def write(folder: Path, name: str, tensors: dict[str, Tensor]) -> str:
    """`tensors` as `folder`/NAME.safetensors; returns NAME@SHA256."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return f"{name}@{hashlib.sha256(path.read_bytes()).hexdigest()}"


def with_random_weights(network: nn.Module, *, seed: int = 0) -> nn.Module:
    """Every tensor drawn anew, so that no norm is the identity and no residual branch is zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
            tensor.copy_(noise / 2 + 0.75 if name.endswith("running_var") else (noise - 0.4) * fan_in**-0.5)
    return network.eval()


def timm_network(model: str, **options: Any) -> Any:
    """The whole timm network, head and all, with random weights."""
    return with_random_weights(timm.create_model(model, pretrained=False, **options))


def clip_network(model: str) -> Any:
    """The whole CLIP of open_clip's, text and all, with random weights."""
    register_small_networks()
    return with_random_weights(open_clip.create_model(model, pretrained=None))
