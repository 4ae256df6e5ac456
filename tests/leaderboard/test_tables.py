"""The board's values, and that only like stands with like."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
import pytest

from leaderboard.predictions import predictions_loader
from leaderboard.record import read_records
from leaderboard.report import read_board
from leaderboard.tables import Board, build_board
from protocols.errors import HarnessError


def _board(campaign: Any) -> Board:
    return read_board(campaign.work_dir, campaign.protocol)


def _row(frame: pd.DataFrame, method: str, tokenizer: str = "") -> pd.Series:
    found = frame[(frame["method"] == method) & (frame["tokenizer"] == tokenizer)]
    assert len(found) == 1
    return found.iloc[0]


def test_values_of_two_seeds(two_seeds: Any) -> None:
    rows = _board(two_seeds).rows
    mim = _row(rows, "mim", "k-pixel")
    assert mim["finetune_top1_percent"] == pytest.approx(62.5)
    assert mim["finetune_top1_sd"] == pytest.approx(5 / 2**0.5)
    assert (mim["finetune_seeds"], mim["linear-probe_seeds"]) == (2, 2)
    assert mim["linear-probe_images"] == 200
    assert mim["linear-probe_top1_percent"] == pytest.approx(55.0)
    # Per seed: 50 - 30 and 60 - 35.
    assert mim["linear-probe_gain_points"] == pytest.approx(22.5)
    assert mim["linear-probe_gain_seeds"] == 2
    assert mim["pretraining_images_seen"] == 1000
    assert mim["pretraining_flops"] == 2e12
    assert mim["pretraining_wall_seconds"] == 100
    assert mim["row_wall_seconds"] == 170
    scratch = _row(rows, "scratch")
    assert pd.isna(scratch["linear-probe_gain_points"])
    assert pd.isna(scratch["pretraining_wall_seconds"])
    assert scratch["row_wall_seconds"] == 60


def test_bound_is_the_smallest_over_seeds(two_seeds: Any) -> None:
    board = _board(two_seeds)
    runs = board.runs[(board.runs["method"] == "mapet") & (board.runs["stage"] == "linear-probe")]
    bounds = list(runs["gain_lower_bound_points"])
    row = _row(board.rows, "mapet", "k-pixel")
    assert row["linear-probe_gain_lower_bound_points"] == min(bounds) != max(bounds)
    assert 0 < min(bounds) < row["linear-probe_gain_points"]


def test_order_is_the_protocols_not_by_score(two_seeds: Any) -> None:
    rows = _board(two_seeds).rows
    assert list(zip(rows["method"], rows["tokenizer"], strict=True)) == [
        ("scratch", ""), ("mim", "k-pixel"), ("mapet", "k-pixel"), ("mim", "k-feature"),
    ]  # fmt: skip


def test_unknown_methods_follow_alphabetically(campaign: Any) -> None:
    for method in ("zeta", "cae", "alpha", "mim"):
        campaign.row(method, "k-pixel", finetune=100, probe=100)
    assert list(_board(campaign).rows["method"]) == ["mim", "cae", "alpha", "zeta"]


def test_board_does_not_depend_on_the_order_of_records(two_seeds: Any) -> None:
    records = read_records(two_seeds.work_dir, "tiny")
    slices = two_seeds.protocol.slices
    first = build_board(records, lambda record: None, slices=slices)
    second = build_board(records[::-1], lambda record: None, slices=slices)
    pd.testing.assert_frame_equal(first.rows, second.rows)
    pd.testing.assert_frame_equal(first.runs, second.runs)
    # Without predictions there is a gain, from the metrics, but no bound.
    row = _row(first.rows, "mim", "k-pixel")
    assert row["linear-probe_gain_points"] == pytest.approx(22.5)
    assert pd.isna(row["linear-probe_gain_lower_bound_points"])


def test_notes_on_one_and_two_seeds(campaign: Any, two_seeds: Any) -> None:
    notes = " ".join(_board(two_seeds).notes)
    assert "no ranks" in notes
    assert "200 test images" in notes
    assert "2 seeds (0, 1)" in notes
    one_seed = build_board(
        [record for record in two_seeds.records.values() if record.seed in (0, None)],
        lambda record: None,
        slices=two_seeds.protocol.slices,
    )
    assert "One seed (0): nothing is said about methods." in " ".join(one_seed.notes)


def test_gain_needs_the_random_trunk_of_the_same_seed(campaign: Any) -> None:
    campaign.row("scratch", None, seed=0, finetune=80, probe=40)
    campaign.row("mim", "k-pixel", seed=0, finetune=100, probe=100)
    campaign.row("mim", "k-pixel", seed=1, finetune=100, probe=180)
    board = _board(campaign)
    row = _row(board.rows, "mim", "k-pixel")
    assert row["linear-probe_gain_points"] == pytest.approx(30.0)
    assert row["linear-probe_gain_seeds"] == 1
    assert "1 of 2 probes have no random trunk" in " ".join(board.notes)


def test_damaged_predictions_of_the_random_trunk_are_named(campaign: Any) -> None:
    campaign.row("scratch", None, finetune=80, probe=40)
    campaign.row("mim", "k-pixel", finetune=100, probe=100)
    (campaign.cells / "scratch-none-0-probe" / "predictions.npz").write_bytes(b"")
    with pytest.raises(HarnessError, match="scratch-none-0-probe"):
        _board(campaign)


def test_missing_and_failed_cells(campaign: Any) -> None:
    campaign.row("scratch", None, finetune=80, probe=40)
    campaign.tokenizer("k-pixel")
    use = {"method": "mim", "tokenizer": "k-pixel"}
    campaign.cell("pre", "pretrain", parents=("tok-k-pixel",), **use)
    campaign.cell(
        "ft", "finetune", parents=("pre",), correct=1, status="failed", error="loss is nan\nTraceback", **use
    )
    campaign.cell(
        "pre2", "pretrain", method="mapet", tokenizer="k-pixel", status="failed", error="\nno memory"
    )
    campaign.cell("ft2", "finetune", method="mapet", tokenizer="k-pixel", parents=("pre2",), status="skipped",
                  error="pre2 failed")  # fmt: skip
    board = _board(campaign)
    mim = _row(board.rows, "mim", "k-pixel")
    assert pd.isna(mim["finetune_top1_percent"])
    assert mim["finetune_seeds"] == 0
    assert mim["pretraining_wall_seconds"] == 100
    assert pd.isna(mim["row_wall_seconds"])
    assert pd.isna(_row(board.rows, "mapet", "k-pixel")["pretraining_wall_seconds"])
    assert list(board.failures["status"]) == ["failed", "failed", "skipped"]
    assert set(board.failures["error"]) == {"loss is nan", "no memory", "pre2 failed"}
    assert list(board.failures["log"]) == ["cells/ft/log", "cells/pre2/log", "cells/ft2/log"]


def test_parents_decide_not_names(campaign: Any) -> None:
    campaign.row("mim", "k-pixel", finetune=100, probe=100)
    # Same names throughout, but no parent: its pre-training is unknown, so it is not matched by name.
    campaign.cell("orphan", "finetune", method="mapet", tokenizer="k-pixel", correct=90)
    campaign.cell("unused", "pretrain", method="beit", tokenizer="k-pixel", parents=("tok-k-pixel",))
    mims = ("mim-k-pixel-0-pretrain",)
    later = "2026-01-03T00:00:00Z"
    campaign.cell(
        "child", "finetune", method="beit", tokenizer="k-pixel", parents=mims, correct=90, ended=later
    )
    runs = _board(campaign).runs.set_index("cell_id")
    assert runs.loc["orphan", "pretraining_cell"] == ""
    assert pd.isna(runs.loc["orphan", "pretraining_wall_seconds"])
    assert runs.loc["child", "pretraining_cell"] == "mim-k-pixel-0-pretrain"


def test_modified_records_stand_apart(two_seeds: Any) -> None:
    deviation = ("pretraining.peak_lr=0.1",)
    two_seeds.row("beit", "k-pixel", finetune=199, probe=199, deviations=deviation)
    # Clean itself, but measured on a modified pre-training.
    two_seeds.cell("clean-child", "linear-probe", method="beit", tokenizer="k-pixel", correct=198,
                   parents=("beit-k-pixel-0-pretrain",), seed=3)  # fmt: skip
    # A modified random trunk must not become anybody's floor.
    two_seeds.row("scratch", None, seed=0, finetune=1, probe=1, deviations=("x",))
    two_seeds.row("scratch", None, seed=7, finetune=1, probe=1, deviations=("x",))
    two_seeds.row("mim", "k-pixel", seed=7, finetune=100, probe=100)
    board = _board(two_seeds)
    assert "beit" not in set(board.rows["method"])
    modified = board.modified[board.modified["method"] == "beit"]
    assert len(modified) == 3
    assert set(modified["deviations"]) == set(deviation)
    assert _row(board.rows, "mim", "k-pixel")["linear-probe_gain_seeds"] == 1


def test_other_versions_stand_apart(two_seeds: Any) -> None:
    old = {"evaluation:linear-probe": "old"}
    use: dict[str, Any] = {"slices": old, "version": 1}
    two_seeds.cell("old-floor", "linear-probe", method="scratch", correct=20, **use)
    two_seeds.cell("old-mim", "linear-probe", method="mim", tokenizer="k-pixel", correct=150,
                   parents=("mim-k-pixel-0-pretrain",), **use)  # fmt: skip
    before = _row(_board(two_seeds).rows, "mim", "k-pixel")
    assert before["linear-probe_top1_percent"] == pytest.approx(55.0)
    (other,) = _board(two_seeds).others
    assert other.versions == (1,)
    assert other.differing == ("evaluation:linear-probe",)
    # Its floor is the random trunk under the same old recipe.
    assert _row(other.rows, "mim", "k-pixel")["linear-probe_gain_points"] == pytest.approx(65.0)
    assert pd.isna(_row(other.rows, "mim", "k-pixel")["finetune_top1_percent"])


def test_a_parents_slices_count(two_seeds: Any) -> None:
    two_seeds.cell(
        "old-tok", "tokenise", tokenizer="k-pixel", trunk=None, slices={"tokenizer:k-pixel": "old"}
    )
    use = {"method": "beit", "tokenizer": "k-pixel"}
    two_seeds.cell("old-pre", "pretrain", parents=("old-tok",), slices={"pretraining": "old"}, **use)
    # The child names only what itself used; the board must look at its parents too.
    two_seeds.cell("child", "finetune", parents=("old-pre",), correct=150, **use)
    board = _board(two_seeds)
    assert "beit" not in set(board.rows["method"])
    (other,) = board.others
    assert list(other.rows["method"]) == ["beit"]
    assert other.differing == ("pretraining", "tokenizer:k-pixel")
    assert list(board.tokenizers["standing"]) == ["board", "other version", "board"]


@pytest.mark.parametrize("of_slice", [True, False])
def test_a_methods_other_setting_stands_apart(two_seeds: Any, of_slice: bool) -> None:
    """Whether cells name their method's slice or only its values: 25 is what the protocol sets."""
    use: dict[str, Any] = {"method": "mim", "tokenizer": "k-pixel", "seed": 5}
    two_seeds.cell(
        "pre", "pretrain", parents=("tok-k-pixel",), slices={"method:mim": "old"} if of_slice else {},
        hyperparameters={"mask_count": 25 if of_slice else 24, "min_block": 1}, **use,
    )  # fmt: skip
    two_seeds.cell("ft", "finetune", parents=("pre",), correct=1, **use)
    board = _board(two_seeds)
    assert _row(board.rows, "mim", "k-pixel")["finetune_seeds"] == 2
    assert [other.differing for other in board.others] == [("method:mim",)]


