"""Docs say what is there: links, commands, the code on a page, and the kept board's claim."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pandas as pd
import pytest

from protocols import load_protocol
from tests.shown_output import pages, refreshed

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = (
    "pip install -r requirements.txt && python run_benchmark.py --protocol mini --methods all",
    "pip install -r requirements.txt && pytest",
)
BOARD = ROOT / "docs" / "results" / "mini"


def test_the_readme_has_the_two_commands() -> None:
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
    assert all(command in lines for command in COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_shown_output_is_what_the_commands_print(page: Path) -> None:
    text = page.read_text()
    assert refreshed(text) == text, "python -m tests.shown_output brings the pages up to date"


def test_the_plan_and_the_explanation_of_fair300_are_shown() -> None:
    shown = (ROOT / "docs" / "fair300.md").read_text()
    for command in ("plan --protocol fair300 --methods all", "explain fair300"):
        assert f"$ python run_benchmark.py {command}" in shown


def test_protocol_sources_name_pages_that_exist() -> None:
    sources = load_protocol("mini").sources.values()
    named = {name for source in sources for name in re.findall(r"docs/[\w/.]+\.md", source.source)}
    assert named
    assert all((ROOT / name).is_file() for name in named)


def test_the_raw_pixel_classifier_of_the_mini_page() -> None:
    """The page's code runs as it stands and gives the number that stands above it."""
    text = (ROOT / "docs" / "mini.md").read_text()
    (stated,) = re.findall(r"raw pixels, trained on the same 6,000 labels, reaches ([\d.]+) %", text)
    block = re.search(r"\n    import torch\n(?:    .*\n|\n)+", text)
    assert block is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(re.sub(r"^    ", "", block.group(), flags=re.MULTILINE), {})
    (found,) = re.findall(r"[\d.]+", printed.getvalue())
    assert float(found) == pytest.approx(float(stated), abs=0.5)


def kept_rows() -> pd.DataFrame:
    """The kept board's rows of the protocol's own values, by method and tokenizer ("" for none)."""
    board = pd.read_csv(BOARD / "board.csv")
    board = board[board["variant"].isna()].fillna({"tokenizer": ""})
    return board.set_index(["method", "tokenizer"])


def test_the_kept_board_bears_what_the_readme_says_of_it() -> None:
    """Three seeds of the paper's objectives, and lower bounds of the gain over the random trunk above 0."""
    board = kept_rows()
    rows = board[board.index.get_level_values("method").isin(load_protocol("mini").defaults.methods)]
    assert len(rows) == 11
    assert (rows["linear-probe_seeds"] == 3).all()
    assert (rows["finetune_seeds"] == 3).all()
    pretrained = rows[rows.index.get_level_values("method") != "scratch"]
    assert len(pretrained) == 10
    assert (pretrained["linear-probe_gain_seeds"] == 3).all()
    assert (pretrained["linear-probe_gain_lower_bound_points"] > 0).all()


def test_the_further_methods_stand_on_the_kept_board_with_all_seeds() -> None:
    further = [("maskfeat", "")]
    further += [
        (method, tokenizer) for method in ("splitmask", "beit-v2") for tokenizer in ("k-pixel", "k-feature")
    ]
    rows = kept_rows().loc[further]
    assert len(rows) == len(further), "MaskFeat has no tokenizer: one row"
    for evaluation in ("finetune", "linear-probe"):
        assert (rows[f"{evaluation}_seeds"] == 3).all()


def test_the_kept_board_was_made_under_the_protocol_as_it_is() -> None:
    assert load_protocol("mini").digest in (BOARD / "index.html").read_text()
    runs = pd.read_csv(BOARD / "runs.csv")
    assert set(runs["standing"]) == {"board"}
    assert not runs["git_commit"].str.endswith("changes").any()


def test_the_kept_board_fills_every_table_of_the_paper() -> None:
    """Each place of Tables 1 to 6 is measured, those of Tables 1 and 2 over three seeds."""
    for name in ("table1", "table2", "table3", "table4", "table5", "table6", "neighbours"):
        places = pd.read_csv(BOARD / f"{name}.csv")
        assert places["mean"].notna().all(), name
        if name in ("table1", "table2"):
            assert (places["seeds"] == 3).all(), name


def test_the_kept_board_names_machine_versions_and_date() -> None:
    text = (BOARD / "board.md").read_text()
    for fact in ("newest record: 2", "git commit: ", "device: ", "torch: ", "timm: ", "python: ", "cores: "):
        assert f"- {fact}" in text


def test_no_page_has_a_gap_to_be_filled() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert "@@" not in page.read_text(encoding="utf-8"), page
