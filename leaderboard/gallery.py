"""A gallery sheet as a picture: image patches that carry a code, each framed in its surroundings.

The paper's Figures 3 to 5. All lengths are pixels of the picture, x to the right, y downwards.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from leaderboard.figures import ACCENT, INK, MUTED, RULE
from leaderboard.grids import clean

FRAME = "#e4572e"
_MARGIN, _TILE_GAP, _STRIP_GAP, _ROW_GAP = 24, 8, 36, 20
_HEADER, _CAPTION = 24, 20
_TITLE, _LINE, _BELOW_HEAD = 30, 19, 20
LEGEND = "Framed: the patch; around it, its neighbours. Pale blue: beyond the edge of the square."
_DPI = 100
_NARROWEST, _NARROWEST_STRIP, _DISTANCE_WIDTH = 560, 225, 125
_SETTINGS: Any = {"font.family": "DejaVu Sans", "text.parse_math": False, "axes.unicode_minus": False}


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """A patch in its surroundings: `pixels` uint8 (T, T, 3), the patch in the middle T / 3.

    `distance`, where there is one, is written below it.
    """

    pixels: NDArray[np.uint8]
    distance: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Strip:
    """The tiles of one code, and how many patches of the whole store carry it."""

    code: int
    carriers: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One code, or two side by side with the distance of their rows in the codebook."""

    strips: tuple[Strip, ...]
    distance: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """A sheet: `rule_in_words` says how codes and patches were chosen. Tiles are of one size throughout."""

    tokenizer: str
    title: str
    rule_in_words: str
    seed: int
    images: int
    store_digest: str
    rows: tuple[Row, ...]

    @property
    def codes(self) -> tuple[int, ...]:
        """All codes that it shows, row by row."""
        return tuple(strip.code for row in self.rows for strip in row.strips)

    @property
    def tile_side(self) -> int:
        """T."""
        return len(self.rows[0].strips[0].tiles[0].pixels)

    @property
    def tiles_per_strip(self) -> int:
        """Room for so many; a rare code leaves some of it empty."""
        return max(len(strip.tiles) for row in self.rows for strip in row.strips)


def draw_sheet(sheet: Sheet) -> bytes:
    """The sheet as a PNG, the same bytes for the same sheet: no date and no version in it."""
    with matplotlib.rc_context(_SETTINGS):
        figure = _draw(sheet)
        stream = io.BytesIO()
        FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})
    return stream.getvalue()


