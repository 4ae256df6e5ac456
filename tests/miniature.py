"""A miniature of everything that fair300 reads, and the fewest values of it that have to change.

    python -m tests.miniature DATA_ROOT

makes 1,000 class folders of small JPEGs and random weights in the two tokenizers' published formats under
DATA_ROOT, and prints the command that runs fair300 on them, every training cut to two
steps. Nothing in the harness knows of it.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.tokenizers.small_networks import write
from tokenizers import build_tokenizer
from tokenizers.network import NetworkTokenizer

CLASSES, TRAINING, TEST = 1000, 2, 1
IMAGES, BATCH = 16, 8  # two steps of one epoch
SMALL_VQKD = {"width": 16, "depth": 1, "heads": 2, "codebook_size": 32, "code_width": 4}
# The smallest of CLIP's ResNets that open_clip knows: with random weights, and at the protocol's 448 pixels.
CLIP_MODEL = "RN50"


def make_images(data_root: Path, *, classes: int = CLASSES) -> Path:
    """`data_root`/imagenet-1k/{train,val}/CLASS/FILE: every file another picture; returns that folder."""
    rng = np.random.default_rng(0)
    folder = data_root / "imagenet-1k"
    for label in range(classes):
        wnid = f"n{label:08d}"
        for split, count in (("train", TRAINING), ("val", TEST)):
            (folder / split / wnid).mkdir(parents=True)
            for number in range(count):
                low = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
                stream = io.BytesIO()
                low.resize((48, 36), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
                name = f"{wnid}_{number}.JPEG" if split == "train" else f"ILSVRC2012_val_{label:08d}.JPEG"
                (folder / split / wnid / name).write_bytes(stream.getvalue())
    return folder


def write_vqkd(folder: Path) -> str:
    """Random weights under the released file's names, at a small size; returns NAME@SHA256."""
    config = {"image_size": 224, "patch_size": 16, **SMALL_VQKD}
    tokenizer = build_tokenizer("vq-kd", weights="any", **config)
    assert isinstance(tokenizer, NetworkTokenizer)
    generator = torch.Generator().manual_seed(0)
    shapes = tokenizer.reference_shapes()
    return write(folder, "small-vqkd", {k: torch.randn(s, generator=generator) for k, s in shapes.items()})


def write_clip_resnet(folder: Path) -> str:
    """Random weights of the whole CLIP model under open_clip's names; returns NAME@SHA256."""
    import open_clip

    torch.manual_seed(0)
    weights = open_clip.create_model(CLIP_MODEL, pretrained=None).state_dict()
    visual = {name: tensor.clone() for name, tensor in weights.items() if name.startswith("visual.")}
    return write(folder, "random-clip", visual)


def overrides(*, clip: str, clip_model: str, vqkd: str) -> list[str]:
    """The values that change, for --set: sizes of data and steps, and which weights."""
    shorter = {
        "data.pretraining.count": IMAGES,
        "data.training.count": IMAGES,
        "data.test.count": IMAGES,
        "tokenizers.k-clip.model": clip_model,
        "tokenizers.k-clip.weights": clip,
        "tokenizers.k-clip.codebook_size": 32,
        "tokenizers.k-clip.sampled_features": 1024,
        "tokenizers.k-clip.restarts": 1,
        "tokenizers.k-clip.iterations": 3,
        "tokenizers.vq-kd.weights": vqkd,
        **{f"tokenizers.vq-kd.{name}": value for name, value in SMALL_VQKD.items()},
        "pretraining.epochs": 1,
        "pretraining.warmup_epochs": 0,
        "pretraining.global_batch": BATCH,
    }
    for name, epochs in (("finetune", "epochs.vit-t"), ("linear-probe", "epochs")):
        shorter |= {
            f"evaluations.{name}.labelled_images": IMAGES,
            f"evaluations.{name}.{epochs}": 1,
            f"evaluations.{name}.warmup_epochs": 0,
            f"evaluations.{name}.global_batch": BATCH,
        }
    shorter["evaluations.finetune.mixup_group"] = 4
    return [f"{path}={value}" for path, value in shorter.items()]


def main(data_root: Path) -> None:
    """Make what is not there yet and print the command."""
    if not (data_root / "imagenet-1k").exists():
        make_images(data_root)
    tokenizers = data_root / "tokenizers"
    clip, vqkd = write_clip_resnet(tokenizers), write_vqkd(tokenizers)
    changes = overrides(clip=clip, clip_model=CLIP_MODEL, vqkd=vqkd)
    words = ["python run_benchmark.py --protocol fair300 --methods all --trunks vit-t --views table1 table2"]
    words += [f"--data-root {data_root}", "--set", *changes]
    print(" \\\n  ".join(words))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.miniature DATA_ROOT")
    main(Path(sys.argv[1]))
