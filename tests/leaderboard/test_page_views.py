"""What every form of a board shows of views and sections; the files of an earlier report."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from leaderboard.contents import Contents, named_apart
from leaderboard.export import drawings, to_csv, to_json
from leaderboard.grids import Column, Grid
from leaderboard.markdown import to_markdown
from leaderboard.origins import Origin
from leaderboard.page import to_html
from leaderboard.page_rows import merged, order_of
from leaderboard.pattern_sheets import PatternFacts, PatternSheet, PatternSheets
from leaderboard.report import write_report
from leaderboard.sections import Block, Figure, Section
from leaderboard.terminal import to_terminal
from tests.leaderboard.hand_made import FILL, HOSTILE, campaign_contents, write_page

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    return campaign_contents(tmp_path_factory.mktemp("forms"))[1]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(tmp_path_factory.mktemp("page")).read_text(encoding="utf-8")


def _row(page: str, *names: str) -> str:
    """The row of the view that begins with `names`, without its tags."""
    table = page.partition('id="table1-table"')[2].partition("</table>")[0]
    rows = [" ".join(re.sub("<[^>]*>", " ", row).split()) for row in table.split("<tr")[1:]]
    (found,) = [row for row in rows if f"> + {' '.join(names)} " in row or f"> {' '.join(names)} " in row]
    return found


def test_each_place_shows_all_that_is_known_of_it(page: str) -> None:
    assert _row(page, "mapet", "k-pixel").endswith("65.00 ± 0.00 (2 seeds) 64.9 +0.10 reproduced")
    assert _row(page, "mim", "k-feature").endswith("70.00 ± 0.00 (2 seeds) 69.0 +1.00 off")
    assert _row(page, "cae", "k-pixel").endswith("missing 66.0")
    assert _row(page, "&lt;script&gt;alert(1)&lt;/script&gt;", "k-pixel").endswith("25.00 stale")
    assert _row(page, "Another work", "-").endswith("- 99.0")


def test_rows_hold_their_seeds_records_and_commands(page: str) -> None:
    detail = page.partition('id="table1-row-1"')[2].partition("</details>")[0]
    lines = re.findall(r'<td class="n">(\d)</td><td class="n">([\d.]+)</td>', detail)
    assert lines == [("0", "60.00"), ("1", "65.00")]
    for cell in ("mim-k-pixel-1-finetune", "mim-k-pixel-1-pretrain", "tok-k-pixel"):
        assert f'href="../cells/{cell}/record.json"' in detail
    missing = page.partition('id="table1-row-3"')[2].partition("</details>")[0]
    assert "<p>missing: fine-tuning</p>" in missing
    assert f'<pre class="command">{FILL}</pre>' in missing
    # What another work reports has nothing behind it here.
    assert 'id="table1-row-5"' not in page
    row = page.partition('id="board-row-1"')[2].partition("</details>")[0]
    command = (
        "python run_benchmark.py --protocol tiny --methods mim --tokenizers k-pixel --trunks vit-mini "
        "--evaluations finetune linear-probe --seeds 0 1"
    )
    assert f'<pre class="command">{command}</pre>' in row


def test_configurations_are_the_records_own(page: str) -> None:
    link = re.search(r'href="#(configuration-\w+)"', page.partition('id="table1-row-1"')[2])
    assert link is not None
    shown = page.partition(f'id="{link[1]}"')[2].partition("</details>")[0]
    values = re.search(r'<a href="#(values-\w+)">pretraining</a>', shown)
    assert values is not None
    lines = page.partition(f'id="{values[1]}"')[2].partition("</details>")[0]
    assert "<dt>peak_lr</dt><dd>0.004</dd>" in lines
    # Shared by all rows, and on the page once: with that of fine-tuning, and that of the probe.
    assert page.count("<dt>peak_lr</dt>") == 3
    assert page.count(f'id="{values[1]}"') == 1


def test_red_is_red_and_text(page: str) -> None:
    assert '<p class="alert">&lt;script&gt;alert(1)&lt;/script&gt; is left out.</p>' in page
    assert '<strong class="red">&lt;script&gt;alert(1)&lt;/script&gt; ±</strong>' in page


def test_terminal_counts_and_shows_in_full(contents: Contents) -> None:
    short, full = (to_terminal(contents, width=80, full=is_full) for is_full in (False, True))
    assert re.search(r"^Table 1. Every verdict +3 of 5 +2 +1 +1 +1$", short, re.M)
    assert "!! Fairness: <script>alert(1)</script> is left out.\n" in short
    assert "What differs" not in short
    assert "report --protocol tiny --full" in short
    assert "!! mim, k-feature, verdict: off\n" in full
    assert re.search(r"^mapet +k-pixel +65\.00 \+- 0\.00 \(2\) +64\.9 +\+0\.10 +reproduced$", full, re.M)
    assert "!! <script>alert(1)</script> is left out.\n" in full
    for text in (short, full):
        assert text.isascii()
        assert max(map(len, text.splitlines())) <= 80


def test_markdown_has_it_and_is_inert(contents: Contents) -> None:
    text = to_markdown(contents)
    assert "| mim | k-feature | 70.00 ± 0.00 (2) | 69.0 | +1.00 | **off** |" in text
    assert "**&lt;script&gt;alert(1)&lt;/script&gt; is left out.**" in text
    assert "<script" not in text


def test_files_hold_the_numbers(contents: Contents) -> None:
    files = to_csv(contents)
    places = list(csv.DictReader(io.StringIO(files["table1.csv"])))
    assert [place["verdict"] for place in places] == [*["reproduced"] * 2, "off", "missing", "stale", ""]
    assert float(places[2]["difference"]) == 1.0
    assert "unlike.csv" in files
    content = json.loads(to_json(contents))
    assert content["views"][0]["places"][3]["mean"] is None
    assert content["views"][0]["places"][0]["mean"] == 65.0
    assert content["sections"][-1]["alerts"] == [f"{HOSTILE} is left out."]
    assert content["sections"][-1]["blocks"][0]["red"] == [[1, 0]]


def test_pictures_of_patterns_are_on_the_page_and_beside_it(contents: Contents) -> None:
    facts = PatternFacts(
        kind="objectives", protocol="tiny", protocol_version=2, protocol_digest="0" * 64, slices={},
        sources={"mim": "1" * 64}, trunk="vit-mini", data_set="shapes", image_id="train/0", sample_id=0,
        epoch=0, seed=0, picture_sha256="2" * 64, alt_text='Masks <b> "of" MIM.', caption="One [drawn].",
    )  # fmt: skip
    sheet = PatternSheet(facts=facts, source="data:image/png;base64,iVBORw0=", width=4, height=4)
    drawn = replace(
        contents, patterns=PatternSheets(sheets=(sheet,), left_out=("attention.png is left out.",))
    )
    page = to_html(drawn, cells_dir=Path("cells"), page_dir=None)
    assert 'alt="Masks &lt;b&gt; &#34;of&#34; MIM."' in page
    assert "img-src data:" in page
    assert "img-src" not in to_html(contents, cells_dir=Path("cells"), page_dir=None)
    assert "attention.png is left out." in page
    assert drawings(drawn)["patterns-objectives.png"] == b"\x89PNG\r"
    assert r"](patterns-objectives.png)" in to_markdown(drawn)


def test_long_tables_open_and_alarming_ones_stand_open(contents: Contents) -> None:
    grid = Grid((Column("field", False),), tuple((f"value {number}",) for number in range(13)))
    blocks = [
        Block(name=name, caption="", grid=grid, frame=pd.DataFrame(), red=frozenset(red))
        for name, red in (("calm", ()), ("alarming", [(0, 0)]))
    ]
    section = Section(name="both", title="Both", blocks=tuple(blocks))
    page = to_html(replace(contents, sections=(section,)), cells_dir=Path("cells"), page_dir=None)
    calm, _, alarming = page.partition('id="block-calm"')[2].partition('id="block-alarming"')
    assert page.partition('id="block-calm"')[0].rpartition("<summary>")[2].startswith("13 rows")
    assert "<summary>" not in calm
    assert '<strong class="red">value 0</strong>' in alarming


def test_commands_in_notes_can_be_copied_and_many_notes_are_folded(contents: Contents) -> None:
    def page_with(notes: tuple[str, ...]) -> str:
        shown = replace(contents, sections=(Section(name="told", title="Told", notes=notes),))
        return to_html(shown, cells_dir=Path("cells"), page_dir=None).partition('id="told"')[2]

    few = page_with((f"1 of 2 places is missing; filled by: {FILL} && {FILL}", "No command."))
    command = f'<pre class="command">{FILL} &amp;&amp; {FILL}</pre>'
    assert f"<li>1 of 2 places is missing; filled by:{command}</li>" in few
    assert "<li>No command.</li>" in few
    assert "<summary>" not in few.partition("</section>")[0]
    many = page_with(tuple(f"Note {number}." for number in range(11))).partition("</section>")[0]
    assert "<summary>11 notes</summary>" in many
    assert "<li>Note 10.</li>" in many


def test_numbers_that_were_not_made_here_say_so(contents: Contents) -> None:
    origin = Origin(
        bundle="theirs.tar", bundle_sha256="0" * 64, harness="1", commit="abc", merged="2026-01-01T00:00:00Z",
        record_digest="1" * 64,
    )  # fmt: skip
    mixed = replace(contents, merged={"mim-k-pixel-1-finetune": origin})
    page = to_html(mixed, cells_dir=Path("cells"), page_dir=None)
    assert _row(page, "mim", "k-pixel").endswith("62.50 ± 0.00 (2 seeds, 1 merged) 62.6 -0.10 reproduced")
    assert "merged" not in _row(page, "mapet", "k-pixel")
    detail = page.partition('id="table1-row-1"')[2].partition("</details>")[0]
    lines = re.findall(r'<td class="n">(\d)</td><td class="n">([\d.]+(?: \(merged\))?)</td>', detail)
    assert lines == [("0", "60.00"), ("1", "65.00 (merged)")]


def test_the_terminal_says_in_which_column_a_row_is_red(contents: Contents) -> None:
    grid = Grid((Column("method", False), Column("tokenizer", False), Column("verdict", False)),
                (("mim", "k-pixel", "off"),))  # fmt: skip
    blocks = tuple(
        Block(name=name, caption=name, grid=grid, frame=pd.DataFrame(), red=frozenset({(0, 2)}))
        for name in ("fine-tuning", "kNN ± x")
    )
    two, one = (Section(name="table9", title="Nine", blocks=blocks[:count]) for count in (2, 1))
    text = to_terminal(replace(contents, sections=(two,)), width=80)
    assert "!! Nine: fine-tuning: mim, k-pixel, verdict: off\n" in text
    assert "!! Nine: kNN +- x: mim, k-pixel, verdict: off\n" in text
    text = to_terminal(replace(contents, sections=(one,)), width=80)
    assert "!! Nine: mim, k-pixel, verdict: off\n" in text


def test_names_of_files_hold_no_path() -> None:
    names = ("../a/b", "-- a b", "curve")
    figures = [Figure(name=name, svg="", png=b"", alt="", caption="") for name in names]
    (section,) = named_apart([Section(name="one", title="", figures=(*figures, figures[2]))])
    assert [figure.name for figure in section.figures] == ["---a-b", "---a-b-2", "curve", "curve-2"]


def test_the_commands_of_a_row_become_one() -> None:
    start = "python run_benchmark.py --protocol p --views table1 --methods mim"
    given = [f"{start} --trunks {trunk} --evaluations {name} --seeds 0" for trunk, name in
             (("vit-t", "finetune"), ("vit-t", "linear-probe"), ("vit-s", "finetune"))]  # fmt: skip
    whole = f"{start} --trunks vit-t vit-s --evaluations finetune linear-probe --seeds 0"
    assert merged(given) == (whole,)
    # What is made again is asked for apart from what is missing.
    assert merged([*given, f"{given[0]} --redo-stale"]) == (whole, f"{given[0]} --redo-stale")
    assert merged(["python x --methods 'a b'", "python x --methods c"]) == ("python x --methods 'a b' c",)


@pytest.mark.parametrize(
    ("cell", "number"),
    [("62.50 ± 3.54", 62.5), ("+11.10", 11.1), ("-0.10", -0.1), ("29.8k", 29800.0), ("2.07e12", 2.07e12),
     ("1m20s", 80.0), ("2h05m", 7500.0), ("9.5s", 9.5), ("1,281,167", 1281167.0), ("0.00", 0.0)],
)  # fmt: skip
def test_columns_sort_by_what_they_show(cell: str, number: float) -> None:
    assert float(order_of(cell)) == pytest.approx(number)


@pytest.mark.parametrize("cell", ["-", "", "missing"])
def test_what_shows_no_number_has_none_to_sort_by(cell: str) -> None:
    assert order_of(cell) == ""


def test_files_of_an_earlier_report_go_and_others_stay(campaign: Any) -> None:
    campaign.row("scratch", None, finetune=80, probe=40)
    campaign.row("mim", "k-pixel", finetune=100, probe=100)
    first = write_report(campaign.work_dir, campaign.protocol, width=80).paths
    folder = first["index.html"].parent
    mine, changed = folder / "mine.csv", first["tokenizers.csv"]
    mine.write_text("my own notes\n", encoding="utf-8")
    changed.write_text("and this I changed\n", encoding="utf-8")
    outside = folder.parent / "outside.txt"
    outside.write_text("far from here\n", encoding="utf-8")
    listing = json.loads(first["files.json"].read_text(encoding="utf-8"))
    listing["../outside.txt"] = hashlib.sha256(outside.read_bytes()).hexdigest()
    first["files.json"].write_text(json.dumps(listing), encoding="utf-8")
    for cell in [*campaign.cells.glob("*-probe"), campaign.cells / "tok-k-pixel"]:
        (cell / "record.json").unlink()
    second = write_report(campaign.work_dir, campaign.protocol, width=80).paths
    assert first["probe.svg"].name not in second
    assert not first["probe.svg"].exists()
    assert mine.exists()
    assert changed.exists()
    assert outside.exists()
    first["files.json"].write_text("not a listing", encoding="utf-8")
    assert write_report(campaign.work_dir, campaign.protocol, width=80).paths == second


def test_the_bundled_library_is_the_published_file() -> None:
    folder = ROOT / "leaderboard" / "vendor"
    digest = hashlib.sha256((folder / "datatables" / "dataTables.min.js").read_bytes()).hexdigest()
    assert f"`{digest}`" in (folder / "README.md").read_text(encoding="utf-8")
    assert "MIT License" in (folder / "datatables" / "License.txt").read_text(encoding="utf-8")
    assert "DataTables" in (ROOT / "NOTICE").read_text(encoding="utf-8")