def _draw(sheet: Sheet) -> Figure:
    strips = max(len(row.strips) for row in sheet.rows)
    strip_width = _strip_width(sheet)
    width = max(2 * _MARGIN + strips * strip_width + (strips - 1) * _STRIP_GAP, _NARROWEST)
    # The mean widths of a character of DejaVu Sans in pixels: 6.6 in the sentences, 12 at most in a title.
    characters = int((width - 2 * _MARGIN) / 6.6)
    sentence = textwrap.wrap(clean(sheet.rule_in_words), characters)
    facts = (
        f"Seed {sheet.seed}, {sheet.images:,} images, token store {clean(sheet.store_digest[:12])}. {LEGEND}"
    )
    small = textwrap.wrap(facts, characters)
    title = textwrap.wrap(clean(f"{sheet.tokenizer}: {sheet.title}"), int((width - 2 * _MARGIN) / 12))
    below_title = _MARGIN + _TITLE * len(title)
    head = below_title + _LINE * (len(sentence) + len(small)) + _BELOW_HEAD
    height = head + len(sheet.rows) * (_row_height(sheet) + _ROW_GAP)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    corners: list[tuple[int, int]] = []
    for number, row in enumerate(sheet.rows):
        top = head + number * (_row_height(sheet) + _ROW_GAP)
        _rule(axes, top - _ROW_GAP // 2, width)
        for place, strip in enumerate(row.strips):
            left = _MARGIN + place * (strip_width + _STRIP_GAP)
            corners += _paste(canvas, axes, strip, left=left, top=top)
        if row.distance is not None:
            text = f"distance {_short(row.distance)}"
            _write(axes, width - _MARGIN, top, text, colour=ACCENT, align="right")
    axes.imshow(canvas, extent=(0, width, height, 0), interpolation="nearest", aspect="auto", zorder=0)
    # Drawing moves the limits; these make a unit a pixel.
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    for x, y in corners:
        _frame(axes, x, y, sheet.tile_side / 3)
    for number, line in enumerate(title):
        _write(axes, _MARGIN, _MARGIN + _TITLE * number, line, size=17, weight="bold")
    for number, line in enumerate([*sentence, *small]):
        colour = INK if number < len(sentence) else MUTED
        _write(axes, _MARGIN, below_title + _LINE * number, line, size=12.5, colour=colour)
    return figure


def _strip_width(sheet: Sheet) -> int:
    """Of tiles, or of the texts above them where a strip has few."""
    tiles = sheet.tiles_per_strip * (sheet.tile_side + _TILE_GAP) - _TILE_GAP
    has_distance = any(row.distance is not None for row in sheet.rows)
    return max(tiles, _NARROWEST_STRIP + (_DISTANCE_WIDTH if has_distance else 0))


def _row_height(sheet: Sheet) -> int:
    has_captions = any(tile.distance is not None for row in sheet.rows for strip in row.strips
                       for tile in strip.tiles)  # fmt: skip
    return _HEADER + sheet.tile_side + (_CAPTION if has_captions else 0)


def _paste(
    canvas: NDArray[np.uint8], axes: Axes, strip: Strip, *, left: int, top: int
) -> list[tuple[int, int]]:
    """Put a strip onto the canvas, with its texts; the top left corners of the patches in its tiles."""
    unit = "patch" if strip.carriers == 1 else "patches"
    name = _write(axes, left, top, f"code {strip.code}", size=13.5, weight="bold")
    axes.annotate(
        f"{strip.carriers:,} {unit}",
        xy=(1, 0), xycoords=name, xytext=(9, 0), textcoords="offset pixels",
        fontsize=_points(12), color=MUTED, ha="left", va="bottom", annotation_clip=False,
    )  # fmt: skip
    corners = []
    for number, tile in enumerate(strip.tiles):
        side = len(tile.pixels)
        x, y = left + number * (side + _TILE_GAP), top + _HEADER
        canvas[y : y + side, x : x + side] = tile.pixels
        corners.append((x + side // 3, y + side // 3))
        if tile.distance is not None:
            _write(axes, x + side / 2, y + side + 4, _short(tile.distance), colour=MUTED, align="center")
    return corners


def _frame(axes: Axes, x: float, y: float, side: float) -> None:
    """White around a colour, so that it stands out on any image."""
    for width, colour in ((3.6, "white"), (1.6, FRAME)):
        axes.add_patch(
            Rectangle((x, y), side, side, fill=False, edgecolor=colour, linewidth=_points(width), zorder=2)
        )


def _rule(axes: Axes, y: float, width: float) -> None:
    axes.plot([_MARGIN, width - _MARGIN], [y, y], color=RULE, linewidth=_points(1), zorder=1)


def _write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float = 12,
    weight: str = "normal",
    colour: str = INK,
    align: str = "left",
) -> Any:
    """`text` with its top at `y`; `size` in pixels."""
    return axes.text(
        x, y, text, fontsize=_points(size), fontweight=weight, color=colour, ha=align, va="top", zorder=3
    )


def _points(pixels: float) -> float:
    return pixels * 72 / _DPI


def _short(distance: float) -> str:
    """Three digits or more; what differs from zero never reads as zero."""
    return f"{distance:#.3g}".rstrip(".") if 0 < distance < 999.5 else f"{distance:,.0f}"


def alt_text(sheet: Sheet) -> str:
    """The sheet in words, for those who cannot see it."""
    codes: Sequence[str] = [" and ".join(str(strip.code) for strip in row.strips) for row in sheet.rows]
    kind = "pairs of codes" if len(sheet.rows[0].strips) > 1 else "codes"
    return (
        f"Image patches by code of tokenizer {sheet.tokenizer}, each framed in its surroundings. "
        f"Rows from top to bottom, {kind}: {', '.join(codes)}."
    )
