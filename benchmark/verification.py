"""Encode some of a token store's images again and compare: is it what it says that it is?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmark.data import open_images
from benchmark.image_files import DamagedImage
from benchmark.image_part import ImagePart
from benchmark.inputs import weights_folder
from protocols.errors import HarnessError
from tokenizers import build_tokenizer
from tokenizers.base import WEIGHTS_NAME, Tokenizer
from tokenizers.kmeans import KMeansTokenizer
from tokenizers.store import TokenStore

# Blocks of the network tokenizers: an image is encoded again in the slot of its block where it was.
BLOCK = 16


@dataclass(frozen=True)
class Mismatch:
    """An image whose tokens differ: how many of how many, or why it could not be read."""

    row: int
    image_id: str
    differing: int
    patches: int
    reason: str = ""


def load_tokenizer(store: TokenStore, folder: Path, *, data_root: Path | None, device: str) -> Tokenizer:
    """The tokenizer that made the store at `folder`, from the weights beside it.

    HarnessError if they are missing, or give another digest than the manifest's.
    """
    made_by = store.manifest.tokenizer
    tokenizer = build_tokenizer(made_by.name, **made_by.config)
    if device == "cuda":
        tokenizer.to("cuda")
    if tokenizer.needs_weights and isinstance(tokenizer, KMeansTokenizer):
        tokenizer.load_published(weights_folder(data_root))  # beside the store lie the centroids alone
    tokenizer.load(folder.parent)
    if tokenizer.digest != made_by.digest:
        raise HarnessError(
            f"{folder.parent / WEIGHTS_NAME} gives tokenizer digest {tokenizer.digest}, the store states "
            f"{made_by.digest}; restore the file that belongs to it, or tokenise again"
        )
    return tokenizer


def sample_rows(images: int, count: int, *, seed: int) -> npt.NDArray[np.int64]:
    """`count` different rows of `images`, ascending, drawn from `seed`; all of them if there are no more."""
    if count >= images:
        return np.arange(images, dtype=np.int64)
    drawn: npt.NDArray[np.int64] = np.random.default_rng(seed).choice(images, size=count, replace=False)
    return np.sort(drawn)


def compare(
    store: TokenStore, tokenizer: Tokenizer, rows: Sequence[int], *, data_root: Path | None
) -> Iterator[tuple[int, list[Mismatch]]]:
    """Encode the images of `rows` again; yields how many were compared and which of them differ."""
    images = open_images(
        store.manifest.data_name, [store.image_ids[row] for row in rows], data_root=data_root
    )
    for block in _blocks(rows):
        found, read = [], dict[int, Tensor]()
        for index in block:
            try:
                read[index] = tokenizer.transform(images.image(index))
            except DamagedImage as error:
                name = images.image_ids[index]
                found.append(Mismatch(rows[index], name, 0, store.grid**2, reason=str(error)))
        if read:
            found += _differing(store, tokenizer, images, rows, read)
        yield len(block), found


def _differing(
    store: TokenStore, tokenizer: Tokenizer, images: ImagePart, rows: Sequence[int], read: dict[int, Tensor]
) -> list[Mismatch]:
    size = tokenizer.image_size
    slots = torch.zeros(BLOCK, 3, size, size)
    for index, pixels in read.items():
        slots[rows[index] % BLOCK] = pixels
    encoded = tokenizer.encode(slots).numpy()  # (BLOCK, N)
    found = []
    for index in read:
        stored = store.tokens([rows[index]])[0]
        differing = int((encoded[rows[index] % BLOCK] != stored).sum())
        if differing:
            found.append(Mismatch(rows[index], images.image_ids[index], differing, len(stored)))
    return found


def _blocks(rows: Sequence[int]) -> Iterator[list[int]]:
    """Indices into `rows`, grouped so that no two of a group want the same slot of a block."""
    queues: list[list[int]] = [[] for _ in range(BLOCK)]
    for index, row in enumerate(rows):
        queues[row % BLOCK].append(index)
    for place in range(max(map(len, queues))):
        yield sorted(queue[place] for queue in queues if place < len(queue))
