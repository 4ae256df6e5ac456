"""How pre-training reads its pixels, batch by batch: from a pack, from memory, or from the images' files.

All give the same bits in the same memory layout, channels last: another layout of the same numbers would
move the last bits of what is computed from them. Shapes: B images of (3, S, S).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmark.image_part import ArrayPart, ImagePart, square_pixels
from benchmark.packed import MissingPack, open_pack
from protocols.errors import HarnessError

ReadPixels = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]]
# Images that are in memory already are cropped and resized once, if what comes out is no larger than this.
MOST_KEPT_BYTES = 1024**3
log = logging.getLogger(__name__)


def pixel_reader(
    images: ImagePart, size: int, *, choice: Literal["auto", "packed", "files"], work_dir: Path
) -> ReadPixels:
    """What reads the pixels (B, 3, S, S) of the images at positions (B,); the log says from where.

    `auto` takes the pack where a whole one is there. Raises HarnessError if `packed` is chosen and none is
    there, or if the one that would be used is damaged or was made with other decoders.
    """
    if choice != "files":
        try:
            pack = open_pack(images, size=size, work_dir=work_dir)
        except MissingPack as missing:
            if choice == "packed":
                raise HarnessError(
                    f"--images packed: {missing}; make it with python run_benchmark.py pack, the same "
                    "--protocol, --plugin, --data-root, --work-dir and --set, or read the files with "
                    "--images files"
                ) from None
        else:
            log.info("pixels are read from the pack %s", pack.folder)
            return pack.read
    if isinstance(images, ArrayPart) and len(images) * size * size * 3 <= MOST_KEPT_BYTES:
        log.info("pixels are kept in memory")
        kept = np.ascontiguousarray(images.pixels(size).transpose(0, 2, 3, 1))
        return lambda positions: kept[positions].transpose(0, 3, 1, 2)
    log.info("pixels are read from the images, batch by batch")
    return ImagePixels(images, size).read


class ImagePixels:
    """Reads every image when it is asked for."""

    def __init__(self, images: ImagePart, size: int) -> None:
        self.images, self.size = images, size

    def read(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Pixels (B, 3, S, S), channels last in memory. DamagedImage for one that cannot be decoded."""
        opened = (self.images.image(position) for position in positions.tolist())
        return stacked(opened, count=len(positions), size=self.size).transpose(0, 3, 1, 2)


def stacked(images: Iterable[Image.Image], *, count: int, size: int) -> npt.NDArray[np.uint8]:
    """The squares of `count` images as one array (count, S, S, 3)."""
    pixels = np.empty((count, size, size, 3), dtype=np.uint8)
    for row, image in zip(pixels, images, strict=True):
        row[:] = square_pixels(image, size).transpose(1, 2, 0)
    return pixels
