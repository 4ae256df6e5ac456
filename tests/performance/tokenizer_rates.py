"""`python -m tests.performance.tokenizer_rates`: what tokenising costs on one core of this machine.

Reading and transforming a made-up JPEG of ImageNet's usual size, encoding with the published networks at
full size (random weights; minutes), and their forward FLOPs by torch's counter.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tokenizers import build_tokenizer
from tokenizers.base import Tokenizer
from tokenizers.kmeans import KMeansTokenizer
from tokenizers.network import NetworkTokenizer

SECONDS = 4.0
BLOCK = 16


def photograph(seed: int = 0) -> bytes:
    """A 500 x 375 JPEG of soft shapes and some noise, quality 90."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    shapes = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
    pixels = (shapes + rng.integers(-12, 13, shapes.shape)).clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def reading_rate(tokenizer: Tokenizer, jpeg: bytes) -> float:
    """Images a second of CPU time."""
    tokenizer.transform(Image.open(io.BytesIO(jpeg)))
    started, images = time.process_time(), 0
    while time.process_time() - started < SECONDS:
        tokenizer.transform(Image.open(io.BytesIO(jpeg)))
        images += 1
    return images / (time.process_time() - started)


def encoding_rate(tokenizer: NetworkTokenizer) -> float:
    """Images a second of CPU time, of one block, after a smaller one."""
    network = tokenizer.network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    images = torch.rand(BLOCK, 3, tokenizer.image_size, tokenizer.image_size)
    with torch.no_grad():
        network(images[:2])
        started = time.process_time()
        network(images)
    return BLOCK / (time.process_time() - started)


def gigaflops(forward: Callable[[Tensor], object], image_size: int) -> float:
    """Forward GFLOP of one image, on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(torch.empty(1, 3, image_size, image_size, device="meta"))
    return float(counter.get_total_flops() / 1e9)


def main() -> None:
    """Print one line per tokenizer."""
    torch.set_num_threads(1)
    jpeg = photograph()
    print(f"a JPEG of {len(jpeg) / 1000:.0f} kB")
    for name in ("k-clip", "vq-kd", "dall-e"):
        tokenizer = build_tokenizer(name)
        line = f"{name}: {reading_rate(tokenizer, jpeg):.0f} images/s read and transformed"
        if isinstance(tokenizer, NetworkTokenizer):
            line += f", {gigaflops(tokenizer.network, tokenizer.image_size):.1f} GFLOP an image"
            line += f", {encoding_rate(tokenizer):.2f} images/s encoded"
        elif isinstance(tokenizer, KMeansTokenizer):
            forward = tokenizer.extractor._map  # type: ignore[attr-defined]
            line += f", {gigaflops(forward, tokenizer.image_size):.1f} GFLOP an image"
        print(line, flush=True)


if __name__ == "__main__":
    main()
