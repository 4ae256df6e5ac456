"""What rows cost: the columns, the tuning budget, the Pareto line, and the equal-compute track."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from leaderboard.compute import compute_section, pareto_front, tuning_budgets
from leaderboard.record import write_record
from leaderboard.report import read_board
from leaderboard.sections import Block, Section
from leaderboard.views import view_tables
from tests.leaderboard.studies import StudyCampaign, studied


@pytest.fixture
def study(tmp_path: Path) -> StudyCampaign:
    return StudyCampaign(tmp_path)


def section_of(study: StudyCampaign, monkeypatch: pytest.MonkeyPatch) -> Section:
    """The section without its figures, which other tests look at."""
    monkeypatch.setattr("leaderboard.compute.MOST_FIGURES", 0)
    board = read_board(study.work_dir, study.protocol)
    section = compute_section(board, study.protocol, view_tables(board, study.protocol))
    assert section is not None
    return section


def block(section: Section, name: str) -> Block:
    (found,) = [one for one in section.blocks if one.name == name]
    return found


def line(frame: pd.DataFrame, **names: Any) -> pd.Series:
    chosen = frame
    for name, value in names.items():
        chosen = chosen[chosen[name] == value]
    assert len(chosen) == 1
    return chosen.iloc[0]


class TestCosts:
    def test_every_column_of_a_row(self, study: StudyCampaign, monkeypatch: pytest.MonkeyPatch) -> None:
        study.row("scratch", None, finetune=90, probe=60)
        for seed in (0, 1):
            study.study_row("mim", seed=seed, finetune=120)
            study.study_row("mapet", seed=seed, finetune=130)
        frame = block(section_of(study, monkeypatch), "compute").frame
        assert list(frame["method"]) == ["scratch", "mim", "mapet"]
        mapet = line(frame, method="mapet")
        assert mapet["pretraining_flops"] == 5e12
        assert mapet["flops_to_mim"] == pytest.approx(2.5)
        assert mapet["pretraining_wall_seconds"] == 100
        # Fine-tuning takes 40 seconds and a probe 20, of each seed.
        assert mapet["evaluation_wall_seconds"] == 60
        assert (mapet["tokenising_wall_seconds"], mapet["tokenising_rows"]) == (10, 2)
        assert mapet["tokenising_share_seconds"] == 5
        assert mapet["seeds"] == 2
        assert np.isnan(mapet["gpu_hours"])
        scratch = line(frame, method="scratch")
        assert scratch[["pretraining_flops", "flops_to_mim", "tuning_budget"]].isna().all()

    def test_texts_fit_a_terminal(self, study: StudyCampaign, monkeypatch: pytest.MonkeyPatch) -> None:
        study.study_row("mim", "k-feature", finetune=120)
        grid = block(section_of(study, monkeypatch), "compute").grid
        assert grid.rows == (("MIM", "k-feature", "2.00e12", "1.00", "1m40s", "10s (1)", "1m00s", "1"),)
        # The longest that mini's board has in each column, two blanks apart.
        longest = ("SplitMask", "k-feature", "2.00e12", "1.00", "1m40s", "1m31s (34)", "1m00s", "8")
        names = [column.name for column in grid.columns]
        assert sum(max(map(len, pair)) + 2 for pair in zip(names, longest, strict=True)) - 2 <= 80

    def test_gpu_hours_count_every_process(
        self, study: StudyCampaign, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        record = study.study_row("mim", finetune=120)
        runtime = {**record.runtime, "device": "cuda", "processes": 8}
        write_record(study.cells / record.cell_id, record.model_copy(update={"runtime": runtime}))
        costs = block(section_of(study, monkeypatch), "compute")
        assert costs.frame["gpu_hours"].iloc[0] == pytest.approx(100 / 3600 * 8)
        assert "GPU-hours" in [column.name for column in costs.grid.columns]

    def test_without_mim_there_is_no_ratio(
        self, study: StudyCampaign, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study.study_row("pim", finetune=120)
        assert block(section_of(study, monkeypatch), "compute").frame["flops_to_mim"].isna().all()

    def test_nothing_measured_is_no_section(self, study: StudyCampaign) -> None:
        board = read_board(study.work_dir, study.protocol)
        assert compute_section(board, study.protocol, view_tables(board, study.protocol)) is None


class TestTuningBudget:
    def test_each_setting_counts_once_wherever_it_stands(self, study: StudyCampaign) -> None:
        for seed in (0, 1):
            study.study_row("mapet", seed=seed)
        study.study_row("mapet", values={"cutting_point": 13})
        study.study_row("mapet", recipe={"peak_lr": 0.008})
        study.study_row("mapet", recipe={"clip_grad_norm": 1.0}, deviations=("pretraining.clip_grad_norm=1",))
        study.study_row("mapet", recipe={"peak_lr": 0.5}, status="failed", error="loss is nan")
        study.study_row("mapet", "k-feature")
        study.row("scratch", None, finetune=90, probe=60)
        assert tuning_budgets(read_board(study.work_dir, study.protocol)) == {
            ("mapet", "k-pixel", "vit-mini"): 4,
            ("mapet", "k-feature", "vit-mini"): 1,
        }

    def test_both_studies(self) -> None:
        board, _ = studied()
        budgets = {method: count for (method, _, _), count in tuning_budgets(board).items()}
        # Two shares and two learning rates beside the protocol's own; all but MaPeT at other epochs, too.
        assert budgets == {"mim": 6, "pim": 6, "mapet": 5}


class TestPareto:
    def test_it_is_what_nothing_else_beats(self) -> None:
        generator = np.random.default_rng(0)
        for _ in range(50):
            points = [(float(a), float(b)) for a, b in generator.integers(0, 6, (8, 2))]
            undominated = {
                one
                for one in points
                if not any(other != one and other[0] <= one[0] and other[1] >= one[1] for other in points)
            }
            front = pareto_front(points)
            assert set(front) == undominated
            assert list(front) == sorted(front)

    def test_one_point_and_none(self) -> None:
        assert pareto_front([(1.0, 2.0)]) == ((1.0, 2.0),)
        assert pareto_front([]) == ()


class TestEqualCompute:
    def test_equal_epochs_stand_beside_equal_flops(
        self, study: StudyCampaign, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for method, score in (("mim", 100), ("pim", 110), ("mapet", 130)):
            study.study_row(method, probe=score, finetune=score)
        study.study_row("mim", recipe={"epochs": 12}, probe=140, finetune=150)
        section = section_of(study, monkeypatch)
        frame = block(section, "equal-compute-linear-probe").frame
        mine = frame[frame["tokenizer"] == "k-pixel"]
        assert list(mine["method"]) == ["mim", "pim", "mapet"]
        mim = line(mine, method="mim")
        assert (mim["epochs"], mim["top1_percent"]) == (5, 50)
        assert mim["flops_ratio"] == pytest.approx(0.4)
        assert (mim["scaled_epochs"], mim["scaled_top1_percent"]) == (12, 70)
        assert mim["scaled_flops_ratio"] == pytest.approx(0.96)
        assert mim["change"] == pytest.approx(20)
        # The reference needs no scaling: both are its own row.
        mapet = line(mine, method="mapet")
        assert (mapet["top1_percent"], mapet["scaled_top1_percent"], mapet["change"]) == (65, 65, 0)
        assert np.isnan(line(mine, method="pim")["scaled_top1_percent"])

    def test_both_sides_are_means_over_the_same_seeds(
        self, study: StudyCampaign, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for seed in range(3):
            study.study_row("mim", seed=seed, probe=100 + 20 * seed)
        study.study_row("mim", seed=2, recipe={"epochs": 12}, probe=150)
        study.study_row("mapet", probe=100)
        study.study_row("pim", seed=0, probe=100)
        study.study_row("pim", seed=1, recipe={"epochs": 8}, probe=150)
        frame = block(section_of(study, monkeypatch), "equal-compute-linear-probe").frame
        mine = frame[frame["tokenizer"] == "k-pixel"]
        mim = line(mine, method="mim")
        assert (mim["top1_percent"], mim["scaled_top1_percent"]) == (70, 75), "of seed 2 alone"
        assert (mim["change"], mim["seeds"]) == (5, 1)
        pim = line(mine, method="pim")
        assert (pim["top1_percent"], pim["scaled_top1_percent"]) == (50, 75)
        assert np.isnan(pim["change"]), "no seed in common"

    def test_what_is_missing_is_named_with_its_command(
        self, study: StudyCampaign, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study.study_row("mapet", finetune=100)
        notes = block(section_of(study, monkeypatch), "equal-compute-finetune").notes
        assert any(
            note.startswith("Missing; to fill: python run_benchmark.py") and " pim " in note for note in notes
        )
        assert any("Fewer than three seeds" in note for note in notes)

    def test_three_seeds_everywhere_need_no_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("leaderboard.compute.MOST_FIGURES", 0)
        board, protocol = studied()
        section = compute_section(board, protocol, view_tables(board, protocol))
        assert section is not None
        notes = block(section, "equal-compute-finetune").notes
        assert not any("Fewer than" in note or "Missing" in note for note in notes)
        assert any("over seeds, 3 each" in note for note in notes)
        # The figures that were not drawn are not passed over in silence.
        assert section.notes == ("2 more figures of this kind are not drawn.",)

    def test_a_protocol_without_the_view_has_no_track(
        self, study: StudyCampaign, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study.protocol = study.protocol.model_copy(update={"views": {}})
        study.study_row("mapet", finetune=100)
        assert [one.name for one in section_of(study, monkeypatch).blocks] == ["compute"]


def test_a_row_that_is_left_out_has_its_costs_and_no_place_among_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        "leaderboard.compute._figure", lambda panels, *_, **__: drawn.append(_methods_in(panels))
    )
    board, protocol = studied()
    tables = view_tables(board, protocol)
    apart = [
        (table.name, int(place["row"]))
        for table in tables
        if table.name in ("table1", "equal-compute")
        for place in table.frame.to_dict("records")
        if (place["method"], place["variant"]) == ("pim", "" if table.name == "table1" else "epochs 8")
    ]
    section = compute_section(board, protocol, tables, left_out=apart)
    assert section is not None
    assert drawn == ["mim, mim, mapet"] * 2
    assert "pim" in set(block(section, "compute").frame["method"])
    frame = block(section, "equal-compute-linear-probe").frame
    assert line(frame, method="pim")[["top1_percent", "scaled_top1_percent"]].isna().all()
    assert line(frame, method="mim")[["top1_percent", "scaled_top1_percent"]].notna().all()
    (note,) = section.notes
    assert note.startswith("Left out, for the reasons that stand under fairness: PIM")


def _methods_in(panels: list[Any]) -> str:
    return ", ".join(spot.method for panel in panels for spot in panel.spots)
