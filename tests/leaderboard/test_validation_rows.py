"""Classifiers that were only measured, on the board: in a section of their own, and nowhere else."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from scipy.stats import binomtest

from leaderboard.record import Compliance, Metric, Record, write_record
from leaderboard.report import Report, write_report
from leaderboard.statistics import accuracy_interval
from leaderboard.validation_view import summary

TITLE = "Published classifiers, evaluated as they are"
NAME = "vit_standard_tiny_patch16_224_KCLIP.tar"
IMAGES = 200


def measured(
    campaign: Any, name: str = NAME, *, correct: int = 150, top5: int = 180, reported: Any = 75.5,
    pooling: str = "patch-mean", **more: Any
) -> Record:  # fmt: skip
    """A record as `validate` writes it."""
    record = campaign.cell(
        f"validate-{len(campaign.records)}", "validate", seed=None, correct=correct, evaluation="finetune",
        metrics={"top5_percent": Metric(value=100.0 * top5 / IMAGES, n=IMAGES, unit="%")}, **more,
    )  # fmt: skip
    checkpoint = {
        "file": name, "sha256": "ab" * 32, "key": "state_dict", "pooling": pooling,
        "reported_top1_percent": reported, "reported_by": "arXiv 2306.07346, Table 1" if reported else None,
    }  # fmt: skip
    record = record.model_copy(
        update={
            "trunk": "vit-mini",
            "compliance": Compliance(status="imported", deviations=(f"weights of {name}", "joined")),
            "resolved": {**record.resolved, "checkpoint": checkpoint},
        }
    )
    campaign.records[record.cell_id] = record
    write_record(campaign.cells / record.cell_id, record)
    return record


def report_of(campaign: Any, *, width: int = 80) -> Report:
    return write_report(campaign.work_dir, campaign.protocol, width=width)


def section(text: str) -> list[str]:
    """The lines below the section's title, to the next title."""
    lines = text.splitlines()
    start = lines.index(TITLE) + 2
    ends = [at for at in range(start, len(lines)) if lines[at].startswith("===")]
    return lines[start : ends[0] - 1 if ends else None]


@pytest.mark.parametrize(("correct", "images"), [(0, 10), (10, 10), (3, 7), (150, 200), (37_750, 50_000)])
def test_the_interval_is_clopper_and_pearsons(correct: int, images: int) -> None:
    expected = binomtest(correct, images).proportion_ci(0.95, method="exact")
    assert accuracy_interval(correct, images) == pytest.approx((100 * expected.low, 100 * expected.high))


@pytest.mark.parametrize(
    ("correct", "images", "confidence"), [(-1, 5, 0.9), (6, 5, 0.9), (0, 0, 0.9), (1, 5, 1.0)]
)
def test_no_interval_of_what_cannot_be(correct: int, images: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="have no interval"):
        accuracy_interval(correct, images, confidence=confidence)


def test_a_row_beside_what_is_reported(campaign: Any) -> None:
    measured(campaign)
    measured(campaign, "another.safetensors", correct=100, reported=None)
    report = report_of(campaign)
    ours, paper = report.board.validations.to_dict(orient="records")
    assert (ours["file"], paper["file"]) == ("another.safetensors", NAME)
    low, high = accuracy_interval(150, IMAGES)
    assert paper["top1_percent"] == 75.0
    assert paper["top5_percent"] == 90.0
    assert paper["difference_points"] == pytest.approx(-0.5)
    assert paper["difference_low_points"] == pytest.approx(low - 75.5)
    assert paper["difference_high_points"] == pytest.approx(high - 75.5)
    assert ours["difference_points"] != ours["difference_points"]  # not a number: nothing is reported of it
    shown = "\n".join(section(report.terminal))
    assert max(map(len, shown.splitlines())) <= 80
    (line,) = [line for line in shown.splitlines() if "-0.50" in line]
    assert line.endswith(f"75.00  90.00      75.5       -0.50  {low - 75.5:+.2f} to {high - 75.5:+.2f}")
    assert "Top-1 and top-5 are in per cent of 200 images." in " ".join(shown.split())


