"""Fine-tuned classifiers in the formats in which they are published, with random weights, for tests."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "tests" / "tiny.yaml"
PHOTOGRAPHS = 6


def timm_vit_tiny(*, seed: int = 0) -> VisionTransformer:
    """timm's own ViT-T as fine-tuning leaves it, all weights random; it finds the first six classes alone."""
    model = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, global_pool="avg", init_values=0.1, num_classes=1000
    )
    model = randomised(model, seed=seed)
    with torch.no_grad():
        model.head.bias[:PHOTOGRAPHS] += 50
    return model


def small_vit(*, pool: str = "avg", layer_scale: float | None = 0.1, classes: int = 10) -> VisionTransformer:
    """The trunk of tests/tiny.yaml, built with timm alone."""
    model = VisionTransformer(
        img_size=28, patch_size=7, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0, init_values=layer_scale,
        global_pool=pool, num_classes=classes,
    )  # fmt: skip
    return randomised(model, seed=1)


def randomised(model: VisionTransformer, *, seed: int) -> VisionTransformer:
    """Every tensor drawn: initial values would hide a bias, a norm or a layer scale that is left out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            is_gain = "norm" in name and name.endswith("weight")
            tensor.copy_(is_gain + 0.05 * torch.randn(tensor.shape, generator=generator))
        model.head.weight.mul_(20)
    return model.eval()


def as_reference(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's weights under the reference's names: `attn.q` and `attn.kv` in the place of `attn.qkv`."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".attn.qkv." not in name:
            renamed[name] = tensor
            continue
        rows = len(tensor) // 3
        renamed[name.replace("qkv", "q")] = tensor[:rows].clone()
        renamed[name.replace("qkv", "kv")] = tensor[rows:].clone()
    return renamed


def make_validation_folder(data_root: Path) -> list[Path]:
    """`data_root`/imagenet-1k/val with ImageNet's 1,000 class folders; photographs in the first six.

    Returns the photographs in order. They are large and small, upright and wide, grey and in CMYK.
    """
    rng = np.random.default_rng(0)
    folder = data_root / "imagenet-1k" / "val"
    paths = []
    for number, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names()):
        (folder / wnid).mkdir(parents=True)
        path = folder / wnid / f"ILSVRC2012_val_{number:08d}.JPEG"
        path.write_bytes(_photograph(rng, number) if number < PHOTOGRAPHS else b"never read")
        paths.append(path)
    return paths[:PHOTOGRAPHS]


def _photograph(rng: np.random.Generator, number: int) -> bytes:
    height, width = rng.integers(150, 420, 2)
    low = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    photograph = low.resize((int(width), int(height)), Image.Resampling.BICUBIC)
    modes: dict[int, Callable[[], Image.Image]] = {
        3: lambda: photograph.convert("L"),
        4: lambda: photograph.convert("CMYK"),
    }
    stream = io.BytesIO()
    modes.get(number, lambda: photograph)().save(stream, "JPEG")
    return stream.getvalue()


def fair300_of_six(folder: Path) -> Path:
    """fair300 under another name, which evaluates on the first six images."""
    text = (ROOT / "protocols" / "fair300.yaml").read_text()
    few = ("count: {value: 50000,", f"count: {{value: {PHOTOGRAPHS},")
    for old, new in (("name: fair300\n", "name: mine\n"), few):
        assert text.count(old) == 1
        text = text.replace(old, new)
    path = folder / "mine.yaml"
    path.write_text(text)
    return path
