"""What is stale leaves the rows, the gains and the floor, and every form of the board says why."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pandas as pd
import pytest

from leaderboard.report import Report, read_board, write_report
from leaderboard.tables import Board

HOSTILE = "<script>alert(1)</script>"
MIM_CHANGED = {"method:mim": "new"}
CAUSE = "method mim's code has changed since"


def _board(campaign: Any, sources: dict[str, str]) -> Board:
    return read_board(campaign.work_dir, campaign.protocol, sources=sources)


def _report(campaign: Any, sources: dict[str, str]) -> Report:
    return write_report(campaign.work_dir, campaign.protocol, sources=sources, width=80)


def _page(report: Report) -> str:
    return report.paths["index.html"].read_text(encoding="utf-8")


def _section(text: str, title: str, end: str) -> str:
    return text[text.index(title) :].partition(end)[0]


def test_present_code_changes_nothing(two_seeds: Any) -> None:
    without = write_report(two_seeds.work_dir, two_seeds.protocol, width=80)
    before = {name: path.read_bytes() for name, path in without.paths.items()}
    present = _report(two_seeds, {"method:mim": "s", "method:scratch": "s", "tokenizer:k-pixel": "s"})
    assert {name: path.read_bytes() for name, path in present.paths.items()} == before
    assert "Stale" not in without.terminal
    assert json.loads(without.json)["stale"] == []


def test_stale_rows_leave_the_board(two_seeds: Any) -> None:
    fresh, board = _board(two_seeds, {}), _board(two_seeds, MIM_CHANGED)
    kept = fresh.rows[fresh.rows["method"] != "mim"].reset_index(drop=True)
    pd.testing.assert_frame_equal(board.rows, kept)
    runs = board.runs.set_index("cell_id")
    stale = runs[runs["method"] == "mim"]
    assert set(stale["standing"]) == {"stale"}
    assert stale["gain_points"].isna().all()
    # What was measured stays readable.
    assert stale.loc["mim-k-pixel-1-probe", "top1_percent"] == 60.0
    reason = f"its parent mim-k-pixel-1-pretrain is stale: {CAUSE}"
    assert stale.loc["mim-k-pixel-1-probe", "stale_reason"] == reason
    others = runs[runs["method"] != "mim"]
    assert set(others["standing"]) == {"board"}
    assert set(others["stale_reason"]) == {""}


def test_the_stale_frame_lists_pretrainings_before_what_was_measured_on_them(two_seeds: Any) -> None:
    frame = _board(two_seeds, MIM_CHANGED).stale
    assert list(frame["cell_id"])[:6] == [
        "mim-k-pixel-0-pretrain", "mim-k-pixel-0-finetune", "mim-k-pixel-0-probe",
        "mim-k-pixel-1-pretrain", "mim-k-pixel-1-finetune", "mim-k-pixel-1-probe",
    ]  # fmt: skip
    assert len(frame) == 12
    assert list(frame["stale_reason"][:2]) == [CAUSE, f"its parent mim-k-pixel-0-pretrain is stale: {CAUSE}"]


def test_a_stale_random_trunk_is_no_floor(two_seeds: Any) -> None:
    board = _board(two_seeds, {"method:scratch": "new"})
    assert "scratch" not in set(board.rows["method"])
    assert board.rows["linear-probe_gain_points"].isna().all()
    assert set(board.rows["linear-probe_gain_seeds"]) == {0}
    assert "6 of 6 probes have no random trunk of their seed" in " ".join(board.notes)
    assert "random trunk" not in _report(two_seeds, {"method:scratch": "new"}).terminal.partition("Rows ")[0]


def test_one_seed_made_anew_counts_alone(two_seeds: Any) -> None:
    """Half way through --redo-stale: seed 0 was made by the new code, seed 1 was not."""
    two_seeds.row("mim", "k-pixel", seed=0, finetune=110, probe=110, source="new")
    rows = _board(two_seeds, MIM_CHANGED).rows.set_index(["method", "tokenizer"])
    assert rows.loc[("mim", "k-pixel"), "finetune_seeds"] == 1
    assert rows.loc[("mim", "k-pixel"), "finetune_top1_percent"] == 55.0
    assert ("mim", "k-feature") not in rows.index


def test_a_later_stale_run_supersedes_nothing(two_seeds: Any) -> None:
    use: dict[str, Any] = {"method": "mim", "tokenizer": "k-pixel", "ended": "2026-06-01T00:00:00Z"}
    two_seeds.cell("late-pre", "pretrain", parents=("tok-k-pixel",), source="tried", **use)
    two_seeds.cell("late-probe", "linear-probe", parents=("late-pre",), correct=200, **use)
    board = _board(two_seeds, {"method:mim": "s"})
    assert set(board.stale["cell_id"]) == {"late-pre", "late-probe"}
    assert set(board.runs["standing"]) == {"board", "stale"}
    row = board.rows.set_index(["method", "tokenizer"]).loc[("mim", "k-pixel")]
    assert row["linear-probe_top1_percent"] == pytest.approx(55.0)
    # Nor does one stale run another: each says for itself why it is stale.
    runs = _board(two_seeds, MIM_CHANGED).runs
    assert set(runs[runs["method"] == "mim"]["standing"]) == {"stale"}


def test_a_pretraining_that_is_remade_outdates_what_was_measured_on_it(two_seeds: Any) -> None:
    two_seeds.cell("mim-k-pixel-1-pretrain", "pretrain", method="mim", tokenizer="k-pixel", seed=1,
                   parents=("tok-k-pixel",), artefacts={"backbone.safetensors": "other"})  # fmt: skip
    board = _board(two_seeds, {})
    assert list(board.stale["cell_id"]) == ["mim-k-pixel-1-finetune", "mim-k-pixel-1-probe"]
    assert set(board.stale["stale_reason"]) == {"parent mim-k-pixel-1-pretrain was made anew since"}
    assert "2 measurements are stale, and shown apart." in board.notes
    assert board.rows.set_index(["method", "tokenizer"]).loc[("mim", "k-pixel"), "finetune_seeds"] == 1


def test_stale_tokens_are_marked_and_take_their_rows_along(two_seeds: Any) -> None:
    report = _report(two_seeds, {"tokenizer:k-pixel": "new"})
    board = report.board
    tokens = board.tokenizers.set_index("tokenizer")
    assert tokens["standing"].to_dict() == {"k-pixel": "stale", "k-feature": "board"}
    assert tokens.loc["k-pixel", "stale_reason"] == "tokenizer k-pixel's code has changed since"
    assert "k-pixel (stale)" in report.terminal
    assert "k-pixel (stale)" in _page(report)
    assert "stale_reason" not in report.terminal.replace("_", " ")
    assert set(board.rows["tokenizer"]) == {"", "k-feature"}
    assert board.stale.iloc[0]["cell_id"] == "tok-k-pixel"
    cause = "tokenizer k-pixel's code has changed since"
    assert f"\ntokenise k-pixel\n  {cause}\n" in report.terminal


def test_a_cell_that_failed_on_stale_tokens_holds_no_row(two_seeds: Any) -> None:
    two_seeds.cell("bad", "pretrain", method="cae", tokenizer="k-pixel", status="failed", error="no memory",
                   parents=("tok-k-pixel",))  # fmt: skip
    assert "cae" in set(_board(two_seeds, {}).rows["method"])
    board = _board(two_seeds, {"tokenizer:k-pixel": "new"})
    assert "cae" not in set(board.rows["method"])
    assert "bad" not in set(board.stale["cell_id"])
    assert list(board.failures["log"]) == ["cells/bad/log"]


def test_what_is_modified_or_of_another_version_says_so_where_it_is_stale(two_seeds: Any) -> None:
    two_seeds.row("beit", "k-pixel", finetune=199, probe=199, deviations=("pretraining.peak_lr=0.1",))
    old = {"evaluation:linear-probe": "old"}
    two_seeds.cell("old", "linear-probe", method="mim", tokenizer="k-pixel", correct=90, slices=old,
                   version=1, parents=("mim-k-pixel-0-pretrain",))  # fmt: skip
    report = _report(two_seeds, MIM_CHANGED | {"method:beit": "new"})
    assert len(report.board.modified) == 0
    assert report.board.others == ()
    told = " ".join(report.terminal.split())
    assert "is stale: method beit's code has changed since; modified: pretraining.peak_lr=0.1" in told
    assert f"{CAUSE}; not as in the current protocol: evaluation:linear-probe" in told
    # Neither is asked for by the command that makes this protocol's rows again.
    command = re.search(r">(.*)</pre>", _page(report).partition("How to reproduce</h2>")[2])
    assert command is not None
    assert command[1].endswith("--methods scratch mapet mim --tokenizers k-pixel k-feature "
                               "--trunks vit-mini --seeds 0 1")  # fmt: skip


def test_all_is_stale(campaign: Any) -> None:
    campaign.row("mim", "k-pixel", finetune=100, probe=100)
    report = _report(campaign, MIM_CHANGED)
    assert report.board.notes[1:] == ("2 measurements are stale, and shown apart.",)
    assert "probe.svg" not in report.paths
    assert "--methods mim --tokenizers k-pixel --trunks vit-mini --seeds 0</pre>" in _page(report)


def test_every_rendering_has_the_section(two_seeds: Any) -> None:
    report = _report(two_seeds, MIM_CHANGED)
    terminal = _section(report.terminal, "\nStale\n=====\n", "Failed and skipped")
    # The reason that the evaluations of one pre-training share is said once.
    entries = (
        "\npretrain MIM k-pixel vit-mini, seed 0\n"
        "  method mim's code has changed since\n"
        "finetune MIM k-pixel vit-mini, seed 0: top-1 60.00\n"
        "linear-probe MIM k-pixel vit-mini, seed 0: top-1 50.00\n"
        "  its parent mim-k-pixel-0-pretrain is stale: method mim's code has changed\n"
        "  since\n"
        "pretrain MIM k-pixel vit-mini, seed 1\n"
    )
    assert entries in terminal
    assert max(map(len, terminal.splitlines())) <= 80
    markdown = _section(report.paths["board.md"].read_text(encoding="utf-8"), "## Stale", "\n## ")
    assert (
        "| linear-probe | MIM | k-pixel | 0 | 50.00 | its parent mim-k-pixel-0-pretrain is stale" in markdown
    )
    page = _section(_page(report), "<h2>Stale</h2>", "</section>")
    assert page.count("<tr>") == 1 + 12
    for text in (terminal, markdown, page):
        assert "--redo-stale" in text
    content = json.loads(report.json)
    assert content["stale"][0]["stale_reason"] == CAUSE
    assert content["stale"][0]["top1_percent"] is None
    runs = list(csv.DictReader(io.StringIO(report.paths["runs.csv"].read_text(encoding="utf-8"))))
    assert {run["standing"] for run in runs if run["method"] == "mim"} == {"stale"}
    assert all(bool(run["stale_reason"]) == (run["standing"] == "stale") for run in runs)


def test_stale_names_of_someone_elses_records_are_inert(campaign: Any) -> None:
    campaign.row(HOSTILE, "k|pi_x*el", finetune=50, probe=50)
    report = _report(campaign, {f"method:{HOSTILE}": "new"})
    assert "<script" not in _page(report).partition("</main>")[0]
    assert "method &lt;script&gt;alert(1)&lt;/script&gt;&#39;s code has changed since" in _page(report)
    markdown = report.paths["board.md"].read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert r"k\|pi\_x\*el" in _section(markdown, "## Stale", "\n## ")
    campaign.row("\x1b[2Jm\n", "k-pixel", finetune=50, probe=50)
    assert "\x1b" not in _report(campaign, {"method:\x1b[2Jm\n": "new"}).terminal
