"""The one crop that every transform starts with, so that tokens and pixels lie on the same patches.

Resizing first and cropping afterwards rounds differently at each target size; cropping the same
integer square of the original image first does not.
"""

from __future__ import annotations


def square_crop_box(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest centred square, in pixels; odd margins round down.

    The box has the form that `PIL.Image.Image.crop` takes. Raises ValueError for an empty image.
    """
    if width < 1 or height < 1:
        raise ValueError(f"an image of {width} x {height} pixels has no centre square")
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
