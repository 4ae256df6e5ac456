"""All pairs of a table at two levels: families, claims, ties, what is left out, and what the section says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import ttest_ind

from leaderboard import comparisons
from leaderboard.comparisons import COMPARISON_COLUMNS, Comparisons, compare_table, compare_tables
from leaderboard.comparisons_section import statistics_section
from leaderboard.method_tests import METHOD_ALPHA, TOO_FEW
from leaderboard.predictions import Predictions
from leaderboard.record import Record
from leaderboard.runs import RowKey, Run
from leaderboard.statistics import holm
from leaderboard.view_table import ViewTable
from protocols.errors import HarnessError
from tests.leaderboard.made_tables import Column, made_predictions, made_run, made_table

METHODS = ("mim", "pim", "mapet", "beit")
# MIM and PIM cannot be told apart, nor PIM and MaPeT; BEiT is far above all.
MEANS = {"mim": 60.0, "pim": 60.3, "mapet": 60.6, "beit": 70.0}
SPREAD = (-0.1, 0.0, 0.1)
COLUMNS = (Column("vit-mini", "finetune"), Column("vit-mini", "linear-probe"))
IMAGES = 1_000


def _runs(seeds: int = 3) -> list[Run]:
    return [
        made_run(
            RowKey("vit-mini", "k-pixel", method), column.evaluation, seed, MEANS[method] + SPREAD[seed],
            images=IMAGES,
        )
        for method in METHODS
        for column in COLUMNS
        for seed in range(seeds)
    ]  # fmt: skip


def _table(runs: Sequence[Run], name: str = "table1") -> ViewTable:
    return made_table(name, runs, rows=[(method, "k-pixel", "") for method in METHODS], columns=COLUMNS)


def _predictions(run: Run) -> Predictions:
    """As many right as the run says, those of one row within those of a better one but for a few."""
    right = round((run.top1_percent or 0) / 100 * IMAGES)
    assert run.record.seed is not None
    correct = np.arange(IMAGES) < right
    moved = np.random.default_rng([run.record.seed, len(run.key.method)]).choice(right, 20, replace=False)
    correct[moved] = False
    correct[IMAGES - 20 :] = True
    return made_predictions(run, correct)


class Loader:
    """Counts how often each cell's predictions are read."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.of = {run.record.cell_id: _predictions(run) for run in runs if run.top1_percent is not None}
        self.read: Counter[str] = Counter()

    def __call__(self, record: Record) -> Predictions | None:
        self.read[record.cell_id] += 1
        return self.of.get(record.cell_id)


@pytest.fixture(scope="module")
def compared() -> Comparisons:
    runs = _runs()
    return compare_table(_table(runs), runs, Loader(runs))


def test_every_pair_column_and_common_seed_has_a_line(compared: Comparisons) -> None:
    frame = compared.frame
    assert tuple(frame.columns) == COMPARISON_COLUMNS
    methods, checkpoints = (frame[frame["level"] == level] for level in ("methods", "checkpoints"))
    assert (len(methods), len(checkpoints)) == (6 * 2, 6 * 2 * 3)
    assert set(checkpoints["seed"]) == {0, 1, 2}
    assert set(checkpoints["seeds_or_images"]) == {IMAGES}
    assert set(methods["seeds_or_images"]) == {3}


def test_each_level_is_one_family_over_the_whole_table(compared: Comparisons) -> None:
    for level in ("methods", "checkpoints"):
        lines = compared.frame[compared.frame["level"] == level]
        assert lines["p_holm"].to_numpy() == pytest.approx(holm(lines["p"]))
    first = compared.frame.iloc[0]
    values = [[MEANS[method] + step for step in SPREAD] for method in ("mim", "pim")]
    assert first["p"] == pytest.approx(ttest_ind(*values, equal_var=False).pvalue)
    assert first["difference"] == pytest.approx(-0.3)


