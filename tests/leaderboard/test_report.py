"""The written board: escaping, 80 columns, the same bytes again, no torch."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from leaderboard.report import Report, write_report
from protocols.errors import HarnessError

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert(1)</script>"
FORMULA = "=HYPERLINK(1)"


def _report(campaign: Any, **options: Any) -> Report:
    return write_report(campaign.work_dir, campaign.protocol, **({"width": 80} | options))


def _files(report: Report) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in report.paths.items()}


@pytest.fixture
def crowded(two_seeds: Any) -> Any:
    """Every section of the page has something in it, some of it hostile."""
    two_seeds.row(HOSTILE, "k-pixel", finetune=50, probe=50)
    two_seeds.row(FORMULA, "k|pi_x*el", finetune=50, probe=50)
    two_seeds.row("beit", "k-pixel", finetune=199, probe=199, deviations=("pretraining.peak_lr=0.1 <b>",))
    two_seeds.cell("old", "linear-probe", method="mim", tokenizer="k-pixel", correct=90,
                   slices={"evaluation:linear-probe": "old"}, version=1)  # fmt: skip
    error = "\x1b[31mout of memory\x1b[0m <img src=x>\nTraceback (most recent call last)"
    two_seeds.cell("bad", "pretrain", method="cae", tokenizer="k-pixel", status="failed", error=error)
    return two_seeds


def test_files_and_place(two_seeds: Any, tmp_path: Path) -> None:
    report = _report(two_seeds)
    folder = two_seeds.work_dir / "tiny" / "leaderboard"
    assert sorted(path.name for path in folder.iterdir()) == sorted(report.paths)
    csvs = {"board.csv", "runs.csv", "tokenizers.csv"}
    assert set(report.paths) == {"index.html", "board.md", "probe.svg"} | csvs
    elsewhere = _report(two_seeds, out_dir=tmp_path / "elsewhere")
    assert _files(elsewhere) == _files(report)
    assert all(path.parent == tmp_path / "elsewhere" for path in elsewhere.paths.values())


def test_bytes_are_those_of_the_records(crowded: Any) -> None:
    first = _report(crowded)
    before = _files(first)
    script = (
        "import sys; sys.path.insert(0, 'tests/leaderboard');"
        "from pathlib import Path; from conftest import make_protocol;"
        "from leaderboard.report import write_report;"
        "write_report(Path(sys.argv[1]), make_protocol(), out_dir=Path(sys.argv[2]));"
        "print('torch' in sys.modules)"
    )
    other = crowded.work_dir / "again"
    # Another process has another hash seed and another clock.
    ran = subprocess.run(
        [sys.executable, "-B", "-c", script, str(crowded.work_dir), str(other)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["False"]
    assert {name: (other / name).read_bytes() for name in before} == before


def test_importing_the_report_does_not_load_torch() -> None:
    script = (
        "import sys, leaderboard.report;"
        "print([name for name in ('torch', 'benchmark', 'methods', 'tokenizers') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-B", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


def test_terminal_at_80_columns(crowded: Any) -> None:
    text = _report(crowded).terminal
    tables = [line for line in text.splitlines() if not line.lstrip().startswith("cells/")]
    assert max(map(len, tables)) <= 80
    assert text.isascii()
    assert "\x1b" not in text
    assert re.search(
        r"^MIM +k-pixel +62\.50 \+- 3\.54 +55\.00 \+- 7\.07 +\+22\.50 +\+\d+\.\d\d +2$", text, re.M
    )
    assert re.search(r"^MIM +k-pixel +1\.00k +2\.00e12 +1m40s +2m50s$", text, re.M)
    assert re.search(r"^scratch +- .* - +- +2$", text, re.M)
    assert "failed: pretrain CAE k-pixel vit-mini, seed 0: [31mout of memory[0m <img src=x>" in text
    assert "cells/bad/log" in text
    assert "Modified, not comparable" in text
    assert re.search(r"^finetune BEiT k-pixel vit-mini, seed 0: top-1 99\.50$", text, re.M)
    assert "version 1; not as in the current protocol: evaluation:linear-probe" in text


def test_narrow_terminals_break_no_number(crowded: Any) -> None:
    text = _report(crowded, width=20).terminal
    assert "62.50 +- 3.54" in text
    assert "2.00e12" in text


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_escapes_and_needs_no_network(crowded: Any) -> None:
    page = _Page()
    source = _report(crowded).paths["index.html"].read_text(encoding="utf-8")
    page.feed(source)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert HOSTILE in page.words
    assert all(link.startswith("#") for link in page.links)
    assert "url(http" not in source
    assert "@import" not in source
    words = " ".join(page.words)
    for expected in (
        crowded.protocol.digest, "Modified, not comparable", "Other protocol versions", "cells/bad/log",
        "abc123", "2026-01-02T03:04:05Z", "62.50 ± 3.54", "prefers-color-scheme: dark",
    ):  # fmt: skip
        assert expected in words
    assert f"--methods scratch mim mapet cae '{HOSTILE}' '{FORMULA}'" in words


def test_markdown_escapes(crowded: Any) -> None:
    text = _report(crowded).paths["board.md"].read_text(encoding="utf-8")
    assert "<script>" not in text
    assert r"k\|pi\_x\*el" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    board = rows[: next(index for index, line in enumerate(rows) if index and line.startswith("| tokenizer"))]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in board} == {12}


def test_csv_is_inert_and_raw(crowded: Any) -> None:
    report = _report(crowded)
    rows = list(csv.DictReader(io.StringIO(report.paths["board.csv"].read_text(encoding="utf-8"))))
    by_name = {(row["method"], row["tokenizer"]): row for row in rows}
    assert ("'=HYPERLINK(1)", "k|pi_x*el") in by_name
    mim = by_name["mim", "k-pixel"]
    assert float(mim["finetune_top1_sd"]) == pytest.approx(5 / 2**0.5, abs=1e-12)
    assert mim["finetune_seeds"] == "2"
    assert by_name["scratch", ""]["linear-probe_gain_points"] == ""
    runs = list(csv.DictReader(io.StringIO(report.paths["runs.csv"].read_text(encoding="utf-8"))))
    assert len(runs) == sum(
        record.stage in ("finetune", "linear-probe") for record in crowded.records.values()
    )
    assert {row["standing"] for row in runs} == {"board", "modified", "other version"}
    assert float(next(row for row in runs if row["cell_id"] == "mim-k-pixel-1-probe")["gain_points"]) == 25.0


def test_json_has_the_same_numbers(crowded: Any) -> None:
    content = json.loads(_report(crowded).json)
    mim = next(row for row in content["rows"] if (row["method"], row["tokenizer"]) == ("mim", "k-pixel"))
    assert mim["finetune_top1_percent"] == 62.5
    assert mim["finetune_seeds"] == 2
    assert content["rows"][0]["pretraining_flops"] is None
    assert [one["versions"] for one in content["other_versions"]] == [[1]]


def test_figure_is_well_formed_and_goes_with_its_numbers(two_seeds: Any) -> None:
    path = _report(two_seeds).paths["probe.svg"]
    assert ElementTree.parse(path).getroot().tag.endswith("svg")
    assert b"<dc:date>" not in path.read_bytes()
    for cell in two_seeds.cells.glob("*-probe"):
        (cell / "record.json").unlink()
    assert "probe.svg" not in _report(two_seeds).paths
    assert not path.exists()


def test_one_seed_shows_no_deviation(campaign: Any) -> None:
    campaign.row("scratch", None, finetune=80, probe=40)
    campaign.row("mim", "k-pixel", finetune=100, probe=100)
    report = _report(campaign)
    assert re.search(r"^MIM +k-pixel +50\.00 +50\.00 +\+30\.00 +\+\d+\.\d\d +1$", report.terminal, re.M)
    assert "One seed (0): nothing is said about methods.\n" in report.terminal


def test_empty_work_folder(campaign: Any) -> None:
    report = _report(campaign)
    assert "Nothing has been measured yet." in report.terminal
    page = report.paths["index.html"].read_text(encoding="utf-8")
    assert "python run_benchmark.py --protocol tiny</pre>" in page
    assert report.paths["board.csv"].read_bytes() == b""


def test_damaged_record_is_named(two_seeds: Any) -> None:
    """By what is wrong, and by the folder to delete; no field is named where there is none to name."""
    folder = two_seeds.cells / "tok-k-pixel"
    path = folder / "record.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    path.write_text("{", encoding="utf-8")
    with pytest.raises(HarnessError) as no_json:
        _report(two_seeds)
    assert str(no_json.value).startswith(f"{path} is damaged: Invalid JSON")
    path.write_text(json.dumps(fields | {"cost": fields["cost"] | {"wall_seconds": -1}}), encoding="utf-8")
    with pytest.raises(HarnessError) as no_record:
        _report(two_seeds)
    assert f"{path} is damaged: field cost.wall_seconds: " in str(no_record.value)
    for error in (no_json, no_record):
        assert str(error.value).endswith(f"; restore it, or delete the folder {folder} and run again")


def test_terminal_cuts_no_setting_in_two(campaign: Any) -> None:
    settings = (
        "evaluations.linear-probe.evaluated_part=validation",
        "evaluations.finetune.evaluated_part=validation",
        f"pretraining.{'very_' * 18}long_setting=0.1",
    )
    campaign.row("mim", "k-pixel", finetune=50, probe=50, deviations=settings)
    text = _report(campaign).terminal
    assert all(setting in text for setting in settings)


def test_failed_cells_show_their_deviations(campaign: Any) -> None:
    use: dict[str, Any] = {"tokenizer": "k-pixel", "status": "failed", "error": "loss is nan"}
    campaign.tokenizer("k-pixel")
    campaign.cell("tried", "pretrain", method="mim", deviations=("pretraining.peak_lr=9",), **use)
    campaign.cell("plain", "pretrain", method="cae", **use)
    # Clean itself: what it was to be measured on is not.
    campaign.cell("child", "finetune", method="mim", parents=("tried",), **use)
    report = _report(campaign, width=120)
    failures = report.board.failures.set_index("log")["deviations"]
    assert failures["cells/tried/log"] == failures["cells/child/log"] == "pretraining.peak_lr=9"
    assert failures["cells/plain/log"] == ""
    tried = "failed (modified, not comparable): pretrain MIM k-pixel vit-mini, seed 0: loss is nan"
    assert f"{tried}\n  pretraining.peak_lr=9\n  cells/tried/log\n" in report.terminal
    assert "failed: pretrain CAE k-pixel vit-mini, seed 0: loss is nan\n  cells/plain/log" in report.terminal
    for name, shown in (("index.html", "pretraining.peak_lr=9"), ("board.md", r"pretraining.peak\_lr=9")):
        page = report.paths[name].read_text(encoding="utf-8")
        assert shown in page[page.index("Failed and skipped cells") :]


def test_figure_is_no_wider_than_its_page(two_seeds: Any) -> None:
    page = _report(two_seeds).paths["index.html"].read_text(encoding="utf-8")
    (style,) = re.findall(r"figure svg \{([^}]*)\}", page)
    assert "max-width: 100%" in style
    assert "height: auto" in style
    assert "min-width" not in style
    assert not re.search(r"figure \{[^}]*overflow", page)
    assert re.search(r"th:first-child, td:first-child \{[^}]*position: sticky", page)


def test_terms_are_defined_where_they_stand(two_seeds: Any) -> None:
    report = _report(two_seeds)
    pages = [report.paths[name].read_text(encoding="utf-8") for name in ("index.html", "board.md")]
    for text in (report.terminal, *pages):
        told = " ".join(text.split())
        assert "99% lower confidence bound" in told
        assert "Total is the wall time of one seed of a row: tokenising, pre-training" in told
        assert "Commonest 1% hold % is the share of all patches" in told
        assert "whole row" not in told
        assert "concentration" not in told
    assert re.search(r" gain +99% bound +seeds$", report.terminal, re.M)
    assert re.search(r" pre-training +total$", report.terminal, re.M)
    assert re.search(r"^commonest 1% hold % +7\.5", report.terminal, re.M)
    assert {"99% bound", "total", "commonest 1% hold %"} <= set(
        re.findall(r"<th[^>]*>([^<]*)</th>", pages[0])
    )


def test_two_trunks_have_tables_of_their_own(campaign: Any) -> None:
    protocol = campaign.protocol
    sizes = protocol.trunks["vit-mini"]
    trunks = {"vit-mini": sizes, "vit-other": sizes}
    campaign.protocol = protocol.model_copy(update={"trunks": trunks})
    for trunk, seed in itertools.product(trunks, (0, 1)):
        use: dict[str, Any] = {"trunk": trunk, "seed": seed}
        floor = 20 if trunk == "vit-mini" else 60
        campaign.cell(f"{trunk}-{seed}-s", "linear-probe", method="scratch", correct=floor, **use)
        for stage in ("finetune", "linear-probe"):
            use |= {"method": "mapet", "tokenizer": "k-feature", "correct": 200 * seed}
            campaign.cell(f"{trunk}-{seed}-{stage}", stage, **use)
    report = _report(campaign)
    # The floor is that of the row's own trunk.
    values = r"+k-feature +50\.00 \+- 70\.71 +50\.00 \+- 70\.71"
    assert re.search(rf"^vit-mini:$.*^MaPeT {values} +\+40\.00.*^vit-other:$", report.terminal, re.M | re.S)
    assert re.search(rf"^vit-other:$.*^MaPeT {values} +\+20\.00", report.terminal, re.M | re.S)
    assert max(map(len, report.terminal.splitlines())) <= 80
    assert "| MaPeT | k-feature | vit-other |" in report.paths["board.md"].read_text(encoding="utf-8")
