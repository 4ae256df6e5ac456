"""Data sets: which images exist, under which stable ids, with which labels and pixels.

The embedded set is a file of the repository; sets of image files join here with their own reader.
Geometry is the same for all: the centred integer square, then a resize. Loads no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from protocols.errors import HarnessError, unknown
from protocols.geometry import square_crop_box
from protocols.schema import Part

EMBEDDED = Path(__file__).parent / "embedded"
_IN_CHECKOUT = "benchmark/embedded/fashion_mnist_12k.npz"
FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
# SHA-256 of the file as it was embedded: a damaged checkout must not pass for another data set.
FASHION_SHA256 = "19a87c492c6adb55d4769374aafcde8f95831875480b216c56b8b552ea39c85a"


@dataclass(frozen=True)
class ImagePart:
    """A range of one split. `sample_ids` are positions in the split: stable keys of all randomness."""

    data_set: str
    name: str
    classes: tuple[str, ...]
    sample_ids: npt.NDArray[np.int64]
    image_ids: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    arrays: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """SHA-256 over ids, labels and pixels, in order."""
        digest = hashlib.sha256("\n".join(self.image_ids).encode())
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        digest.update(np.ascontiguousarray(self.arrays).tobytes())
        return digest.hexdigest()

    def image(self, position: int) -> Image.Image:
        """The image as stored, before any transform."""
        return Image.fromarray(self.arrays[position])

    def images(self) -> Iterator[Image.Image]:
        """All images, in order."""
        return (self.image(position) for position in range(len(self)))

    def pixels(self, size: int) -> npt.NDArray[np.uint8]:
        """All images through the shared geometry: uint8 (n, 3, S, S)."""
        return np.stack([square_pixels(image, size) for image in self.images()])

    def first(self, count: int) -> ImagePart:
        """The first `count` images. Raises HarnessError if there are fewer."""
        if count > len(self):
            raise HarnessError(f"{self.name} has {len(self)} images, {count} were asked for")
        keep = slice(count)
        return ImagePart(
            self.data_set, self.name, self.classes, self.sample_ids[keep], self.image_ids[keep],
            self.labels[keep], self.arrays[keep],
        )  # fmt: skip


def square_pixels(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """The centred square of `image` at size x size, bicubic: uint8 (3, S, S)."""
    square = image.convert("RGB").crop(square_crop_box(*image.size))
    if square.size != (size, size):
        square = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(square).transpose(2, 0, 1)


def open_part(data_set: str, name: str, part: Part) -> ImagePart:
    """The images of `part` of the data set called `data_set`. Raises HarnessError if there are fewer."""
    readers = {"fashion-mnist-12k": _fashion_mnist}
    if data_set not in readers:
        raise unknown("data set", data_set, readers)
    arrays, labels, classes = readers[data_set](part.split)
    stop = part.start + part.count
    if stop > len(labels):
        raise HarnessError(
            f"data set {data_set}: {name} wants images {part.start} to {stop} of "
            f"{part.split}, which has {len(labels)}"
        )
    positions: Sequence[int] = range(part.start, stop)
    return ImagePart(
        data_set=data_set,
        name=name,
        classes=classes,
        sample_ids=np.arange(part.start, stop, dtype=np.int64),
        image_ids=tuple(f"{part.split}/{position:07d}" for position in positions),
        labels=labels[part.start : stop].astype(np.int64),
        arrays=arrays[part.start : stop],
    )


@cache
def _fashion_file() -> dict[str, npt.NDArray[np.uint8]]:
    path = EMBEDDED / "fashion_mnist_12k.npz"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise HarnessError(
            f"{path.name} is missing from the checkout; restore it with git checkout {_IN_CHECKOUT}"
        ) from None
    if hashlib.sha256(content).hexdigest() != FASHION_SHA256:
        raise HarnessError(
            f"{path.name} is not the embedded file (SHA-256 differs); restore it with "
            f"git checkout {_IN_CHECKOUT}"
        )
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _fashion_mnist(
    split: str,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], tuple[str, ...]]:
    arrays = _fashion_file()
    return arrays[f"{split}_images"], arrays[f"{split}_labels"], FASHION_CLASSES