def test_claims_stand_only_where_the_adjusted_p_is_below_the_level(compared: Comparisons) -> None:
    methods = compared.frame[compared.frame["level"] == "methods"]
    assert ((methods["claim"] != "") == (methods["p_holm"] < METHOD_ALPHA)).all()
    assert len(compared.claims) == 8
    assert compared.claims[1] == next(
        claim for claim in compared.claims if "BEiT" in claim and "above MIM" in claim
    )
    pattern = (
        r"vit-mini finetune top1_percent: BEiT, k-pixel is above MIM, k-pixel by 10\.00 points "
        r"\(95 % interval 9\.77 to 10\.23; 3 seeds; Holm-adjusted p < 0\.001\)"
    )
    assert any(re.fullmatch(pattern, claim) for claim in compared.claims)
    # The two levels never share a sentence.
    for claim in compared.frame["claim"]:
        assert not ("seeds;" in claim and "checkpoint" in claim)


def test_rows_that_cannot_be_told_apart_are_named_together(compared: Comparisons) -> None:
    assert compared.columns[0].ties == (("MIM, k-pixel", "PIM, k-pixel"), ("PIM, k-pixel", "MaPeT, k-pixel"))
    section = statistics_section([compared])
    assert section is not None
    assert (
        "vit-mini finetune top1_percent: these two cannot be told apart: MIM, k-pixel; PIM, k-pixel."
        in section.blocks[0].notes
    )


def test_the_smallest_differences_shrink_with_seeds_and_images(compared: Comparisons) -> None:
    column = compared.columns[0]
    assert column.smallest_of_methods is not None
    assert column.smallest_of_checkpoints is not None
    assert 0.3 < column.smallest_of_methods < 1.5
    assert 1.0 < column.smallest_of_checkpoints < 10.0


def test_fewer_than_three_seeds_say_nothing_about_methods() -> None:
    runs = _runs(seeds=2)
    compared = compare_table(_table(runs), runs, Loader(runs))
    methods = compared.frame[compared.frame["level"] == "methods"]
    assert set(methods["claim"]) == {TOO_FEW}
    assert methods[["low", "high", "p", "p_holm"]].isna().all(axis=None)
    assert compared.claims == ()
    assert all(column.ties == () for column in compared.columns)
    # Their checkpoints are compared all the same.
    assert (compared.frame[compared.frame["level"] == "checkpoints"]["p_holm"] < 0.05).any()
    section = statistics_section([compared])
    assert section is not None
    assert "All rows have fewer than three seeds: nothing is said about methods." in section.blocks[0].notes
    assert not any("above" in note for block in section.blocks for note in block.notes)


def test_rows_that_are_not_proven_alike_are_compared_with_nothing() -> None:
    runs = _runs()
    compared = compare_table(_table(runs), runs, Loader(runs), left_out={("table1", 3), ("table2", 0)})
    assert not compared.frame[["a", "b"]].isin(["BEiT, k-pixel"]).any(axis=None)
    assert len(compared.frame[compared.frame["level"] == "methods"]) == 3 * 2
    assert compared.left_out == ("BEiT, k-pixel",)
    section = statistics_section([compared])
    assert section is not None
    assert any("not proven" in note and "BEiT" in note for note in section.blocks[0].notes)


@pytest.mark.parametrize("standing", ["stale", "modified", "other version"])
def test_what_does_not_stand_on_the_board_is_not_compared(standing: str) -> None:
    runs = _runs()
    odd = [
        made_run(run.key, run.evaluation, run.record.seed or 0, 60.0, images=IMAGES, standing=standing)
        if run.key.method == "pim"
        else run
        for run in runs
    ]
    compared = compare_table(_table(odd), odd, Loader(odd))
    assert not compared.frame[["a", "b"]].isin(["PIM, k-pixel"]).any(axis=None)


