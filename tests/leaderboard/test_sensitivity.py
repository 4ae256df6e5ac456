"""The sensitivity study: settings that all methods share, orders, flips, and what may be said of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import kendalltau

from leaderboard.report import read_board
from leaderboard.row_runs import RowRuns
from leaderboard.sections import Section
from leaderboard.sensitivity import OWN, find_studies, sensitivity_section, spreads, study_means
from leaderboard.stability import stability
from leaderboard.tried import predicted_patches, setting_label, tried_values
from leaderboard.views import view_tables
from tests.leaderboard.studies import StudyCampaign, studied, study_protocol

FEWER, MORE = "19 of 49 predicted", "37 of 49 predicted"


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaderboard.sensitivity._figures", lambda *_: [])


class TestSettings:
    def test_methods_share_a_setting_that_they_call_differently(self) -> None:
        protocol = study_protocol()
        assert setting_label(protocol, "mim", "vit-mini", "mask_count 19") == FEWER
        assert setting_label(protocol, "mapet", "vit-mini", "cutting_point 31") == FEWER
        assert setting_label(protocol, "mapet", "vit-mini", "peak_lr 0.002") == "peak lr 0.002"
        both = setting_label(protocol, "mim", "vit-mini", "mask_count 19, peak_lr 0.002")
        assert both == f"{FEWER}, peak lr 0.002"
        assert setting_label(protocol, "mim", "vit-mini", "") == ""

    def test_the_class_token_counts_in_a_cutting_point(self) -> None:
        assert predicted_patches({"cutting_point": 50}, patches=196) == 147
        assert predicted_patches({"mask_count": 75}, patches=196) == 75
        assert predicted_patches({"depth": 1}, patches=196) is None
        assert tried_values("mask_count 19, peak_lr 2e-05") == {"mask_count": "19", "peak_lr": "2e-05"}

    def test_the_view_is_found_whole(self) -> None:
        board, protocol = studied()
        (study,) = find_studies(RowRuns.of(board), protocol)
        assert (study.methods, study.evaluation) == (("mim", "pim", "mapet"), "linear-probe")
        assert list(study.rows) == [OWN, FEWER, MORE, "peak lr 0.002", "peak lr 0.008"]
        assert study.measured == study.wanted == 15
        # The values that the protocol sets anyway are its own setting, not others.
        assert study.rows[OWN]["mim"].variant == ""


class TestStability:
    def test_orders_are_held_against_the_protocols(self) -> None:
        own = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0}
        other = {"a": 2.0, "b": 3.0, "c": 1.0, "d": 0.5, "unknown": 9.0}
        found = stability(own, other)
        assert found.tau == pytest.approx(kendalltau([3, 2, 1, 0], [2, 3, 1, 0.5]).statistic)
        assert found.flipped == (("a", "b"),)
        assert len(found.pairs) == 6

    def test_a_tie_is_no_flip_and_one_method_is_no_order(self) -> None:
        tied = stability({"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 3.0})
        assert (tied.flipped, tied.tau) == ((), None)
        alone = stability({"a": 1.0}, {"a": 3.0})
        assert (alone.pairs, alone.tau) == ((), None)

    def test_means_spreads_and_flips_of_the_study(self) -> None:
        board, protocol = studied()
        runs = RowRuns.of(board)
        (study,) = find_studies(runs, protocol)
        means = study_means(study, runs)
        # Of 200 images 120, 122 and 124 are right, and 10 more for each method.
        assert means[OWN] == {"mim": 61.0, "pim": 66.0, "mapet": 71.0}
        assert means[FEWER] == {"mim": 61.0, "pim": 56.0, "mapet": 51.0}
        assert spreads(means, study.methods) == {"mim": 4.5, "pim": 12.5, "mapet": 22.5}
        assert stability(means[OWN], means[FEWER]).tau == -1
        assert stability(means[OWN], means[MORE]).flipped == ()


class TestSection:
    def test_the_table_and_the_sentence_say_it(self, no_figures: None) -> None:
        board, protocol = studied()
        section = self.section(board, protocol)
        assert section.name not in protocol.views, "both are anchors of the page"
        settings, pairs = section.blocks
        assert [column.name for column in settings.grid.columns] == [
            "setting", "MIM", "PIM", "MaPeT", "seeds", "tau", "flips",
        ]  # fmt: skip
        assert settings.grid.rows[1] == (FEWER, "61.00", "56.00", "51.00", "3", "-1.00", "3 of 3")
        assert settings.grid.rows[-1][:4] == ("spread (points)", "4.50", "12.50", "22.50")
        assert pairs.grid.rows[0] == ("MIM - PIM", "-5.00", "1 of 4", FEWER)
        sentence = section.notes[0]
        assert "at 3 of 4 other settings the means stand in the order of the protocol's setting" in sentence
        assert "3 of 3 pairs of methods change sides at some setting" in sentence
        assert "Fewer than" not in sentence
        assert len(settings.frame) == 15

    def test_part_of_a_study_with_one_seed_claims_nothing(self, tmp_path: Path, no_figures: None) -> None:
        study = StudyCampaign(tmp_path)
        study.study_row("mim", probe=100)
        study.study_row("pim", probe=110)
        study.study_row("mim", values={"mask_count": 19}, probe=120)
        study.study_row("mapet", values={"cutting_point": 31}, probe=120)
        section = self.section(read_board(study.work_dir, study.protocol), study.protocol)
        sentence = section.notes[0]
        assert "4 of 15 places are measured so far." in sentence
        assert "Fewer than 3 seeds: this is said of these trainings, not of methods." in sentence
        # MIM alone stands in both settings: there is no pair to change sides.
        assert section.blocks[0].grid.rows[1] == (FEWER, "60.00", "-", "60.00", "1", "-", "-")

    def test_orders_are_compared_over_the_seeds_that_both_have(
        self, tmp_path: Path, no_figures: None
    ) -> None:
        """Over all seeds PIM is ahead; of the one that was tried it is not, at either setting."""
        study = StudyCampaign(tmp_path)
        for seed, probe in enumerate((90, 130, 130)):
            study.study_row("mim", seed=seed, probe=100)
            study.study_row("pim", seed=seed, probe=probe)
        study.study_row("mim", values={"mask_count": 19}, probe=110)
        study.study_row("pim", values={"cutting_point": 31}, probe=100)
        settings, pairs = self.section(read_board(study.work_dir, study.protocol), study.protocol).blocks
        assert settings.grid.rows[0][1:4] == ("50.00", "58.33", "-")
        assert settings.grid.rows[1][-2:] == ("1.00", "0 of 1")
        assert pairs.grid.rows[0][1:3] == ("-8.33", "0 of 1")

    def test_without_variants_or_view_there_is_none(self, tmp_path: Path) -> None:
        study = StudyCampaign(tmp_path)
        study.study_row("mim", probe=100)
        board = read_board(study.work_dir, study.protocol)
        assert sensitivity_section(board, study.protocol) is None
        assert sensitivity_section(board, study.protocol.model_copy(update={"views": {}})) is None

    def test_its_figures_show_shares_and_rates(self) -> None:
        section = self.section(*studied())
        share, rate = section.figures
        assert share.name.startswith("sensitivity-share-linear-probe")
        assert "MIM 38.8: 61.00, 51: 61.00, 75.5: 63.50" in share.alt
        assert "PIM 0.002: 64.00, 0.004: 66.00, 0.008: 64.00" in rate.alt
        assert "Dashed: the protocol's value." in rate.caption

    @staticmethod
    def section(board: object, protocol: object) -> Section:
        section = sensitivity_section(board, protocol)  # type: ignore[arg-type]
        assert section is not None
        return section


def test_a_row_that_is_left_out_is_in_no_order(no_figures: None) -> None:
    board, protocol = studied()
    tables = view_tables(board, protocol)
    (table,) = (table for table in tables if table.name == "sensitivity")
    rows = table.frame[(table.frame["method"] == "mapet") & (table.frame["variant"] == "cutting_point 31")]
    apart = {(table.name, int(row)) for row in rows["row"]}
    section = sensitivity_section(board, protocol, tables, left_out=apart)
    assert section is not None
    frame = section.blocks[0].frame
    assert set(frame[frame["setting"] == FEWER]["method"]) == {"mim", "pim"}
    assert set(frame[frame["setting"] == OWN]["method"]) == {"mim", "pim", "mapet"}
    assert any(note.startswith("Left out") and "31" in note for note in section.notes)


def test_a_method_without_a_tokenizer_has_a_study_of_its_own(no_figures: None) -> None:
    """Also where its cells name tokenizers: it has one row, and not one for each."""
    board, protocol = studied()
    cells = tuple(
        replace(run, key=run.key._replace(tokenizer="")) if run.key.method == "mim" else run
        for run in board.cells
    )
    section = sensitivity_section(replace(board, cells=cells), protocol)
    assert section is not None
    assert [block.name for block in section.blocks] == [
        "sensitivity-linear-probe-no-tokenizer-vit-mini", "sensitivity-linear-probe-k-pixel-vit-mini",
        "sensitivity-pairs-linear-probe-k-pixel-vit-mini",
    ]  # fmt: skip
    assert section.blocks[0].grid.rows[1] == (FEWER, "61.00", "3", "-", "-")
    assert section.notes[0].startswith("Linear probe, without a tokenizer, vit-mini: means spread over")
    assert "places are measured so far" not in " ".join(section.notes)
