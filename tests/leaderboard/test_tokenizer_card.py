"""The tokenizer section of a board: every figure of the card, those that older records lack as missing."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest

from leaderboard.grids import almost
from leaderboard.record import Metric, write_record
from leaderboard.report import Report, write_report

MANIFEST = "a" * 64


@pytest.fixture
def report(campaign: Any) -> Report:
    """k-pixel as it is recorded now, k-feature as it was before rate and agreement were."""
    campaign.tokenizer("k-feature")
    campaign.tokenizer("k-pixel", artefacts={"tokens/k-pixel-1/shapes-2/manifest.json": MANIFEST})
    record = campaign.records["tok-k-pixel"]
    metrics = record.metrics | {
        "images_per_second": Metric(value=3069.2, n=64, unit="images/s"),
        "batch_agreement_percent": Metric(value=99.9999, n=64, unit="%"),
    }
    write_record(campaign.cells / record.cell_id, record.model_copy(update={"metrics": metrics}))
    return write_report(campaign.work_dir, campaign.protocol, width=80)


def test_the_terminal_has_a_line_for_each_figure(report: Report) -> None:
    for line in (
        r"tokenizer +k-pixel +k-feature",
        r"codebook use % +98\.5 +98\.5",
        r"commonest 1% hold % +7\.5 +7\.5",
        r"encoding images/s +3,069 +-",
        r"batch agreement % +99\.99 +-",
    ):
        assert re.search(f"^{line}$", report.terminal, re.M), line
    assert max(map(len, report.terminal.splitlines())) <= 80


@pytest.mark.parametrize("name", ["index.html", "board.md"])
def test_pages_have_a_column_for_each_and_say_what_it_is(report: Report, name: str) -> None:
    text = report.paths[name].read_text(encoding="utf-8")
    for said in (
        "encoding images/s", "batch agreement %", "99.99", "3,069", "depends on the machine",
        "same whether the images are encoded one by one or 64 at a time", "used evenly",
    ):  # fmt: skip
        assert said in text, said
    assert MANIFEST not in text


def test_files_have_raw_numbers_and_what_is_missing_empty(report: Report) -> None:
    text = report.paths["tokenizers.csv"].read_text(encoding="utf-8")
    pixel, feature = csv.DictReader(io.StringIO(text))
    assert (pixel["tokenizer"], feature["tokenizer"]) == ("k-pixel", "k-feature")
    assert float(pixel["batch_agreement_percent"]) == 99.9999
    assert feature["batch_agreement_percent"] == feature["images_per_second"] == ""
    assert (pixel["store"], feature["store"]) == (MANIFEST, "")
    shown = {one["tokenizer"]: one for one in json.loads(report.json)["tokenizers"]}
    assert shown["k-pixel"]["images_per_second"] == 3069.2
    assert shown["k-feature"]["images_per_second"] is None


def test_a_board_whose_tokenizers_are_gone_keeps_no_file_of_them(campaign: Any, report: Report) -> None:
    path = report.paths["tokenizers.csv"]
    for record in campaign.cells.glob("*/record.json"):
        record.unlink()
    assert "tokenizers.csv" not in write_report(campaign.work_dir, campaign.protocol, width=80).paths
    assert not path.exists()


@pytest.mark.parametrize(
    ("value", "shown"), [(100.0, "100.00"), (99.996, "99.99"), (12.5, "12.50"), (None, "-")]
)
def test_nothing_but_all_reads_as_all(value: float | None, shown: str) -> None:
    assert almost(value) == shown
