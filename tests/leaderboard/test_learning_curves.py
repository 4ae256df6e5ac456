"""Learning curves: metrics files are read leniently, thinned, and missed without a word too many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leaderboard.learning_curves import learning_curve_section, read_losses, thinned
from leaderboard.report import read_board
from tests.leaderboard.studies import StudyCampaign


def lines(*points: tuple[float, float]) -> str:
    return "".join(json.dumps({"epoch": epoch, "loss": loss}) + "\n" for epoch, loss in points)


class TestReading:
    def test_the_later_of_a_step_that_was_run_twice_counts(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text(lines((0.1, 5), (0.2, 4), (0.3, 9), (0.2, 3), (0.3, 2)))
        assert read_losses(path) == [(0.1, 5), (0.2, 3), (0.3, 2)]

    @pytest.mark.parametrize(
        "line",
        ['{"epoch": 1, "lo', "[1, 2]", "7", '{"epoch": "1", "loss": 2}', '{"epoch": 1, "loss": NaN}',
         '{"epoch": 1}', '{"epoch": true, "loss": 1}', "\x00\x00"],
    )  # fmt: skip
    def test_a_line_that_says_nothing_is_passed_over(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text(lines((0.1, 5)) + line + "\n" + lines((0.2, 4)))
        assert read_losses(path) == [(0.1, 5), (0.2, 4)]

    def test_bytes_that_are_no_text_are_passed_over(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(lines((0.1, 5)).encode() + b"\xff\xfe\x00\n" + lines((0.2, 4)).encode())
        assert read_losses(path) == [(0.1, 5), (0.2, 4)]

    def test_no_file_and_too_large_a_file_are_no_curve(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert read_losses(tmp_path / "none.jsonl") == []
        path = tmp_path / "metrics.jsonl"
        path.write_text(lines((0.1, 5)))
        monkeypatch.setattr("leaderboard.learning_curves.MOST_BYTES", 10)
        assert read_losses(path) == []

    def test_of_a_long_file_some_lines_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text(lines(*((step, 1.0) for step in range(9000))))
        assert len(read_losses(path)) == 2250

    def test_points_stand_for_their_neighbours(self) -> None:
        points = [(float(step), 2.0 * step) for step in range(1000)]
        few = thinned(points, 10)
        assert few == [(50 + 100 * k - 0.5, 2 * (50 + 100 * k - 0.5)) for k in range(10)]
        assert thinned(points[:5], 10) == points[:5]
        assert len(thinned([(float(step), 0.0) for step in range(17)], 10)) == 10


class TestSection:
    def test_a_line_for_every_seed_and_a_note_for_what_has_none(self, tmp_path: Path) -> None:
        study = StudyCampaign(tmp_path)
        for seed in range(5):
            study.study_row("mim", seed=seed, losses=[4.0, 3.0, 2.0 + seed])
        study.study_row("pim", losses=[5.0, 4.0])
        study.study_row("mapet", finetune=100)
        study.study_row("mim", recipe={"epochs": 12}, losses=[9.0, 9.0])
        section = learning_curve_section(read_board(study.work_dir, study.protocol), study.cells)
        assert section is not None
        (figure,) = section.figures
        # The mean over the three seeds that are drawn.
        assert "vit-mini, k-pixel: MIM from 4.00 to 3.00; PIM from 5.00 to 4.00." in figure.alt
        assert section.notes[:2] == (
            "Pre-trainings without a metrics file that can be read, and so without a line: 1.",
            "Pre-trainings of further seeds, of which 3 of a row are drawn: 2.",
        )

    def test_records_without_files_have_no_section(self, tmp_path: Path) -> None:
        study = StudyCampaign(tmp_path)
        study.study_row("mim", finetune=100)
        assert learning_curve_section(read_board(study.work_dir, study.protocol), study.cells) is None

    def test_more_methods_than_can_be_told_apart_are_counted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("leaderboard.learning_curves.MOST_METHODS", 2)
        study = StudyCampaign(tmp_path)
        for method in ("mim", "pim", "mapet"):
            study.study_row(method, losses=[4.0, 3.0])
        section = learning_curve_section(read_board(study.work_dir, study.protocol), study.cells)
        assert section is not None
        assert "MaPeT" not in section.figures[0].alt
        assert section.notes[0] == "Methods beyond the first 2 of a figure are not drawn: 1."
