"""What a board shows beside its main table: one form for terminal, Markdown, HTML, CSV, LaTeX and JSON.

A part of the leaderboard says what it has to say as a Section; the renderers know nothing of the parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from leaderboard.grids import Grid


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing: `svg` on a transparent ground in the colours of the page, `png` the same on white.

    `name` is the stem of both files; `alt` says in words what a reader who cannot see it has to know.
    """

    name: str
    svg: str
    png: bytes
    alt: str
    caption: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """One table of a section. `name` is the stem of its files; `frame` has the raw numbers behind `grid`.

    `red` holds the places (row, column) of `grid` that no reader may overlook.
    """

    name: str
    caption: str
    grid: Grid
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    red: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """`alerts` are sentences shown in red, before everything else of the section; `notes` follow it all."""

    name: str
    title: str
    alerts: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = field(default=())
