"""Pictures of objectives: a drawn pattern on a real image, what predictions see, and attention masks.

The paper's Figures 1 and 2. What is drawn was found out by benchmark/patterns_figure.py. All lengths are
inches from the top left corner of the picture, x to the right, y downwards.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from leaderboard.figure_style import INK, MUTED, RULE, WIDTH, drawn
from leaderboard.grids import clean, method_name
from leaderboard.sections import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

# Seen content, a position alone, what is predicted; context, mask tokens and targets as keys.
SEEN, POSITION, PREDICTED = "#2f7fb5", "#f2c57c", "#d1495b"
KEY_COLOURS = {"context": "#2f7fb5", "mask tokens": "#f2c57c", "targets": "#3f9b76"}
_MARGIN, _GAP, _TITLE, _HEAD, _KEY = 0.08, 0.12, 0.36, 0.4, 0.5
_PANELS = ("the pattern", "what one prediction\nsees", "all predictions\n(a row each)")
_DPI = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """`predicted` (K,) numbers of patches; `content`, `position` (K, N) bool: what each prediction sees.

    A prediction that sees a patch's position need not see its content.
    """

    method: str
    predicted: NDArray[np.int64]
    content: NDArray[np.bool_]
    position: NDArray[np.bool_]

    @property
    def in_order(self) -> NDArray[np.int64]:
        """(K,) places of the predictions: those that see the fewest patches first."""
        return np.argsort(self.content.sum(axis=1), kind="stable")

    @property
    def columns(self) -> NDArray[np.int64]:
        """(N,) patches: those that the most predictions see first."""
        return np.argsort(-self.content.sum(axis=0), kind="stable")

    @property
    def is_ordered(self) -> bool:
        """True if predictions see more and more; False if all see the same content."""
        return bool((self.content.sum(axis=1) != self.content[0].sum()).any())


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionRule:
    """`sees` (R, S) bool; `rows` and `keys` name its parts in order, each with its size."""

    method: str
    sees: NDArray[np.bool_]
    rows: tuple[tuple[str, int], ...]
    keys: tuple[tuple[str, int], ...]


def seen_in_words(seen: Seen) -> str:
    """The facts of a pattern, for those who cannot see it."""
    patches = seen.content.shape[1]
    counts = seen.content.sum(axis=1)
    alone = (seen.position & ~seen.content).sum(axis=1)
    none = patches - (seen.position | seen.content).sum(axis=1)
    return (
        f"{method_name(seen.method)} predicts {len(seen.predicted)} of {patches} patches; a prediction sees "
        f"the content of {_span(counts)} patches, of {_span(alone)} others the position alone, and of "
        f"{_span(none)} nothing"
    )


def _span(counts: NDArray[np.int64]) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low} to {high}"


def objectives_figure(
    methods: Sequence[Seen], image: NDArray[np.uint8], *, grid: int, image_id: str, seed: int
) -> Figure:
    """A row per method on `image` (3, S, S): its pattern, one prediction, and all of them."""
    words = "; ".join(seen_in_words(seen) for seen in methods)
    return drawn(
        lambda: _draw_objectives(methods, image.transpose(1, 2, 0), grid),
        name="objectives",
        alt=f"For each method its pattern on one image, and what its predictions see. {words}.",
        caption=(
            f"The objectives on image {clean(image_id)}, seed {seed}, first epoch (the paper's Figure 1). "
            "Left: predicted patches are veiled, the less so the more predictions see them. Middle: one "
            "prediction; framed: the patch that it predicts; yellow: patches of which it sees the position "
            "alone; white: those of which it sees nothing. Right: a row per prediction, a column per patch, "
            "those that most predictions see on the left. Found by disturbing the pixels and the position of "
            f"each patch and looking which logits move. {words}."
        ),
        dpi=_DPI,
    )


def attention_figure(rules: Sequence[AttentionRule]) -> Figure:
    """The attention masks of the content and the query stream, a matrix per method."""
    words = "; ".join(
        f"{method_name(rule.method)}: {_parts(rule.rows)} as rows over {_parts(rule.keys)} as keys"
        for rule in rules
    )
    return drawn(
        lambda: _draw_attention(rules),
        name="attention",
        alt=f"Attention masks of a block, rows over keys, coloured where a row sees a key. {words}.",
        caption=(
            "The attention masks of a block in training (the paper's Figure 2), as the forward pass hands "
            "them to the attention: the same for every image, since tokens stand in the permuted order. "
            f"Coloured: the row sees the key. {words}."
        ),
        dpi=_DPI,
    )


def _parts(parts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{count} {name}" for name, count in parts)


def _canvas(height: float) -> tuple[Drawing, Callable[[float, float, float, float], Axes]]:
    """A drawing, and a maker of bare axes at (x, y, width, height)."""
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(WIDTH, height))
    drawing.patch.set_alpha(0)

    def bare(x: float, y: float, wide: float, high: float) -> Axes:
        axes = drawing.add_axes((x / WIDTH, 1 - (y + high) / height, wide / WIDTH, high / height))
        axes.set_axis_off()
        return axes

    return drawing, bare


def _write(
    drawing: Drawing, x: float, y: float, text: str, *, colour: str = INK, size: float = 8.5, **more: str
) -> None:
    """`text` with its top at `y`."""
    height = drawing.get_figheight()
    drawing.text(x / WIDTH, 1 - y / height, text, color=colour, fontsize=size, va="top", **more)  # type: ignore[arg-type]


def _draw_objectives(methods: Sequence[Seen], image: NDArray[np.uint8], grid: int) -> Drawing:
    side = (WIDTH - 2 * _MARGIN - 2 * _GAP) / 3
    drawing, bare = _canvas(_HEAD + len(methods) * (_TITLE + side) + _KEY)
    lefts = [_MARGIN + place * (side + _GAP) for place in range(3)]
    for left, text in zip(lefts, _PANELS, strict=True):
        _write(drawing, left, 0.04, text, colour=MUTED)
    for number, seen in enumerate(methods):
        top = _HEAD + number * (_TITLE + side)
        each = "growing" if seen.is_ordered else "the same"
        _write(drawing, _MARGIN, top + 0.1, method_name(seen.method), size=9.5, fontweight="bold")
        _write(
            drawing, lefts[1], top + 0.11,
            f"{len(seen.predicted)} of {seen.content.shape[1]} predicted; {each} context", colour=MUTED,
        )  # fmt: skip
        panels = [bare(left, top + _TITLE, side, side) for left in lefts]
        _draw_pattern(panels[0], seen, image, grid)
        _draw_one(panels[1], seen, image, grid)
        _draw_all(panels[2], seen)
    bottom = drawing.get_figheight() - _KEY + 0.14
    entries = [(SEEN, "content seen"), (POSITION, "position alone"), (PREDICTED, "predicted")]
    _draw_key(drawing, bare, entries, lefts, bottom)
    return drawing


def _draw_key(
    drawing: Drawing,
    bare: Callable[[float, float, float, float], Axes],
    entries: Sequence[tuple[str, str]],
    lefts: Sequence[float],
    y: float,
) -> None:
    from matplotlib.patches import Rectangle

    for left, (colour, text) in zip(lefts, entries, strict=True):
        swatch = bare(left, y, 0.15, 0.15)
        swatch.add_patch(Rectangle((0, 0), 1, 1, color=colour))
        _write(drawing, left + 0.22, y + 0.0, text)


def _show(axes: Axes, image: NDArray[np.uint8], grid: int) -> None:
    """The image, a unit of the axes being a patch."""
    axes.imshow(image, extent=(0, grid, grid, 0), interpolation="nearest", zorder=0)
    axes.set_xlim(0, grid)
    axes.set_ylim(grid, 0)


def _lines(axes: Axes, grid: int) -> None:
    places = range(grid + 1)
    axes.vlines(places, 0, grid, color=RULE, linewidth=0.4, zorder=2, clip_on=False)
    axes.hlines(places, 0, grid, color=RULE, linewidth=0.4, zorder=2, clip_on=False)


def _patch(axes: Axes, patch: int, grid: int, **look: object) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((patch % grid, patch // grid), 1, 1, **look))  # type: ignore[arg-type]


def _draw_pattern(axes: Axes, seen: Seen, image: NDArray[np.uint8], grid: int) -> None:
    _show(axes, image, grid)
    share = seen.content.mean(axis=0)
    for patch in seen.predicted:
        veil = 0.92 - 0.6 * float(share[patch])
        _patch(axes, int(patch), grid, facecolor=PREDICTED, alpha=veil, linewidth=0, zorder=1)
    _lines(axes, grid)


def _draw_one(axes: Axes, seen: Seen, image: NDArray[np.uint8], grid: int) -> None:
    _show(axes, image, grid)
    one = int(seen.in_order[len(seen.predicted) // 2])
    for patch in range(grid * grid):
        if not seen.content[one, patch]:
            colour = POSITION if seen.position[one, patch] else "white"
            _patch(axes, patch, grid, facecolor=colour, linewidth=0, zorder=1)
    _lines(axes, grid)
    target = int(seen.predicted[one])
    for width, colour in ((3.2, "white"), (1.8, PREDICTED)):
        _patch(axes, target, grid, fill=False, edgecolor=colour, linewidth=width, zorder=3, clip_on=False)


def _draw_all(axes: Axes, seen: Seen) -> None:
    from matplotlib.colors import ListedColormap

    rows, columns = seen.in_order, seen.columns
    content, position = seen.content[rows][:, columns], seen.position[rows][:, columns]
    shades = np.where(content, 1, np.where(position, 2, 0))
    shades[columns[None] == seen.predicted[rows][:, None]] = 3
    axes.imshow(
        shades, cmap=ListedColormap(["white", SEEN, POSITION, PREDICTED]), vmin=0, vmax=3, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    _border(axes, *shades.shape)


def _border(axes: Axes, rows: int, columns: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle((-0.5, -0.5), columns, rows, fill=False, edgecolor=MUTED, linewidth=0.6, clip_on=False)
    )


def _draw_attention(rules: Sequence[AttentionRule]) -> Drawing:
    label, top = 1.02, 0.62
    width = WIDTH - label - _MARGIN
    widest = max(rule.sees.shape[1] for rule in rules)
    # One scale for all: a token is as large in every matrix.
    heights = [width * rule.sees.shape[0] / widest for rule in rules]
    drawing, bare = _canvas(sum(heights) + len(rules) * (top + 0.22))
    y = 0.0
    for rule, height in zip(rules, heights, strict=True):
        scale = width / widest
        _write(drawing, _MARGIN, y + 0.05, method_name(rule.method), size=9.5, fontweight="bold")
        left = label
        for place, (part, count) in enumerate(rule.keys):
            _write(
                drawing, left + count * scale / 2, y + (0.27 if place % 2 else 0.42), f"{part} ({count})",
                ha="center", colour=MUTED, size=8,
            )  # fmt: skip
            left += count * scale
        below = y + top
        for part, count in rule.rows:
            middle = below + count * scale / 2 - 0.13
            text = f"{textwrap.fill(part, 9)}\n({count})"
            _write(drawing, label - 0.08, middle, text, ha="right", colour=INK, size=8)
            below += count * scale
        _draw_matrix(bare(label, y + top, rule.sees.shape[1] * scale, height), rule)
        y += height + top + 0.22
    return drawing


def _draw_matrix(axes: Axes, rule: AttentionRule) -> None:
    from matplotlib.colors import ListedColormap

    part_of_key = np.repeat(np.arange(len(rule.keys)), [count for _, count in rule.keys])
    shades = np.where(rule.sees, 1 + part_of_key[None], 0)
    colours = ["white", *(KEY_COLOURS[part] for part, _ in rule.keys)]
    axes.imshow(
        shades,
        cmap=ListedColormap(colours),
        vmin=0,
        vmax=len(rule.keys),
        aspect="auto",
        interpolation="nearest",
    )
    _border(axes, *shades.shape)
    rows, keys = np.cumsum([count for _, count in rule.rows]), np.cumsum([count for _, count in rule.keys])
    for place in rows[:-1]:
        axes.axhline(place - 0.5, color=INK, linewidth=0.8)
    for place in keys[:-1]:
        axes.axvline(place - 0.5, color=INK, linewidth=0.8)
