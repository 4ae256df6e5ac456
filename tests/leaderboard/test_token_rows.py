"""Classification from tokens alone on the board: a row per tokenizer, apart from the methods' rows."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from leaderboard.record import Metric
from leaderboard.report import Report, write_report
from protocols import load_protocol

FULL = str(Path(__file__).parents[1] / "full.yaml")
NAMES = ("token-mlp", "token-vit")
TITLE = "Classification from tokens alone"
IMAGES = 200


@pytest.fixture
def tokens(campaign: Any) -> Any:
    """The campaign's protocol with both evaluations of tokens, asked for by default."""
    recipes = {name: load_protocol(FULL).evaluations[name] for name in NAMES}
    base = campaign.protocol
    defaults = base.defaults.model_copy(update={"evaluations": (*base.defaults.evaluations, *NAMES)})
    changes = {"evaluations": {**base.evaluations, **recipes}, "defaults": defaults}
    campaign.protocol = base.model_copy(update=changes)
    return campaign


def classified(
    campaign: Any, tokenizer: str, name: str, *, seed: int = 0, top1: int, top5: int, **more: Any
) -> None:
    """A cell with its two stores; `top1` and `top5` count the images of 200."""
    store, part = f"tok-{tokenizer}", f"tok-{tokenizer}-test"
    if store not in campaign.records:
        campaign.tokenizer(tokenizer)
    if part not in campaign.records:
        campaign.cell(
            part, "tokenise", tokenizer=tokenizer, trunk=None, seed=None, parents=(store,), part="test"
        )
    campaign.cell(
        f"{name}-{tokenizer}-{seed}{more.pop('suffix', '')}", "token-classification", evaluation=name,
        tokenizer=tokenizer, trunk="vit-mini" if name == "token-vit" else None, seed=seed, correct=top1,
        metrics={"top5_percent": Metric(value=100.0 * top5 / IMAGES, n=IMAGES, unit="%")},
        parents=(store, part), **more,
    )  # fmt: skip


@pytest.fixture
def two_tokenizers(tokens: Any) -> Any:
    """Both classifiers on both tokenizers, two seeds; nothing of any method."""
    for seed in (0, 1):
        classified(tokens, "k-feature", "token-mlp", seed=seed, top1=160, top5=190)
        classified(tokens, "k-pixel", "token-mlp", seed=seed, top1=120 + 10 * seed, top5=180 + 4 * seed)
        classified(tokens, "k-pixel", "token-vit", seed=seed, top1=130, top5=188)
    classified(tokens, "k-feature", "token-vit", seed=0, top1=170, top5=196)
    return tokens


def report_of(campaign: Any, *, width: int = 80, **sources: str) -> Report:
    digests = {name.replace("_", ":", 1).replace("_", "-"): value for name, value in sources.items()}
    return write_report(campaign.work_dir, campaign.protocol, sources=digests, width=width)


def section(text: str, title: str = TITLE) -> str:
    """The lines from the section's title to the next title."""
    lines = text.splitlines()
    start = lines.index(title)
    ends = [at for at in range(start + 2, len(lines)) if lines[at].startswith("===")]
    return "\n".join(lines[start : ends[0] - 1 if ends else None])


def test_a_row_for_each_tokenizer_in_the_protocols_order(two_tokenizers: Any) -> None:
    board = report_of(two_tokenizers).board
    assert board.token_evaluations == NAMES
    rows = board.token_rows.set_index("tokenizer")
    assert list(rows.index) == ["k-pixel", "k-feature"], "not by score"
    pixel, feature = rows.loc["k-pixel"], rows.loc["k-feature"]
    # 60 and 65 per cent, 90 and 92.
    assert (pixel["token-mlp_top1_percent"], pixel["token-mlp_top5_percent"]) == (62.5, 91.0)
    assert pixel["token-mlp_top1_sd"] == pytest.approx(math.sqrt(12.5))
    assert pixel["token-mlp_top5_sd"] == pytest.approx(math.sqrt(2))
    assert (pixel["token-mlp_seeds"], pixel["token-mlp_images"]) == (2, IMAGES)
    assert (feature["token-vit_top1_percent"], feature["token-vit_seeds"]) == (85.0, 1)
    assert pd.isna(feature["token-vit_top1_sd"])
    assert len(board.rows) == 0
    assert board.evaluations == tuple(one for one in board.evaluations if one.name not in NAMES)


