"""The one style of all figures: colours, marks, type, and how a drawing becomes SVG and PNG.

A figure is as wide as a phone shows it with its text still legible; a page shows it at that size or larger.
Colours are those of the page's style sheet: inside a page each stands for a variable, and follows light and
dark. Methods differ in colour and in mark, so no reader has to tell colours apart.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from leaderboard.sections import Figure

if TYPE_CHECKING:
    # matplotlib takes a second to load, and a board without figures needs none of it.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

INK, MUTED, RULE, ACCENT = "#1d2329", "#66707b", "#d9dde2", "#1f6f8b"
WIDTH = 4.3  # inches, as all lengths here
KEY_LINE, KEY_COLUMNS = 0.21, 3
_TITLED, _UNTITLED, _TICKS, _LABEL, _RIGHT = 0.32, 0.1, 0.24, 0.22, 0.14
PNG_DPI = 150
LONGEST_LINE = 160
SETTINGS: Any = {
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.parse_math": False,
    "axes.unicode_minus": False,
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a method looks in every figure; `variable` is the page's name for the colour.

    `line` is matplotlib's name for how its lines are drawn: a grey print tells three kinds apart by it.
    """

    colour: str
    dark: str
    marker: str
    variable: str
    line: Literal["-", "--", "-."] = "-"


_PAPERS = (
    Look(colour="#0072b2", dark="#6cbdf0", marker="o", variable="--series-1"),
    Look(colour="#c4560a", dark="#f4985a", marker="s", variable="--series-2"),
    Look(colour="#14795a", dark="#45cba0", marker="D", variable="--series-3"),
    Look(colour="#a23f8a", dark="#e597cf", marker="^", variable="--series-4"),
    Look(colour="#846400", dark="#dcbf4c", marker="v", variable="--series-5"),
)
_FURTHER = (
    Look(colour="#9326ff", dark="#a06bff", marker="<", variable="--series-8", line="--"),
    Look(colour="#4c1900", dark="#c6ff3d", marker="*", variable="--series-9", line="--"),
    Look(colour="#d0103f", dark="#ff5468", marker=">", variable="--series-10", line="--"),
)
_OTHERS = (
    Look(colour="#4f52b8", dark="#a9acf2", marker="P", variable="--series-6", line="-."),
    Look(colour="#7a4b36", dark="#cf9f88", marker="X", variable="--series-7", line="-."),
    Look(colour="#00405c", dark="#2f8fb0", marker="p", variable="--series-11", line="-."),
    Look(colour="#7f9400", dark="#b0582a", marker="d", variable="--series-12", line="-."),
)
_LOOKS = (*_PAPERS, *_FURTHER, *_OTHERS)
_OF_METHOD = {
    **dict(zip(("mim", "pim", "mapet", "beit", "cae"), _PAPERS, strict=True)),
    **dict(zip(("splitmask", "maskfeat", "beit-v2"), _FURTHER, strict=True)),
}
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", ACCENT: "--accent"} | {
    look.colour: look.variable for look in _LOOKS
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def look_of(method: str, others: Sequence[str] = ()) -> Look:
    """The look of `method`; those of plug-ins share four, in the order of `others`."""
    if method in _OF_METHOD:
        return _OF_METHOD[method]
    unknown = [name for name in others if name not in _OF_METHOD]
    return _OTHERS[(unknown.index(method) if method in unknown else 0) % len(_OTHERS)]


def style_variables(*, dark: bool) -> str:
    """The declarations that a page's style sheet needs beside its own --ink, --muted, --rule, --accent."""
    return " ".join(f"{look.variable}: {look.dark if dark else look.colour};" for look in _LOOKS)


def drawn(draw: Callable[[], Drawing], *, name: str, alt: str, caption: str, dpi: int = PNG_DPI) -> Figure:
    """What `draw` draws as a figure of a board: the same bytes for the same drawing."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}), without_glyph_warnings():
        drawing = draw()
        svg = svg_of(drawing)
        stream = io.BytesIO()
        drawing.patch.set(facecolor="white", alpha=1)
        drawing.set_dpi(dpi)
        FigureCanvasAgg(drawing).print_png(stream, metadata={"Software": None})
    return Figure(name=name, svg=svg, png=stream.getvalue(), alt=alt, caption=caption)


@contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """A name may hold what the font has no letter for: a box is drawn, and nobody is told in the terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(Glyph|Matplotlib currently does not support)")
        yield


