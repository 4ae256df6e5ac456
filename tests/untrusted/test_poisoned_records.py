"""Records whose every text is an attack, in everything that shows records: nothing of it acts."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmark.cli import main
from leaderboard import export, figure_style
from leaderboard.grids import clean
from leaderboard.latex import latex_table, view_latex
from leaderboard.record import Record, read_record, write_record
from leaderboard.report import Report, write_report
from protocols.errors import HarnessError, shown
from tests.benchmark.made_records import Lab
from tests.error_settings import TINY
from tests.leaderboard.conftest import Campaign
from tests.leaderboard.hand_made import every_verdict
from tests.untrusted.poison import (
    FORMULAS,
    POISON,
    Page,
    acting,
    formulas,
    latex_faults,
    markdown_faults,
    poisoned,
)
from tests.untrusted.watching import nothing_escapes

# What decides where a record belongs; the names among them are poisoned in rows of their own.
STRUCTURE = frozenset({
    "cell_id", "stage", "status", "protocol", "resolved", "parents", "artefacts", "schema_version", "method",
    "name", "part", "trunk", "started", "ended", "outcome", "metrics", "compliance", "digest",
})  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The board of a campaign of which every record is poisoned, written while nobody may do more."""
    campaign = Campaign(tmp_path_factory.mktemp("poisoned"))
    for seed in (0, 1):
        campaign.row("scratch", None, seed=seed, finetune=100, probe=60 + seed)
        campaign.row(
            "mim", "k-pixel", seed=seed, finetune=140, probe=100, commit=f"{POISON}{seed}", device=POISON
        )
    for seed, other in ((0, POISON), (1, POISON[::-1])):
        names = {"method": POISON, "tokenizer": other, "seed": seed}
        campaign.cell(f"t{seed}", "tokenise", tokenizer=other, trunk=None, seed=None)
        campaign.cell(f"p{seed}", "pretrain", parents=(f"t{seed}",), **names)
        campaign.cell(f"f{seed}", "finetune", parents=(f"p{seed}",), correct=130, **names)
        campaign.cell(f"l{seed}", "linear-probe", parents=(f"p{seed}",), correct=120, **names)
    campaign.row(
        "beit", "k-pixel", finetune=199, probe=199, deviations=(POISON, f"pretraining.peak_lr={POISON}")
    )
    campaign.cell("old", "linear-probe", method=POISON, tokenizer="k-pixel", correct=90, version=1,
                  slices={"evaluation:linear-probe": POISON})  # fmt: skip
    campaign.cell("bad", "pretrain", method="cae", tokenizer=POISON, status="failed", error=POISON)
    campaign.cell("none", "finetune", method="mapet", trunk=POISON, status="skipped", error=POISON)
    for cell_id, record in campaign.records.items():
        values = poisoned(record.model_dump(mode="json"), kept=STRUCTURE)
        values["environment"] |= {POISON: POISON, "torch": POISON}
        values["runtime"] |= {POISON: POISON, "processes": POISON}
        for one in ("method", "tokenizer"):
            values[one] = values[one] and values[one] | {"source_digest": POISON, "teacher": POISON}
        values["method"] and values["method"].pop("teacher")
        write_record(campaign.cells / cell_id, Record.model_validate_json(json.dumps(values)))
    import matplotlib.font_manager  # noqa: F401 (it makes folders of its own when it is loaded)

    with nothing_escapes(campaign.work_dir):
        made = write_report(campaign.work_dir, campaign.protocol, width=80)
        assert made.json
        assert made.terminal
        assert made.full_terminal
    assert "alert" in made.terminal, "the poison is in what is shown"
    return made


def test_a_page_of_poisoned_records_runs_nothing_and_asks_nobody(report: Report) -> None:
    text = report.paths["index.html"].read_text(encoding="utf-8")
    page = Page(text)
    assert page.faults == []
    assert page.scripts == 2, "the two of our own"
    assert "<script>alert" not in text
    assert "<img src=x" not in text


def test_a_terminal_shows_poisoned_records_and_does_nothing(report: Report) -> None:
    for text in (report.terminal, report.full_terminal):
        assert not acting(text)
    assert not acting(report.json), "JSON is looked at in terminals, too"
    assert "alert(1)" in json.dumps(json.loads(report.json))


