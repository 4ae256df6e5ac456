"""The notes own up to what differs between the cells behind the rows, and claim no more than was measured."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from leaderboard.report import read_board, write_report


def _notes(campaign: Any) -> str:
    return "\n".join(read_board(campaign.work_dir, campaign.protocol).notes)


def _add(campaign: Any, **runtime: Any) -> None:
    campaign.row("mim", "k-pixel", seed=1, finetune=100, probe=100, **runtime)


@pytest.fixture
def one_seed(campaign: Any) -> Any:
    campaign.row("mim", "k-pixel", seed=0, finetune=100, probe=100)
    return campaign


def test_like_runtimes_need_no_note(one_seed: Any) -> None:
    _add(one_seed)
    notes = _notes(one_seed)
    assert "differ" not in notes
    assert "versions of the harness" not in notes


@pytest.mark.parametrize(
    ("runtime", "note"),
    [
        ({"precision": "bf16"}, "Rows differ in precision: bf16 in 3 cells, fp32 in 3 cells "),
        ({"device": "cuda"}, "Rows differ in kind of device: cpu in 3 cells, cuda in 3 cells "),
        ({"commit": "def456"}, "made by 2 versions of the harness (git abc123, def456; "),
    ],
)
def test_unlike_runtimes_are_stated(one_seed: Any, runtime: dict[str, str], note: str) -> None:
    _add(one_seed, **runtime)
    assert note in _notes(one_seed)
    assert _notes(one_seed).count("Such differences") == 1


def test_a_pretrainings_runtime_counts(one_seed: Any) -> None:
    """Evaluated alike, pre-trained otherwise."""
    use: dict[str, Any] = {"method": "mim", "tokenizer": "k-pixel", "seed": 1}
    one_seed.cell("pre", "pretrain", parents=("tok-k-pixel",), precision="bf16", **use)
    one_seed.cell("ft", "finetune", parents=("pre",), correct=100, **use)
    assert "Rows differ in precision: bf16 in 1 cell, fp32 in 4 cells " in _notes(one_seed)


def test_several_numbers_of_seeds_are_explained(one_seed: Any) -> None:
    assert "3/1" not in _notes(one_seed)
    use: dict[str, Any] = {"method": "mim", "tokenizer": "k-pixel", "seed": 1}
    one_seed.cell("ft", "finetune", parents=("mim-k-pixel-0-pretrain",), correct=100, **use)
    assert "several numbers under seeds, as in 3/1, are in the columns' order" in _notes(one_seed)


def test_what_is_not_on_the_board_does_not_count(one_seed: Any) -> None:
    _add(one_seed, precision="bf16", device="cuda", commit="def456", deviations=("pretraining.peak_lr=9",))
    use: dict[str, Any] = {"method": "mim", "tokenizer": "k-pixel", "precision": "bf16", "seed": 2}
    one_seed.cell("bad", "finetune", status="failed", error="no memory", **use)
    assert "Such differences" not in _notes(one_seed)


def test_a_runtime_that_is_not_stated_is_not_taken_for_alike(one_seed: Any) -> None:
    record = one_seed.cell("ft", "finetune", method="mim", tokenizer="k-pixel", seed=1, correct=100)
    path = one_seed.cells / record.cell_id / "record.json"
    path.write_text(record.model_copy(update={"runtime": {}}).model_dump_json(), encoding="utf-8")
    assert "fp32 in 3 cells, not stated in 1 cell " in _notes(one_seed)


def test_runs_state_their_runtime_and_their_pretrainings(one_seed: Any) -> None:
    use: dict[str, Any] = {"method": "mim", "tokenizer": "k-pixel", "seed": 1}
    gpu: dict[str, Any] = {"precision": "bf16", "device": "cuda", "commit": "def456"}
    one_seed.cell("pre", "pretrain", parents=("tok-k-pixel",), **gpu, **use)
    one_seed.cell("ft", "finetune", parents=("pre",), correct=100, **use)
    paths = write_report(one_seed.work_dir, one_seed.protocol, width=80).paths
    lines = csv.DictReader(io.StringIO(paths["runs.csv"].read_text(encoding="utf-8")))
    line = next(line for line in lines if line["cell_id"] == "ft")
    assert (line["precision"], line["device"], line["git_commit"]) == ("fp32", "cpu", "abc123")
    ancestry = [line[f"pretraining_{name}"] for name in ("precision", "device", "git_commit")]
    assert ancestry == ["bf16", "cuda", "def456"]


def test_a_runtime_of_someone_elses_record_is_shown_inert(one_seed: Any) -> None:
    _add(one_seed, precision="\x1b[2Jbf16\n# <b>")
    report = write_report(one_seed.work_dir, one_seed.protocol, width=80)
    assert "\x1b" not in report.terminal
    assert "[2Jbf16 # <b> in 3 cells" in " ".join(report.terminal.split())
    assert r"\[2Jbf16 \# &lt;b&gt; in 3 cells" in report.paths["board.md"].read_text(encoding="utf-8")


def test_the_bound_claims_no_more_than_it_measures(two_seeds: Any) -> None:
    notes = _notes(two_seeds)
    assert "helped" not in notes
    assert (
        "Above 0 it says only that the frozen features of the pre-trained trunk classify these test images "
        "better than those of the random trunk of the same seed."
    ) in notes


def _teach(campaign: Any, teacher: str) -> None:
    for path in campaign.cells.glob("*/record.json"):
        record = json.loads(path.read_text())
        if record["tokenizer"]:
            record["tokenizer"]["teacher"] = teacher
            path.write_text(json.dumps(record | {"digest": ""}))


@pytest.mark.parametrize("teacher", ["none", "none (pixels)"])
def test_without_a_teacher_there_is_no_note(one_seed: Any, teacher: str) -> None:
    _teach(one_seed, teacher)
    assert "has a teacher" not in _notes(one_seed)


@pytest.mark.parametrize("teacher", ["none other than ImageNet-1k labels", "nonesuch", "None of them (x)"])
def test_a_teacher_that_merely_begins_with_none_is_noted(one_seed: Any, teacher: str) -> None:
    _teach(one_seed, teacher)
    assert f"k-pixel has a teacher, {teacher}: rows on it learn from" in _notes(one_seed)


def test_a_teachers_text_is_escaped_on_the_page(one_seed: Any) -> None:
    _teach(one_seed, "<b>&")
    page = write_report(one_seed.work_dir, one_seed.protocol).paths["index.html"].read_text()
    assert "k-pixel has a teacher, &lt;b&gt;&amp;: rows" in page
    assert "<b>" not in page
