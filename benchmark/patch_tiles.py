"""A patch cut out of its image together with what surrounds it, as a tile of a gallery sheet.

Shapes: g patches along a side of the square, T pixels along a side of a tile.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from protocols.geometry import square_crop_box

PATCH_PIXELS = 40  # a patch's side on the sheet
TILE_PIXELS = 3 * PATCH_PIXELS  # T: a patch of context on each side
BEYOND = (214, 230, 240)  # pale blue: where the square has ended
# Enlarged more than this, interpolation would invent what the image does not hold.
_MOST_SMOOTHED = 4.0


def patch_tile(image: Image.Image, *, grid: int, position: int) -> npt.NDArray[np.uint8]:
    """The patch in the middle third, its neighbours around it, BEYOND past the edge: uint8 (T, T, 3).

    Cut from the centre square that the tokenizer saw, at the image's own resolution; `position` is
    row-major in grid x grid.
    """
    square = image.convert("RGB").crop(square_crop_box(*image.size))
    side = square.width / grid
    row, column = divmod(position, grid)
    tops, lefts = (range(max(place - 1, 0), min(place + 2, grid)) for place in (row, column))
    box = (lefts.start * side, tops.start * side, lefts.stop * side, tops.stop * side)
    is_pixelated = side * _MOST_SMOOTHED < PATCH_PIXELS
    shown = square.resize(
        (len(lefts) * PATCH_PIXELS, len(tops) * PATCH_PIXELS),
        Image.Resampling.NEAREST if is_pixelated else Image.Resampling.BICUBIC,
        box=box,
    )
    tile = np.full((TILE_PIXELS, TILE_PIXELS, 3), BEYOND, dtype=np.uint8)
    top, left = (tops.start - row + 1) * PATCH_PIXELS, (lefts.start - column + 1) * PATCH_PIXELS
    tile[top : top + shown.height, left : left + shown.width] = np.asarray(shown)
    return tile