def test_every_form_of_the_board_shows_them(two_tokenizers: Any) -> None:
    report = report_of(two_tokenizers)
    shown = section(report.terminal)
    (line,) = [line for line in shown.splitlines() if line.startswith("k-pixel")]
    assert line.split("  ")[0] == "k-pixel"
    assert "62.50 +- 3.54" in line
    assert "91.00 +- 1.41" in line
    assert line.rstrip().endswith(" 2")
    (line,) = [line for line in shown.splitlines() if line.startswith("k-feature")]
    assert line.rstrip().endswith(" 2/1")
    assert "five most likely classes" in " ".join(shown.split())
    markdown = report.paths["board.md"].read_text()
    assert f"## {TITLE}" in markdown
    assert "| k-pixel | 62.50 ± 3.54 | 91.00 ± 1.41 | 65.00 ± 0.00 | 94.00 ± 0.00 | 2 |" in markdown
    page = report.paths["index.html"].read_text()
    assert f"<h2>{TITLE}</h2>" in page
    assert '<td class="n">62.50 ± 3.54</td>' in page
    (first, _) = csv.DictReader(io.StringIO(report.paths["tokens.csv"].read_text()))
    assert (first["tokenizer"], first["token-vit_top5_percent"]) == ("k-pixel", "94.0")
    (pixel, feature) = json.loads(report.json)["token_rows"]
    assert pixel["token-mlp_top1_percent"] == 62.5
    assert feature["token-vit_top1_sd"] is None
    runs = list(csv.DictReader(io.StringIO(report.paths["runs.csv"].read_text())))
    assert len(runs) == 7
    assert {(run["stage"], run["method"], run["standing"]) for run in runs} == {
        ("token-classification", "", "board")
    }
    assert {run["evaluation"]: run["trunk"] for run in runs} == {"token-mlp": "", "token-vit": "vit-mini"}
    assert {run["top5_percent"] for run in runs if run["tokenizer"] == "k-feature"} == {"95.0", "98.0"}


@pytest.mark.parametrize("width", [40, 72, 80, 132])
def test_the_section_fits_the_terminal(two_tokenizers: Any, width: int) -> None:
    shown = section(report_of(two_tokenizers, width=width).terminal)
    assert max(map(len, shown.splitlines())) <= max(width, 72)
    assert "62.50 +- 3.54" in shown


def test_rows_of_methods_stand_as_without_them(tokens: Any) -> None:
    tokens.row("scratch", None, finetune=100, probe=60)
    tokens.row("mim", "k-pixel", finetune=120, probe=100)
    before = report_of(tokens)
    classified(tokens, "k-pixel", "token-mlp", top1=120, top5=180)
    after = report_of(tokens)
    assert "tokens.csv" not in before.paths
    assert TITLE not in before.terminal
    assert after.paths["board.csv"].read_bytes() == before.paths["board.csv"].read_bytes()
    assert before.board.rows["row_wall_seconds"].notna().all(), "a row is whole without tokens' evaluations"
    assert [run.name for run in after.board.evaluations] == ["finetune", "linear-probe"]
    assert "token-mlp" not in after.terminal.split("\n\n")[0]


def test_a_file_of_earlier_records_does_not_stay(two_tokenizers: Any) -> None:
    path = report_of(two_tokenizers).paths["tokens.csv"]
    for cell in two_tokenizers.cells.glob("token-*"):
        (cell / "record.json").unlink()
    report = report_of(two_tokenizers)
    assert not path.exists()
    assert TITLE not in report.paths["index.html"].read_text()


def test_a_teacher_is_noted(tokens: Any) -> None:
    classified(tokens, "k-feature", "token-mlp", top1=120, top5=180)
    cell = tokens.cells / "token-mlp-k-feature-0" / "record.json"
    record = json.loads(cell.read_text())
    record["tokenizer"]["teacher"] = "a network that saw labels"
    cell.write_text(json.dumps(record | {"digest": ""}))
    report = report_of(tokens)
    assert any("k-feature has a teacher, a network that saw labels" in note for note in report.board.notes)
    assert not any(note.startswith("Total is") for note in report.board.notes), "there is no such column"