def test_seeds_are_paired_with_themselves_and_images_by_name() -> None:
    runs = [run for run in _runs() if run.key.method in ("mim", "beit")]
    # BEiT has other seeds but one, and its images stand in another order.
    runs = [run for run in runs if run.key.method == "mim" or run.record.seed == 2]
    loader = Loader(runs)
    for run in runs:
        if run.key.method == "beit":
            loader.of[run.record.cell_id] = made_predictions(run, np.arange(IMAGES) < 700, shuffle=5)
    compared = compare_table(_table(runs), runs, loader)
    checkpoints = compared.frame[compared.frame["level"] == "checkpoints"]
    assert list(checkpoints["seed"]) == [2, 2]
    mim = loader.of[next(run.record.cell_id for run in runs if run.record.seed == 2)]
    expected = 100 * np.mean(mim.predicted == mim.labels) - 70.0
    assert checkpoints["difference"].iloc[0] == pytest.approx(expected)


def test_predictions_are_read_once_for_all_tables_and_top5_has_none() -> None:
    runs = _runs()
    top5 = [
        made_run(run.key, run.evaluation, run.record.seed or 0, 90.0, metric="top5_percent", images=IMAGES)
        for run in runs
        if run.evaluation == "finetune"
    ]
    fives = made_table(
        "table4", top5, rows=[(method, "k-pixel", "") for method in METHODS],
        columns=[Column("vit-mini", "finetune", "top5_percent")],
    )  # fmt: skip
    loader = Loader(runs)
    made = compare_tables([_table(runs), _table(runs, "table2"), fives], [*runs, *top5], loader)
    assert set(loader.read.values()) == {1}
    assert len(loader.read) == len(runs)
    assert set(made[2].frame["level"]) == {"methods"}


def test_a_cell_without_predictions_is_left_out_of_checkpoints_alone() -> None:
    runs = _runs()
    loader = Loader(runs)
    for cell_id in [cell_id for cell_id in loader.of if "mim" in cell_id]:
        del loader.of[cell_id]
    compared = compare_table(_table(runs), runs, loader)
    checkpoints = compared.frame[compared.frame["level"] == "checkpoints"]
    assert len(checkpoints) == 3 * 2 * 3
    assert "MIM, k-pixel" not in set(checkpoints["a"])
    assert len(compared.frame[compared.frame["level"] == "methods"]) == 6 * 2


def test_checkpoints_on_other_images_are_an_error() -> None:
    runs = _runs()
    loader = Loader(runs)
    loader.of[runs[0].record.cell_id] = made_predictions(runs[0], np.ones(IMAGES + 1, dtype=bool))
    with pytest.raises(HarnessError, match="cannot be paired"):
        compare_table(_table(runs), runs, loader)


def test_too_many_tests_of_checkpoints_are_counted_and_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparisons, "MOST_CHECKPOINT_TESTS", 20)
    runs = _runs()
    loader = Loader(runs)
    compared = compare_table(_table(runs), runs, loader)
    assert (compared.untested, set(compared.frame["level"])) == (36, {"methods"})
    assert not loader.read
    section = statistics_section([compared])
    assert section is not None
    assert any("there would be 36 tests" in note for note in section.blocks[0].notes)


def test_nothing_to_compare_is_no_section() -> None:
    runs = _runs()[:3]
    compared = compare_table(_table(runs), runs, Loader(runs))
    assert len(compared.frame) == 0
    assert statistics_section([compared]) is None


def test_the_section_counts_the_seeds_that_tell_checkpoints_apart(compared: Comparisons) -> None:
    section = statistics_section([compared])
    assert section is not None
    pairs = next(block for block in section.blocks if block.name == "told-apart-table1")
    line = next(row for row in pairs.grid.rows if row[0] == "MIM, k-pixel less BEiT, k-pixel")
    assert line[2] == "-10.00"
    assert line[-1] == "+0 -3 of 3"
    assert len(pairs.frame) == len(pairs.grid.rows)
