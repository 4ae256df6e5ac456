"""A small folder in ImageNet's layout, odd files included, and a protocol that reads it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

TINY = Path(__file__).parent.parent / "tiny.yaml"
WNIDS = ("n01440764", "n01443537", "n02119789")
PER_CLASS = 16
COUNT = len(WNIDS) * PER_CLASS


def make_imagenet(data_root: Path, *, split: str = "train", seed: int = 0) -> Path:
    """`data_root`/imagenet-1k/`split` with 3 classes of 16 files; returns the folder imagenet-1k."""
    rng = np.random.default_rng(seed)
    folder = data_root / "imagenet-1k"
    for wnid in WNIDS:
        (folder / split / wnid).mkdir(parents=True)
        for number in range(PER_CLASS):
            height, width = rng.integers(30, 90, 2)
            # Large soft shapes: the patches of an image differ, and JPEG keeps them.
            low = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
            photograph = low.resize((int(width), int(height)), Image.Resampling.BICUBIC)
            path = folder / split / wnid / f"{wnid}_{number * 7919 % 10007}.JPEG"
            path.write_bytes(encoded(photograph, number))
    return folder


def encoded(photograph: Image.Image, number: int) -> bytes:
    """The bytes of a file: the first four of a class are the oddities that ImageNet has."""
    stream = io.BytesIO()
    if number == 0:
        photograph.convert("L").save(stream, "JPEG")
    elif number == 1:
        photograph.convert("CMYK").save(stream, "JPEG")
    elif number == 2:
        photograph.save(stream, "PNG")
    elif number == 3:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter
        photograph.save(stream, "JPEG", exif=exif)
    else:
        photograph.save(stream, "JPEG")
    return stream.getvalue()


def imagenet_protocol(folder: Path, *, tokenizers: str | None = None, count: int = COUNT) -> Path:
    """tiny, reading that folder; `tokenizers` is the YAML of one, in the place of tiny's."""
    text = TINY.read_text().replace("name: tiny", "name: mine").replace("fashion-mnist-12k", "imagenet-1k")
    text = text.replace("count: {value: 256", f"count: {{value: {count}").replace(
        "labelled_images: {value: 256", f"labelled_images: {{value: {count}"
    )
    text = text.replace("labelled_images: {value: 128", f"labelled_images: {{value: {count}")
    text = re.sub(r"  validation:\n(    .*\n)+", "", text)
    if tokenizers is not None:
        name = tokenizers.partition(":")[0].strip()
        text = text.replace("tokenizers: [k-pixel]", f"tokenizers: [{name}]")
        text, found = re.subn(
            r"\ntokenizers:\n.*?\nmethods:", f"\ntokenizers:\n{tokenizers}\nmethods:", text, flags=re.DOTALL
        )
        assert found == 1
    path = folder / "mine.yaml"
    path.write_text(text)
    return path
