"""Networks compute in full float32 whatever was set around them, and leave the settings as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tests.tokenizers.reference_weights import build, random_reference
from tests.tokenizers.small_networks import SMALL_CLIP, register_small_networks, write_clip
from tokenizers import build_tokenizer
from tokenizers.base import Tokenizer


@pytest.fixture(autouse=True)
def _careless_surroundings() -> Iterator[None]:
    """TF32 for products, as some containers set it, and autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision(before)


def seen_inside(tokenizer: Tokenizer, network: nn.Module) -> list[tuple[str, bool, bool]]:
    seen = []

    def look(*_: object) -> None:
        cudnn = torch.backends.cudnn.allow_tf32
        seen.append((torch.get_float32_matmul_precision(), cudnn, torch.is_autocast_enabled("cpu")))

    next(module for module in network.modules() if not list(module.children())).register_forward_hook(look)
    size = tokenizer.image_size
    images = torch.rand(2, 3, size, size)
    tokenizer.extract(images) if hasattr(tokenizer, "extract") else tokenizer.encode(images)
    return seen


@pytest.mark.parametrize("name", ["vq-kd", "dall-e"])
def test_published_networks(name: str) -> None:
    tokenizer = build(name)
    tokenizer.load_reference(random_reference(tokenizer))
    assert seen_inside(tokenizer, tokenizer.network) == [("highest", False, False)]


def test_clips_network(tmp_path_factory: pytest.TempPathFactory) -> None:
    register_small_networks()
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = build_tokenizer("k-clip", **{**SMALL_CLIP, "weights": write_clip(folder)})
    tokenizer.load_published(folder)
    network = tokenizer.extractor._network  # type: ignore[attr-defined]
    assert set(seen_inside(tokenizer, network)) == {("highest", False, False)}