def test_plugin_methods_and_tokenizers_may_stand_on_the_board(two_seeds: Any) -> None:
    two_seeds.row("mine", "my-tokens", finetune=100, probe=100)
    two_seeds.row("mine", "my-tokens", seed=1, finetune=100, probe=100, slices={"tokenizer:my-tokens": "old"},
                  ended="2025-01-01T00:00:00Z")  # fmt: skip
    board = _board(two_seeds)
    assert _row(board.rows, "mine", "my-tokens")["finetune_seeds"] == 1
    assert board.others[0].differing == ("tokenizer:my-tokens",)


def test_a_row_shows_one_setting_of_its_method(campaign: Any) -> None:
    """A default that changed and was run again for one seed of two: the row must not average both."""
    campaign.tokenizer("k-pixel")
    for seed, depth, correct, day in ((0, 1, 100, 1), (1, 1, 110, 1), (1, 2, 180, 2)):
        use = {"method": "mim", "tokenizer": "k-pixel", "seed": seed, "ended": f"2026-01-0{day}T00:00:00Z"}
        setting = {"mask_count": 25, "depth": depth}
        pretrain = f"pre-{seed}-{depth}"
        campaign.cell(pretrain, "pretrain", parents=("tok-k-pixel",), hyperparameters=setting, **use)
        campaign.cell(f"ft-{seed}-{depth}", "finetune", parents=(pretrain,), correct=correct, **use)
    board = _board(campaign)
    row = _row(board.rows, "mim", "k-pixel")
    assert row["finetune_seeds"] == 1
    assert row["finetune_top1_percent"] == 90.0
    superseded = board.runs[board.runs["standing"] == "superseded"]
    assert set(superseded["cell_id"]) == {"ft-0-1", "ft-1-1"}
    assert "ft-0-1, ft-1-1" in " ".join(board.notes)


