"""Figures of tables: what is drawn where, the same bytes each time, and a page that can hold several."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from functools import cache
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import t as student

from leaderboard import figures as module
from leaderboard.compute import compute_section
from leaderboard.figure_dots import HEADING, LINE, ROW, DotPanel, DotRow, _height, _limits, draw_dots
from leaderboard.figure_style import inlined, look_of, style_variables
from leaderboard.figures import interval_over_seeds, table_figures
from leaderboard.sections import Figure
from leaderboard.statistics import accuracy_interval
from leaderboard.tables import METHODS
from leaderboard.view_table import PLACE_COLUMNS, ViewTable
from leaderboard.views import view_tables
from tests.leaderboard.studies import studied


def place(row: int, column: int = 0, **values: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "row": row, "column": column, "row_label": "MIM, k-pixel", "column_label": "fine-tuning",
        "method": "mim", "variant": "", "tokenizer": "k-pixel", "trunk": "vit-t", "evaluation": "finetune",
        "metric": "top1_percent", "is_ours": True, "mean": 75.0, "sd": 1.0, "standard_error": 0.5, "seeds": 4,
        "images": 200, "reported": np.nan, "difference": np.nan, "verdict": "", "seed_values": "",
        "cell_ids": "", "command": "",
    }  # fmt: skip
    return usual | values


def table(places: list[dict[str, Any]], rows: list[tuple[str, str]], **more: Any) -> ViewTable:
    frame = pd.DataFrame(places, columns=list(PLACE_COLUMNS))
    given = {"name": "table1", "title": "Objectives", "columns": ("fine-tuning",), "notes": ()}
    return ViewTable(
        **(given | {"row_headers": ("method", "tokenizer"), "rows": tuple(rows)} | more), frame=frame
    )


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[DotPanel]:
    """What was to be drawn; nothing is."""
    drawn: list[DotPanel] = []

    def keep(draw: Any, *, name: str, alt: str, caption: str) -> Figure:
        return Figure(name=name, svg="", png=b"", alt=alt, caption=caption)

    def look(given: Any, *, label: str) -> None:
        drawn.extend(given)

    monkeypatch.setattr(module, "drawn", lambda draw, **named: (draw(), keep(draw, **named))[1])
    monkeypatch.setattr(module, "draw_dots", look)
    return drawn


class TestRows:
    def test_intervals_are_over_seeds_or_of_one_seed_over_images(self, panels: list[DotPanel]) -> None:
        values = [74.0, 74.5, 75.5, 76.0]
        error = float(np.std(values, ddof=1)) / 2
        several = place(0, standard_error=error, seed_values="0: 74.0; 1: 74.5; 2: 75.5; 3: 76.0")
        one = place(1, mean=60.0, sd=np.nan, standard_error=np.nan, seeds=1, seed_values="0: 60.0")
        (figure,) = table_figures([table([several, one], [("MIM", "k-pixel"), ("PIM", "k-pixel")])])
        first, second = panels[0].rows
        expected = student.interval(0.95, 3, loc=75.0, scale=error)
        assert (first.low, first.high) == pytest.approx(expected)
        assert interval_over_seeds(values) == pytest.approx(expected)
        assert (first.seeds, first.is_over_images) == (tuple(values), False)
        assert (second.low, second.high) == pytest.approx(accuracy_interval(120, 200))
        assert second.is_over_images
        assert "dashed, of one seed, the 95% interval of the images (exact binomial)" in figure.caption
        assert interval_over_seeds([1.0]) is None

    def test_trunks_are_panels_and_evaluations_are_figures(self, panels: list[DotPanel]) -> None:
        places = [
            line
            for row in (0, 1)
            for line in (
                place(row),
                place(row, 1, trunk="vit-s", mean=80.0),
                place(row, 2, evaluation="linear-probe", mean=50.0),
                place(row, 3, evaluation="digits", mean=np.nan),
            )
        ]
        places.append(place(0, 4, evaluation="knn"))
        found = table_figures([table(places, [("MIM", "k-pixel"), ("PIM", "k-pixel")])])
        assert [figure.name for figure in found] == ["table1-finetune-top-1", "table1-linear-probe-top-1"]
        assert [panel.title for panel in panels] == ["vit-t", "vit-s", ""]

    def test_reported_values_stand_beside_also_where_nothing_was_measured(
        self, panels: list[DotPanel]
    ) -> None:
        places = [
            place(0, reported=75.5),
            place(1, mean=np.nan, seeds=0, reported=80.0),
            place(2, mean=np.nan),
        ]
        (figure,) = table_figures([table(places, [("MIM", "k"), ("PIM", "k"), ("BEiT", "k")])])
        assert [(row.mean, row.reported) for row in panels[0].rows] == [(75.0, 75.5), (None, 80.0)]
        assert "Hollow diamonds" in figure.caption

    def test_rows_are_named_by_what_differs(self, panels: list[DotPanel]) -> None:
        headers = ("method", "tokenizer", "cutting point", "reconstruction ratio")
        rows = [("MaPeT", "VQ-KD", "30", "0.85"), ("scratch", "-", "-", "-"), ("-", "k-CLIP", "-", "-")]
        table_figures([table([place(0), place(1), place(2)], rows, row_headers=headers)])  # type: ignore[arg-type]
        assert [(row.label, row.group) for row in panels[0].rows] == [
            ("MaPeT, cutting point 30", "VQ-KD"), ("scratch", "without a tokenizer"), ("k-CLIP", ""),
        ]  # fmt: skip

    def test_a_row_without_a_tokenizer_stands_under_no_other_ones_name(self, panels: list[DotPanel]) -> None:
        rows = [("scratch", "-"), ("MIM", "k-pixel"), ("MaskFeat", "-"), ("Mine", "k-pixel")]
        lines = [place(number, tokenizer=name) for number, name in enumerate(("", "k-pixel", "", "k-pixel"))]
        table_figures([table(lines, rows)])
        assert [row.group for row in panels[0].rows] == ["", "k-pixel", "without a tokenizer", "k-pixel"]
        # Each of the three names stands above its rows, and has room there.
        plain = replace(panels[0], rows=tuple(replace(row, group="") for row in panels[0].rows))
        assert _height(panels[0]) - _height(plain) == pytest.approx(3 * HEADING)

    def test_a_label_of_several_lines_has_room_for_them(self) -> None:
        long = DotRow(label="A title that is longer than a line (plug-in file.py)", group="", mean=71.0)
        short = DotRow(label="MIM", group="", mean=72.0)
        (axes,) = draw_dots([DotPanel(title="", rows=(short, long, short))], label="top-1").axes
        first, second, third = axes.get_yticks()
        lines = axes.get_yticklabels()[1].get_text().count("\n")
        assert lines > 0
        assert (second - first, third - second) == pytest.approx((1 + lines * LINE / ROW / 2,) * 2)

    def test_too_many_rows_are_counted(self, panels: list[DotPanel], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MOST_ROWS", 3)
        (figure,) = table_figures([table([place(row) for row in range(5)], [("MIM", "k")] * 5)])
        assert len(panels[0].rows) == 3
        assert "2 more rows stand in the table alone." in figure.caption

    def test_a_row_that_is_left_out_has_no_mark_but_what_is_reported(self, panels: list[DotPanel]) -> None:
        odd = place(1, mean=5.0, seed_values="0: 4.0; 1: 6.0", reported=80.0, row_label="PIM, k")
        shown = table([place(0), odd, place(2)], [("MIM", "k"), ("PIM", "k"), ("CAE", "k")])
        (figure,) = table_figures([shown], left_out={("table1", 1), ("table2", 0)})
        assert [(row.mean, row.seeds, row.reported) for row in panels[0].rows] == [
            (75.0, (), None), (None, (), 80.0), (75.0, (), None),
        ]  # fmt: skip
        assert "for the reasons that stand under fairness: PIM, k." in figure.caption
        assert "MIM 75.00" in figure.alt
        assert "PIM" not in figure.alt

    def test_a_caption_speaks_of_the_marks_that_are_there(self, panels: list[DotPanel]) -> None:
        one = {"sd": np.nan, "standard_error": np.nan, "seeds": 1, "seed_values": "0: 75.0"}
        alone, seeds, cut = (
            table_figures([table([place(0, **more), place(1, **more)], [("MIM", "k")] * 2)])[0].caption
            for more in (one, {"seed_values": "0: 74; 1: 76"}, {"seed_values": "0: 74; 1: 76", "seeds": 2,
                                                              "standard_error": 1.0})
        )  # fmt: skip
        assert "Dots: one seed. Lines: the 95% interval of the images (exact binomial), of one seed." in alone
        assert "Large dots: means over seeds, small ones below: single seeds." in seeds
        assert ("binomial" in seeds, "Arrows" in seeds, "Arrows" in cut) == (False, False, True)

    def test_an_interval_cannot_push_the_rows_together(self) -> None:
        wide = DotRow(label="a", group="", mean=70.0, low=10.0, high=99.0)
        low, high = _limits([wide, DotRow(label="b", group="", mean=72.0)])
        # Two points beside the dots, and a margin.
        assert 67.5 < low < 68
        assert 74 < high < 74.5


@cache
def tables_of_study() -> tuple[Figure, ...]:
    board, protocol = studied()
    return table_figures(view_tables(board, protocol), protocol)


class TestFiles:
    def test_tables_have_theirs_and_studies_have_none_here(self) -> None:
        assert [figure.name for figure in tables_of_study()] == [
            "table1-finetune-top-1", "table1-linear-probe-top-1", "table6-finetune-top-1",
            "table6-finetune-top-1-curve",
        ]  # fmt: skip

    def test_an_ablation_has_a_curve_over_the_reconstruction_ratio(self) -> None:
        curve = tables_of_study()[-1]
        # Cutting points 31, 25 and 13 of 50 slots; MaPeT is third of three, and has 10 more where it is own.
        assert "mapet: 38 % 51.00, 50 % 76.00, 74 % 73.50" in curve.alt

    def test_both_files_show_it_and_nothing_of_the_day_is_in_them(self) -> None:
        for figure in tables_of_study():
            root = ElementTree.fromstring(figure.svg)
            assert root.tag.endswith("svg")
            assert "dc:date" not in figure.svg
            with Image.open(io.BytesIO(figure.png)) as image:
                assert image.format == "PNG"
                assert not image.info.keys() & {"Software", "Date"}
                corner = image.convert("RGB").getpixel((0, 0))
            assert corner == (255, 255, 255)
            assert "fill: #ffffff" not in figure.svg.split("</defs>", 1)[0]

    def test_the_same_board_gives_the_same_bytes(self) -> None:
        board, protocol = studied()
        (first, *_) = view_tables(board, protocol)
        again = table_figures([first], protocol)
        assert [(one.svg, one.png) for one in again] == [(one.svg, one.png) for one in tables_of_study()[:2]]

    def test_a_page_can_hold_several(self) -> None:
        first, second = (inlined(one.svg, name=one.name, alt=one.alt) for one in tables_of_study()[:2])
        ids = [set(re.findall(r'\bid="([^"]+)"', one)) for one in (first, second)]
        assert ids[0]
        assert not ids[0] & ids[1]
        for body, known in zip((first, second), ids, strict=True):
            used = set(re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', body))
            assert {a or b for a, b in used} <= known
            assert "<?xml" not in body
            assert "<metadata>" not in body

    def test_its_colours_follow_the_page_and_its_words_are_escaped(self) -> None:
        body = inlined(tables_of_study()[0].svg, name="a", alt='"><script>alert(1)</script>')
        assert "<script" not in body
        assert set(re.findall(r"#[0-9a-f]{6}", re.sub(r"var\([^)]*\)", "", body))) <= {"#ffffff", "#000000"}
        assert "var(--accent, #1f6f8b)" in body

    def test_long_names_stay_within_the_picture(self) -> None:
        long = "a tokenizer with a name that no one would type, and more of it than a line holds"
        (figure,) = table_figures([table([place(0), place(1)], [("MIM", long), ("PIM " * 12, "k")])])
        pixels = np.asarray(Image.open(io.BytesIO(figure.png)).convert("L"))
        assert (pixels[:, :3] == 255).all()

    def test_accuracy_against_compute_is_drawn_for_every_evaluation(self) -> None:
        board, protocol = studied()
        section = compute_section(board, protocol, ())
        assert section is not None
        assert [figure.name for figure in section.figures] == [
            "compute-finetune-vit-mini", "compute-linear-probe-vit-mini",
        ]  # fmt: skip
        assert (
            "MIM 66.00 at 2.00e12 FLOPs, MIM (other epochs) 77.50 at 4.80e12 FLOPs" in section.figures[0].alt
        )
        pixels = np.asarray(Image.open(io.BytesIO(section.figures[0].png)).convert("L"))
        assert (pixels[:, 0] == 255).all(), "the name of the upright axis is cut"


def _luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


class TestStyle:
    @pytest.mark.parametrize(("dark", "ground"), [(False, "#ffffff"), (True, "#15191d")])
    def test_every_series_stands_out_from_its_ground(self, dark: bool, ground: str) -> None:
        """Three to one, as WCAG 2.1 asks of graphical objects (criterion 1.4.11)."""
        colours = re.findall(r"--series-\d+: (#[0-9a-f]{6});", style_variables(dark=dark))
        assert len(set(colours)) == len(colours) == 12
        for colour in colours:
            light, low = sorted((_luminance(colour), _luminance(ground)), reverse=True)
            assert (light + 0.05) / (low + 0.05) >= 3

    def test_methods_differ_in_more_than_colour(self) -> None:
        known = [look_of(name) for name in METHODS]
        plugins = ["mine", "yours", "theirs", "whose"]
        others = [look_of(name, ["mim", *plugins]) for name in plugins]
        assert len({look.marker for look in [*known, *others]}) == 12
        # In grey as well: the paper's, the harness's further ones, those of plug-ins.
        assert [{look.line for look in several} for several in (known[:5], known[5:], others)] == [
            {"-"}, {"--"}, {"-."},
        ]  # fmt: skip


def test_more_methods_than_can_be_told_apart_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaderboard.compute.MOST_METHODS", 2)
    monkeypatch.setattr("leaderboard.compute.MOST_FIGURES", 1)
    board, protocol = studied()
    section = compute_section(board, protocol, ())
    assert section is not None
    assert "MaPeT" not in section.figures[0].alt
    assert section.notes == (
        "1 more figures of this kind are not drawn.", "Methods beyond the first 2 are not drawn: 1.",
    )  # fmt: skip