def test_what_is_stale_modified_or_of_another_version_stands_apart(tokens: Any) -> None:
    classified(tokens, "k-pixel", "token-mlp", top1=120, top5=180)
    classified(tokens, "k-pixel", "token-mlp", top1=20, top5=100, suffix="-set",
               deviations=("evaluations.token-mlp.epochs=1",))  # fmt: skip
    classified(tokens, "k-pixel", "token-mlp", top1=30, top5=110, suffix="-old", version=1,
               slices={"evaluation:token-mlp": "old"})  # fmt: skip
    report = report_of(tokens)
    assert report.board.token_rows["token-mlp_top1_percent"].tolist() == [60.0]
    standings = report.board.runs.set_index("top1_percent")["standing"].to_dict()
    assert standings == {60.0: "board", 10.0: "modified", 15.0: "other version"}
    assert "token-mlp k-pixel, seed 0: top-1 10.00\n  evaluations.token-mlp.epochs=1" in report.terminal
    (other,) = report.board.others
    assert (len(other.rows), other.differing) == (0, ("evaluation:token-mlp",))
    assert other.token_rows["token-mlp_top1_percent"].tolist() == [15.0]
    apart = section(report.terminal, "Other protocol versions")
    assert "15.00" in apart
    assert "15.00" in report.paths["board.md"].read_text()
    assert "15.00" in report.paths["index.html"].read_text()
    assert json.loads(report.json)["other_versions"][0]["token_rows"][0]["token-mlp_top1_percent"] == 15.0

    stale = report_of(tokens, **{"tokenizer_k_pixel": "new"})
    assert len(stale.board.token_rows) == 0
    cells = stale.board.stale.set_index("cell_id")
    assert "tokenizer k-pixel's code has changed" in cells.loc["token-mlp-k-pixel-0", "stale_reason"]
    assert TITLE not in stale.terminal


def test_a_newer_cell_of_the_same_place_counts(tokens: Any) -> None:
    """As when a tokenizer's default changed: the place has two cells of one seed."""
    classified(tokens, "k-pixel", "token-mlp", top1=120, top5=180)
    classified(
        tokens, "k-pixel", "token-mlp", top1=140, top5=180, suffix="-new", ended="2026-02-02T03:04:05Z"
    )
    board = report_of(tokens).board
    assert board.token_rows["token-mlp_top1_percent"].tolist() == [70.0]
    assert board.runs.set_index("top1_percent")["standing"].to_dict() == {60.0: "superseded", 70.0: "board"}


def test_a_failure_shows_and_leaves_a_gap(tokens: Any) -> None:
    classified(tokens, "k-pixel", "token-mlp", top1=120, top5=180)
    tokens.cell("broken", "token-classification", evaluation="token-vit", tokenizer="k-feature",
                status="failed", error="no memory", parents=())  # fmt: skip
    report = report_of(tokens)
    shown = section(report.terminal)
    assert [line.split() for line in shown.splitlines() if line.startswith("k-")] == [
        ["k-pixel", "60.00", "90.00", "-", "-", "1/0"], ["k-feature", "-", "-", "-", "-", "0"],
    ]  # fmt: skip
    assert "failed: token-classification k-feature vit-mini, seed 0: no memory" in report.terminal


def test_the_page_says_how_to_run_them_again(two_tokenizers: Any) -> None:
    page = report_of(two_tokenizers).paths["index.html"].read_text()
    tokens_alone = (
        "python run_benchmark.py --protocol tiny --tokenizers k-pixel k-feature "
        "--evaluations token-mlp token-vit --seeds 0 1"
    )
    assert f'<pre class="command">{tokens_alone}</pre>' in page, "no row of a method is there to be run again"
    two_tokenizers.row("mim", "k-pixel", seed=4, finetune=120, probe=100)
    page = report_of(two_tokenizers).paths["index.html"].read_text()
    rows = "python run_benchmark.py --protocol tiny --methods mim --tokenizers k-pixel --trunks vit-mini"
    assert f'<pre class="command">{rows} --seeds 4\n{tokens_alone}</pre>' in page


def test_the_part_of_a_store_is_named_where_it_is_not_the_pretraining_images(two_tokenizers: Any) -> None:
    grid = report_of(two_tokenizers).paths["board.md"].read_text().split("## Tokenizers")[1]
    names = [line.split("|")[1].strip() for line in grid.splitlines() if line.startswith("| k-")]
    assert names == ["k-pixel", "k-pixel, test images", "k-feature", "k-feature, test images"]