def test_on_no_row_and_in_no_other_section(two_seeds: Any) -> None:
    before = report_of(two_seeds)
    assert TITLE not in before.terminal
    assert "published.csv" not in before.paths
    measured(two_seeds)
    after = report_of(two_seeds)
    assert after.board.rows.equals(before.board.rows)
    assert after.board.runs.equals(before.board.runs)
    assert after.board.notes == before.board.notes
    assert not len(after.board.modified)
    assert not len(after.board.stale)
    assert len(after.board.validations) == 1
    at = after.terminal.index(TITLE)
    assert after.terminal[:at] == before.terminal[:at]
    assert after.terminal.endswith(before.terminal[at:])


def test_every_form_of_the_board_has_it(campaign: Any) -> None:
    hostile = "<script>alert(1)</script>|=1.tar"
    record = measured(campaign, hostile)
    report = report_of(campaign)
    page = report.paths["index.html"].read_text()
    assert f"<h2>{TITLE}</h2>" in page
    assert "<script>" not in page.partition("</main>")[0]
    assert "&lt;script&gt;alert(1)" in page
    markdown = report.paths["board.md"].read_text()
    assert f"## {TITLE}" in markdown
    assert "<script>" not in markdown
    (line,) = csv.DictReader(io.StringIO(report.paths["published.csv"].read_text()))
    assert (line["file"], line["key"], line["images"]) == (hostile, "state_dict", "200")
    (told,) = json.loads(report.json)["published_classifiers"]
    assert told["reported_top1_percent"] == 75.5
    assert told["deviations"] == f"weights of {hostile}; joined"
    # The section goes with the record, and so does its file.
    (campaign.cells / record.cell_id / "record.json").unlink()
    assert "published.csv" not in report_of(campaign).paths
    assert not report.paths["published.csv"].exists()


def test_what_sets_a_row_apart_stands_with_its_file(campaign: Any) -> None:
    measured(campaign, "a.tar", precision="bf16")
    measured(campaign, "b.tar", pooling="class-token")
    measured(campaign, "c.tar", slices={"data": "older"})
    rows = section(report_of(campaign, width=200).terminal)
    for marked in ("a.tar (bf16)", "b.tar (class token)", "c.tar (not as in the current protocol: data)"):
        assert sum(row.startswith(marked) for row in rows) == 1


def test_records_that_say_odd_things_are_shown_without_them(campaign: Any) -> None:
    for reported in ("75.5", [], True, "<b>"):
        record = measured(campaign, reported=reported)
        odd = record.model_copy(
            update={"metrics": {"top1_percent": Metric(value=250.0, n=IMAGES, unit="%")}, "artefacts": {}}
        )
        write_record(campaign.cells / record.cell_id, odd)
    rows = report_of(campaign).board.validations
    assert len(rows) == 4
    assert rows["reported_top1_percent"].isna().all()
    assert (rows["top1_high_percent"] == 100.0).all()


def test_one_of_them_in_words(campaign: Any) -> None:
    low, high = accuracy_interval(150, IMAGES)
    lines = summary(measured(campaign)).splitlines()
    assert lines[0] == f"{NAME}, SHA-256 abababababab"
    assert lines[1] == "  vit-mini; 200 test images of shapes; fp32 on cpu; 30s"
    assert lines[2] == "  top-1 75.00 %, top-5 90.00 %"
    assert lines[3] == (
        "  reported 75.5 % (arXiv 2306.07346, Table 1): difference -0.50 points, 95% interval "
        f"{low - 75.5:+.2f} to {high - 75.5:+.2f}"
    )
    assert lines[4:] == ["  joined"]
    alone = summary(measured(campaign, reported=None)).splitlines()
    assert alone[3] == f"  95% interval of top-1: {low:.2f} to {high:.2f} %"