def test_a_seed_shows_one_pretraining(two_seeds: Any) -> None:
    """Another fit of the tokenizer, say: the newest pre-training counts, with all measured on it."""
    use = {"method": "mim", "tokenizer": "k-pixel", "ended": "2026-06-01T00:00:00Z"}
    two_seeds.cell("new-pre", "pretrain", parents=("tok-k-pixel",), **use)
    two_seeds.cell("new-probe", "linear-probe", parents=("new-pre",), correct=180, **use)
    board = _board(two_seeds)
    row = _row(board.rows, "mim", "k-pixel")
    assert row["linear-probe_top1_percent"] == pytest.approx((90 + 60) / 2)
    assert row["finetune_seeds"] == 1
    superseded = board.runs[board.runs["standing"] == "superseded"]
    assert set(superseded["cell_id"]) == {"mim-k-pixel-0-finetune", "mim-k-pixel-0-probe"}


def test_tokenizer_table(two_seeds: Any) -> None:
    frame = _board(two_seeds).tokenizers
    assert list(frame["tokenizer"]) == ["k-pixel", "k-feature"]
    assert list(frame["codebook_size"]) == [64, 32]
    assert list(frame["teacher"]) == ["none", "none"]
    assert list(frame["codebook_use_percent"]) == [98.5, 98.5]
    assert list(frame["wall_seconds"]) == [10.0, 10.0]