def svg_of(drawing: Drawing) -> str:
    """The drawing as SVG. Without the salt of `drawn`, matplotlib puts random ids into it."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = io.StringIO()
    FigureCanvasSVG(drawing).print_svg(stream, metadata=_NO_METADATA)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def inlined(svg: str, *, name: str = "probe", alt: str = "Linear-probe top-1 of every row") -> str:
    """`svg` for use inside an HTML page: no prologue, colours that follow the page's variables.

    Ids begin with `name`: those of two figures on one page must not meet.
    """
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", body)
    body = body.replace("<svg ", f'<svg role="img" aria-label="{escape(alt, quote=True)}" ', 1)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable}, {colour})")
    return body


def blank(
    heights: Sequence[float], *, left: float, key_lines: int = 0, titles: Sequence[str] = ("",)
) -> tuple[Drawing, list[Axes]]:
    """An empty transparent drawing with an axes of each height below each other, `left` for their labels.

    All in inches, and laid out here: matplotlib's own layout would double what a figure costs.
    """
    from matplotlib.figure import Figure as Drawing

    above = [_TITLED if title else _UNTITLED for title in titles]
    key = KEY_LINE * key_lines
    height = key + sum(above) + sum(heights) + _TICKS * len(heights) + _LABEL
    drawing = Drawing(figsize=(WIDTH, height))
    drawing.patch.set_alpha(0)
    axes = []
    y = key
    for high, over in zip(heights, above, strict=True):
        y += over
        box = (left / WIDTH, 1 - (y + high) / height, (WIDTH - left - _RIGHT) / WIDTH, high / height)
        one = drawing.add_axes(box)
        y += high + _TICKS
        one.patch.set_alpha(0)
        one.set_frame_on(False)
        one.tick_params(axis="both", colors=MUTED, length=0)
        axes.append(one)
    return drawing, axes


def text_width(text: str, size: float) -> float:
    """Inches that the widest line of `text` takes at `size` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size)
    widths = [
        text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] for line in text.splitlines()
    ]
    return max(widths, default=0.0) / 72


def fitted(text: str, size: float, width: float) -> str:
    """Every line of `text` cut where it would be wider than `width`; the cut is shown."""
    lines = []
    for line in text.splitlines():
        # Each letter that goes is measured again: of a name of a million letters nobody would see the end.
        kept = line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + "\u2026"
        while len(kept) > 1 and text_width(kept, size) > width:
            kept = kept[:-2].rstrip() + "\u2026"
        lines.append(kept)
    return "\n".join(lines)


def headed(axes: Axes, title: str) -> None:
    """A panel's title, flush left."""
    if title:
        # A height of its own keeps matplotlib from measuring everything below it.
        axes.set_title(title, loc="left", y=1.0, pad=5, color=INK, fontsize=9.5, fontweight="bold")


def labelled(axes: Axes, *, x: str = "", y: str = "", left: float = 0.0) -> None:
    """Names of the axes, at places that need no measuring; `left` is that of `blank`."""
    wide, high = axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi
    if x:
        axes.set_xlabel(x, color=MUTED)
        axes.xaxis.set_label_coords(0.5, -_TICKS / high)
    if y:
        axes.set_ylabel(y, color=MUTED)
        # It stands upright on this line, and is as high as a line of text.
        axes.yaxis.set_label_coords(-(left - 0.16) / wide, 0.5)


def ruled(axes: Axes) -> None:
    """Faint lines behind the marks, by which values are read."""
    axes.grid(visible=True, color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def keyed(drawing: Drawing, entries: Sequence[tuple[Any, str]]) -> None:
    """The key above everything else, KEY_COLUMNS side by side: handles and what they stand for."""
    drawing.legend(
        [handle for handle, _ in entries],
        [text for _, text in entries],
        loc="upper left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=min(KEY_COLUMNS, len(entries)),
        frameon=False,
        labelcolor=INK,
        handletextpad=0.5,
        columnspacing=1.4,
        borderaxespad=0.1,
        borderpad=0.1,
    )
