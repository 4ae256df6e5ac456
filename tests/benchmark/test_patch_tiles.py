"""A patch and its surroundings, cut from the square that the tokenizer saw."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmark.patch_tiles import BEYOND, PATCH_PIXELS, TILE_PIXELS, patch_tile

GRID = 4


def numbered(width: int = 64, height: int = 64, *, patch: int = 16) -> Image.Image:
    """An image whose centre square of 4 x 4 patches holds patch p in grey 10 p + 5; red around it."""
    left, top = (width - GRID * patch) // 2, (height - GRID * patch) // 2
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = 255
    grid = np.arange(GRID**2, dtype=np.uint8).reshape(GRID, GRID) * 10 + 5
    square = np.kron(grid, np.ones((patch, patch), dtype=np.uint8))
    pixels[top : top + len(square), left : left + len(square)] = square[..., None]
    return Image.fromarray(pixels)


def middles(tile: np.ndarray) -> list[list[tuple[int, ...]]]:
    """The colour in the middle of each of the tile's 3 x 3 places."""
    places = [PATCH_PIXELS // 2 + number * PATCH_PIXELS for number in range(3)]
    return [[tuple(int(value) for value in tile[y, x]) for x in places] for y in places]


def greys(*positions: int | None) -> list[tuple[int, ...]]:
    return [BEYOND if position is None else (10 * position + 5,) * 3 for position in positions]


@pytest.mark.parametrize(
    ("position", "around"),
    [
        (5, [(0, 1, 2), (4, 5, 6), (8, 9, 10)]),
        (0, [(None, None, None), (None, 0, 1), (None, 4, 5)]),
        (3, [(None, None, None), (2, 3, None), (6, 7, None)]),
        (15, [(10, 11, None), (14, 15, None), (None, None, None)]),
        (4, [(None, 0, 1), (None, 4, 5), (None, 8, 9)]),
    ],
)
@pytest.mark.parametrize(("width", "height"), [(64, 64), (131, 64), (64, 90)])
def test_the_patch_is_in_the_middle_of_its_neighbours(
    position: int, around: list[tuple[int | None, ...]], width: int, height: int
) -> None:
    tile = patch_tile(numbered(width, height), grid=GRID, position=position)
    assert tile.shape == (TILE_PIXELS, TILE_PIXELS, 3)
    assert tile.dtype == np.uint8
    assert middles(tile) == [greys(*row) for row in around]


def test_pixels_of_a_tiny_image_stay_squares() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12), dtype=np.uint8)
    tile = patch_tile(Image.fromarray(pixels), grid=3, position=4)
    assert np.array_equal(tile[..., 0], np.kron(pixels, np.ones((10, 10), dtype=np.uint8)))


def test_patches_need_not_be_whole_pixels() -> None:
    """A square of 375 pixels and 14 patches a side: the patch's middle is where it belongs."""
    ramp = np.broadcast_to(np.linspace(0, 255, 375), (375, 375)).astype(np.uint8)
    tile = patch_tile(Image.fromarray(ramp), grid=14, position=14 * 6 + 7)
    assert int(tile[60, 60, 0]) == pytest.approx(255 * 7.5 / 14, abs=2)
