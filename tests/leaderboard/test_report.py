"""The written board: escaping, 80 columns, the same bytes again, no torch."""

from __future__ import annotations

import base64
import csv
import hashlib
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
from leaderboard.terminal import to_terminal
from protocols.errors import HarnessError
from tests.leaderboard.conftest import Campaign, with_two_seeds

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert(1)</script>"
FORMULA = "=HYPERLINK(1)"


def _report(campaign: Any, **options: Any) -> Report:
    return write_report(campaign.work_dir, campaign.protocol, **({"width": 80} | options))


def _files(report: Report) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in report.paths.items()}


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Every section of the page has something in it, some of it hostile. Read only: tests share it."""
    two_seeds = with_two_seeds(Campaign(tmp_path_factory.mktemp("crowded")))
    two_seeds.row(HOSTILE, "k-pixel", finetune=50, probe=50)
    two_seeds.row(FORMULA, "k|pi_x*el", finetune=50, probe=50)
    two_seeds.row("beit", "k-pixel", finetune=199, probe=199, deviations=("pretraining.peak_lr=0.1 <b>",))
    two_seeds.cell("old", "linear-probe", method="mim", tokenizer="k-pixel", correct=90,
                   slices={"evaluation:linear-probe": "old"}, version=1)  # fmt: skip
    error = "\x1b[31mout of memory\x1b[0m <img src=x>\nTraceback (most recent call last)"
    two_seeds.cell("bad", "pretrain", method="cae", tokenizer="k-pixel", status="failed", error=error)
    return two_seeds


@pytest.fixture(scope="module")
def crowded_report(crowded: Any) -> Report:
    """The report of all that, in 80 columns."""
    return _report(crowded)


def test_files_and_place(two_seeds: Any, tmp_path: Path) -> None:
    report = _report(two_seeds)
    folder = two_seeds.work_dir / "tiny" / "leaderboard"
    assert sorted(path.name for path in folder.iterdir()) == sorted(report.paths)
    csvs = {"board.csv", "runs.csv", "tokenizers.csv", "compute.csv"}
    names = ("compute-finetune-vit-mini", "compute-linear-probe-vit-mini")
    drawings = {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert set(report.paths) == {"index.html", "board.md", "probe.svg", "files.json"} | csvs | drawings
    elsewhere = _report(two_seeds, out_dir=tmp_path / "elsewhere")
    assert all(path.parent == tmp_path / "elsewhere" for path in elsewhere.paths.values())
    # A page that is handed on links to no record; everything else is the same, byte by byte.
    here, there = _files(report), _files(elsewhere)
    pages = [files.pop("index.html").decode() for files in (here, there)]
    listings = [json.loads(files.pop("files.json")) for files in (here, there)]
    assert here == there
    assert {name for name in listings[0] if listings[0][name] != listings[1][name]} == {"index.html"}
    assert '<a href="../cells/mim-k-pixel-1-probe/record.json">record</a>' in pages[0]
    assert "record.json" not in pages[1]
    assert "This copy of the page lies elsewhere than the records" in pages[1]


def test_links_lead_to_files_that_are_there(two_seeds: Any) -> None:
    log = two_seeds.cells / "mim-k-pixel-0-probe" / "log"
    log.write_text("epoch 1\n", encoding="utf-8")
    page = _Page()
    index = _report(two_seeds).paths["index.html"]
    page.feed(index.read_text(encoding="utf-8"))
    files = [link for link in page.links if not link.startswith("#")]
    assert all((index.parent / link).is_file() for link in files)
    assert [link for link in files if link.endswith("/log")] == ["../cells/mim-k-pixel-0-probe/log"]
    # Places on the page itself: each is there, once.
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_bytes_are_those_of_the_records(crowded: Any) -> None:
    before = _files(_report(crowded, out_dir=crowded.work_dir / "once"))
    # As in a checkout where none of these is installed: whoever imports one fails.
    script = """
import sys
from pathlib import Path
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "faiss", "mmengine"):
            raise ModuleNotFoundError(f"{name} is not installed")
sys.meta_path.insert(0, Absent())
sys.path.insert(0, "tests/leaderboard")
from conftest import make_protocol
from leaderboard.report import write_report
report = write_report(Path(sys.argv[1]), make_protocol(), out_dir=Path(sys.argv[2]))
report.json, report.full_terminal
"""
    other = crowded.work_dir / "again"
    # Another process has another hash seed and another clock.
    ran = subprocess.run(
        [sys.executable, "-B", "-c", script, str(crowded.work_dir), str(other)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
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


def test_terminal_at_80_columns(crowded_report: Report) -> None:
    text = crowded_report.terminal
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


def test_narrow_terminals_break_no_number(crowded_report: Report) -> None:
    text = to_terminal(crowded_report.contents, width=20)
    assert "62.50 +- 3.54" in text
    assert "2.00e12" in text


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.policy = ""
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""

    def handle_data(self, data: str) -> None:
        # Within a script there are no tags but its end.
        (self.scripts if self.lasttag == "script" and data.strip() else self.words).append(data)


def test_page_escapes_and_needs_no_network(crowded: Any, crowded_report: Report) -> None:
    page = _Page()
    source = crowded_report.paths["index.html"].read_text(encoding="utf-8")
    page.feed(source)
    # The library and the page's own script, each as its digest in the policy says: no other can run.
    assert page.tags.count("script") == 2
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in page.scripts]
    allowed = "; ".join(part for part in page.policy.split("; ") if part.startswith("script-src"))
    assert allowed == "script-src " + " ".join(f"'sha256-{digest}'" for digest in digests)
    assert "default-src 'none'" in page.policy
    assert "img" not in page.tags
    assert HOSTILE in page.words
    assert all(link.startswith(("#", "../cells/")) for link in page.links)
    assert "url(http" not in source
    assert "@import" not in source
    words = " ".join(page.words)
    for expected in (
        crowded.protocol.digest, "Modified, not comparable", "Other protocol versions", "cells/bad/log",
        "abc123", "2026-01-02T03:04:05Z", "62.50 ± 3.54", "prefers-color-scheme: dark",
    ):  # fmt: skip
        assert expected in words
    assert f"--methods scratch mim mapet cae '{HOSTILE}' '{FORMULA}'" in words


def test_markdown_escapes(crowded_report: Report) -> None:
    text = crowded_report.paths["board.md"].read_text(encoding="utf-8")
    assert "<script>" not in text
    assert r"k\|pi\_x\*el" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    board = rows[: next(index for index, line in enumerate(rows) if index and line.startswith("| method"))]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in board} == {12}


def test_csv_is_inert_and_raw(crowded: Any, crowded_report: Report) -> None:
    report = crowded_report
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


def test_json_has_the_same_numbers(crowded_report: Report) -> None:
    content = json.loads(crowded_report.json)
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
    assert '<pre class="command">python run_benchmark.py --protocol tiny</pre>' in page
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