def test_parents_in_a_circle_end(campaign: Any) -> None:
    records = [
        campaign.cell(cell_id, "finetune", method="mim", tokenizer="k-pixel", correct=10)
        for cell_id in ("a", "b")
    ]
    circle = [
        one.model_copy(update={"parents": {other.cell_id: other.artefact_digest}})
        for one, other in itertools.permutations(records)
    ]
    board = build_board(circle, lambda record: None, slices=campaign.protocol.slices)
    assert len(board.rows) == 1


def test_nothing_measured(campaign: Any) -> None:
    board = _board(campaign)
    assert len(board.rows) == 0
    assert "Nothing has been measured yet." in board.notes


def test_a_pretraining_alone_makes_no_other_board(campaign: Any) -> None:
    campaign.cell("old", "pretrain", method="mim", tokenizer="k-pixel", slices={"pretraining": "old"})
    assert _board(campaign).others == ()


def test_no_bound_if_a_seeds_predictions_are_not_kept(two_seeds: Any) -> None:
    records = read_records(two_seeds.work_dir, "tiny")
    with_files = predictions_loader(two_seeds.cells)
    board = build_board(
        records,
        lambda record: None if record.cell_id == "mapet-k-pixel-1-probe" else with_files(record),
        slices=two_seeds.protocol.slices,
    )
    row = _row(board.rows, "mapet", "k-pixel")
    assert row["linear-probe_gain_seeds"] == 2
    assert pd.isna(row["linear-probe_gain_lower_bound_points"])
