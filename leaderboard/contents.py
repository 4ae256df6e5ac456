"""All that a board shows, put together once for every form: the board, its views, what follows from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from leaderboard.captions import main_rows, view_title
from leaderboard.claims import claims_section
from leaderboard.comparisons import compare_tables
from leaderboard.comparisons_section import statistics_section
from leaderboard.compute import compute_section
from leaderboard.fairness import left_out, prove
from leaderboard.fairness_section import fairness_section
from leaderboard.figures import probe_figure, table_figures
from leaderboard.further_rows import shown_views
from leaderboard.imported_view import imported_section
from leaderboard.in_short import Sentence, in_short
from leaderboard.learning_curves import learning_curve_section
from leaderboard.origins import Origin, origin_notes, origins
from leaderboard.pattern_sheets import PATTERNS_NAME, PatternSheets, read_patterns
from leaderboard.predictions import PredictionsLoader
from leaderboard.recipe_tables import recipe_sections
from leaderboard.sections import Figure, Section
from leaderboard.sensitivity import sensitivity_section
from leaderboard.sheets import GALLERY_NAME, Gallery, read_gallery, stores_of
from leaderboard.tables import Board
from leaderboard.view_table import ViewTable
from leaderboard.views import not_run_note, view_tables, views_sections
from protocols.schema import Protocol


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """`tables` are the protocol's views, and `table_sections` the same as sections, with their drawings.

    `sections` say what follows from them: statistics, claims, fairness, compute and so on.
    `figure` is the SVG of the linear probe of every row of the main table. `notes` are about the records.
    `gallery` and `patterns` are pictures that commands of their own have drawn before. `merged` says of
    cells that were not made here, by cell id, where they come from.
    """

    protocol: Protocol
    board: Board
    tables: tuple[ViewTable, ...] = ()
    table_sections: tuple[Section, ...] = ()
    sections: tuple[Section, ...] = ()
    figure: str | None = None
    gallery: Gallery = field(default_factory=Gallery)
    patterns: PatternSheets = field(default_factory=PatternSheets)
    notes: tuple[str, ...] = ()
    merged: Mapping[str, Origin] = field(default_factory=dict)

    @property
    def in_short(self) -> tuple[Sentence, ...]:
        """What all of it comes to."""
        return in_short(self.tables, self.sections)


def collect(
    board: Board,
    protocol: Protocol,
    predictions: PredictionsLoader,
    *,
    work_dir: Path,
    sources: Mapping[str, str] | None = None,
) -> Contents:
    """The contents of a board of the records under WORK_DIR/PROTOCOL; of `sources` tells `build_board`."""
    folder = work_dir / protocol.name
    merged = origins(work_dir, protocol.name)
    tables = view_tables(board, protocol)
    proofs = prove(tables, board)
    apart = left_out(proofs)
    following = [
        statistics_section(compare_tables(tables, board.cells, predictions, left_out=apart)),
        claims_section(tables, board.cells, protocol, left_out=apart),
        fairness_section(tables, board, proofs=proofs),
        compute_section(board, protocol, tables, left_out=apart),
        sensitivity_section(board, protocol, tables, left_out=apart),
        learning_curve_section(board, folder / "cells"),
        imported_section(board.imported),
    ]
    views = {section.name: section for section in (*views_sections(tables), *recipe_sections(protocol))}
    # A recipe has no places, but a place among the views.
    ordered = [views[name] for name in dict.fromkeys([*protocol.views, *views]) if name in views]
    titled = [replace(one, title=view_title(one.name, one.title)) for one in ordered]
    is_shown = any(len(table.frame) and table.frame["mean"].notna().any() for table in tables)
    figures = table_figures(tables, protocol, left_out=apart) if is_shown else ()
    return Contents(
        protocol=protocol,
        board=board,
        tables=tables,
        table_sections=named_apart(with_figures(titled, figures)),
        sections=named_apart(section for section in following if section is not None),
        figure=probe_figure(replace(board, rows=main_rows(board))),
        patterns=read_patterns(folder / "leaderboard" / PATTERNS_NAME, protocol, sources),
        gallery=read_gallery(folder / "leaderboard" / GALLERY_NAME, stores_of(board)),
        notes=(*origin_notes(merged), *(_of_untried_views(board, protocol) if is_shown else ())),
        merged=merged,
    )


def _of_untried_views(board: Board, protocol: Protocol) -> Iterator[str]:
    """What is said of the views that are no tables because none of their own methods was run."""
    for shown in shown_views(board, protocol):
        if shown.view is None:
            yield not_run_note(shown, protocol)


def with_figures(sections: Iterable[Section], figures: Sequence[Figure]) -> Iterator[Section]:
    """`sections` with the figures whose names begin with theirs."""
    for section in sections:
        mine = tuple(figure for figure in figures if figure.name.startswith(f"{section.name}-"))
        yield replace(section, figures=(*section.figures, *mine))


def named_apart(sections: Iterable[Section]) -> tuple[Section, ...]:
    """The same sections; names of blocks and figures, which become files, hold nothing that a path may not.

    A tokenizer's name stands in some of them, and a record may hold any text for it.
    """
    taken: set[str] = set()

    def apart(name: str, kind: str) -> str:
        plain = re.sub(r"[^A-Za-z0-9-]", "-", name) or kind
        number = 1
        while (chosen := plain if number == 1 else f"{plain}-{number}") + kind in taken:
            number += 1
        taken.add(chosen + kind)
        return chosen

    return tuple(
        replace(
            section,
            blocks=tuple(replace(one, name=apart(one.name, "block")) for one in section.blocks),
            figures=tuple(replace(one, name=apart(one.name, "figure")) for one in section.figures),
        )
        for section in sections
    )
