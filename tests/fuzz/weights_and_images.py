"""Good files of weights and images, and what reads such files from strangers."""

from __future__ import annotations

import hashlib
import io
from functools import cache
from pathlib import Path

import numpy as np

# Checkpoints and weights --------------------------------------------------------------------------------


@cache
def _saved(form: str) -> bytes:
    import torch

    weights = {
        "blocks.0.attn.q.weight": torch.eye(4),
        "blocks.0.attn.kv.weight": torch.ones(8, 4),
        "n": torch.ones(3),
    }
    state = {
        "step": 3,
        "model": weights,
        "optimiser": {"state": {0: {"step": 1, "m": torch.zeros(2)}}, "lr": [0.1]},
    }
    stream = io.BytesIO()
    if form == "safetensors":
        from safetensors.torch import save

        return save(weights)
    if form == "scripted":
        torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 2), torch.ones(1, 3)), stream)
    else:
        content = {"checkpoint": state, "classifier": {"state_dict": weights, "best": np.float64(1.5)}}
        torch.save(content[form.partition(" ")[0]], stream, _use_new_zipfile_serialization="old" not in form)
    return stream.getvalue()


def checkpoints() -> tuple[bytes, ...]:
    return (_saved("checkpoint"),)


def classifiers() -> tuple[bytes, ...]:
    return (_saved("classifier"), _saved("classifier old"), _saved("checkpoint"))


def published() -> tuple[bytes, ...]:
    return (_saved("classifier"), _saved("safetensors"), _saved("checkpoint"))


def safetensors() -> tuple[bytes, ...]:
    return (_saved("safetensors"),)


def read_checkpoint(folder: Path, content: bytes) -> object:
    from benchmark.checkpoint import load_newest

    (folder / "step-000000003.pt").write_bytes(content)
    (folder / "step-000000003.sha256").write_text(hashlib.sha256(content).hexdigest())
    return load_newest(folder)


def read_weights(folder: Path, content: bytes) -> object:
    from benchmark.checkpoint import load_weights

    path = folder / "backbone.safetensors"
    path.write_bytes(content)
    return load_weights(path, digest=hashlib.sha256(content).hexdigest())


def read_classifier_file(folder: Path, content: bytes) -> object:
    from benchmark.classifier_file import read_classifier

    path = folder / "classifier.tar"
    path.write_bytes(content)
    return read_classifier(path)


def read_published_file(folder: Path, content: bytes) -> object:
    from tokenizers.published import read_published

    path = folder / ("w.pt" if content[:2] == b"PK" else "w.safetensors")
    path.write_bytes(content)
    return read_published(path, sha256=None, accept_unknown=True)


# Images -------------------------------------------------------------------------------------------------


@cache
def images() -> tuple[bytes, ...]:
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(12, 10, 3), dtype=np.uint8))
    made = []
    for kind in ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF"):
        stream = io.BytesIO()
        picture.save(stream, kind)
        made.append(stream.getvalue())
    stream = io.BytesIO()
    picture.quantize(16).save(stream, "PNG", transparency=3)
    return (*made, stream.getvalue())


def read_image(folder: Path, content: bytes) -> object:
    from benchmark.image_files import decoded
    from benchmark.image_part import square_pixels

    path = folder / "image.jpg"
    path.write_bytes(content)
    return square_pixels(decoded(path, image_id="image.jpg"), 8)