def test_no_file_of_a_board_holds_what_a_terminal_acts_on(report: Report) -> None:
    for name, path in report.paths.items():
        if path.suffix != ".png":
            assert not acting(path.read_text(encoding="utf-8"), but="\n\t"), name


def test_no_spreadsheet_runs_what_a_record_says(report: Report) -> None:
    tables = {
        name: path.read_text(encoding="utf-8") for name, path in report.paths.items() if name.endswith(".csv")
    }
    assert {name: formulas(text) for name, text in tables.items() if formulas(text)} == {}
    assert any("HYPERLINK" in text for text in tables.values())


@pytest.mark.parametrize("formula", FORMULAS, ids=repr)
def test_every_form_of_a_formula_is_text(formula: str) -> None:
    text = export._csv(pd.DataFrame({"name": [formula], "number": [-1.5]}))
    assert formulas(text) == []
    assert text.endswith(",-1.5\n"), "a number stays one"


def test_markdown_of_poisoned_records_links_to_our_own_files_alone(report: Report) -> None:
    own = frozenset(path.name for path in report.paths.values())
    assert markdown_faults(report.paths["board.md"].read_text(encoding="utf-8"), own=own) == []


def test_drawings_of_poisoned_records_are_drawings(report: Report) -> None:
    """matplotlib would read what stands between dollar signs as mathematics, and `\\frac{` is an error."""
    drawings = [path for name, path in report.paths.items() if name.endswith(".svg")]
    assert drawings
    for path in drawings:
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(path).iter()}
        assert not tags & {"script", "a", "image", "foreignObject", "iframe"}


def test_a_name_between_dollar_signs_is_no_mathematics() -> None:
    def draw() -> Any:
        drawing, (axes,) = figure_style.blank([0.5], left=0.5)
        figure_style.headed(axes, "$\\frac{$")
        return drawing

    assert ElementTree.fromstring(figure_style.drawn(draw, name="x", alt="", caption="").svg) is not None


def test_latex_acts_on_nothing_of_a_table() -> None:
    table = every_verdict()
    frame = table.frame.astype(object)
    assert latex_faults(view_latex(table)) == []
    text = latex_table(
        frame.map(lambda _: POISON), row_headers=1, caption=POISON, label="tab:x", notes=(POISON,)
    )
    assert latex_faults(text) == []
    assert not acting(text)


def test_what_is_cleaned_for_boards_is_the_same_text_without_what_acts() -> None:
    assert not acting(clean(POISON), but="")
    assert "alert(1)" in clean(POISON)


def test_an_error_that_quotes_a_strangers_file_is_plain_text() -> None:
    error = HarnessError(f"strange.yaml: {POISON}")
    assert not acting(str(error))
    assert "\\x1b]0;owned\\x07" in str(error)
    assert shown("plain, with\nlines, é and 雪") == "plain, with\nlines, é and 雪"


def test_a_poisoned_record_is_read_as_it_is(report: Report, tmp_path: Path) -> None:
    """Cleaning is for showing: what a record says is kept."""
    record = next(
        one for one in map(read_record, report.paths["index.html"].parents[1].glob("cells/bad")) if one
    )
    assert record.error == POISON


def test_status_shows_a_poisoned_error_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = Lab(tmp_path, methods=["mim"])
    lab.finish(lab.cell("finetune"), status="failed", error=POISON, artefacts={}, metrics={})
    with nothing_escapes(tmp_path):
        main(["status", "--protocol", str(TINY), "--methods", "mim", "--work-dir", str(tmp_path)])
    said = capsys.readouterr()
    assert "alert(1)" in said.out
    assert not acting(said.out + said.err)


def test_a_protocols_own_words_are_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which is why it may hold no escapes: sources and summaries are printed by `explain`."""
    path = tmp_path / "strange.yaml"
    text = TINY.read_text()
    path.write_text(text.replace("source: test}", 'source: "=1<script>alert(1)</script> $x$"}', 1))
    assert main(["explain", str(path)]) == 0
    path.write_text(text.replace("source: test}", 'source: "\\x1b[31mred"}', 1))
    assert main(["explain", str(path)]) == 2
    assert "holds characters that no text shows" in capsys.readouterr().err
