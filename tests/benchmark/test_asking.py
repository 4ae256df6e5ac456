"""plan and status asked with --set, for a machine without GPUs, and when nothing is left to run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark.cli import main
from tests.benchmark.test_commands import shown, shown_json
from tests.error_settings import begin_with_other_code, corrupt_record, finished_run, write_notes


@pytest.fixture(autouse=True)
def _narrow_terminal_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", ["plan", "status"])
def test_what_set_changes_is_shown_under_the_title(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = ["pretraining.epochs=100", "methods.pim.cutting_point.vit-b=50", "pretraining.peak_lr=1.5e-3"]
    text = shown(capsys, command, "--protocol", "fair300", "--methods", "mapet", "--set", *values)
    _, *lines = text.split("\n\n")[0].splitlines()
    assert lines[-1] == "no such folder yet: runs"
    told = [line for line in lines if line.startswith(("modified", "--set", "no such"))]
    assert told == [
        "modified: pretraining.epochs=100 (the protocol says 300)",
        "modified: methods.pim.cutting_point.vit-b=50 (the protocol says 60)",
        "--set methods.pim.cutting_point.vit-b=50 changes no cell of this selection",
        "--set pretraining.peak_lr=1.5e-3 changes no cell of this selection",
        "no such folder yet: runs",
    ]
    plain = shown(capsys, command, "--protocol", "fair300", "--methods", "mapet")
    assert "modified" not in plain
    assert "--set" not in plain
    as_json = shown_json(capsys, command, "--protocol", "fair300", "--methods", "mapet", "--set", *values)
    held = as_json["protocol"]["modified"] if command == "plan" else as_json["modified"]
    assert held == values[:2]


def test_a_run_says_which_set_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    values = ["--set", "methods.mim.mask_count=20", "pretraining.epochs=6"]
    # Refused before anything runs, as no batch of the protocol splits into three.
    assert main(["--protocol", "mini", "--methods", "mapet", *values, "--accumulation", "3"]) == 3
    line, error, *_ = capsys.readouterr().err.splitlines()
    assert line == "--set methods.mim.mask_count=20 changes no cell of this selection"
    assert error.startswith("error: ")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("pretraining.betas=[0.9,2]", "--set pretraining.betas=[0.9,2]: item 2: must be less than 1, got 2"),
        ("trunks.vit-mini.heads=5", "error: --set trunks.vit-mini.heads=5: "),
        ("data.validation.start=1", "error: --set data.validation.start=1: validation images"),
    ],
)
def test_an_error_that_set_causes_names_it(
    value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--protocol", "mini", "--set", value]) == 2
    assert message in capsys.readouterr().err


def test_an_error_that_set_does_not_cause_does_not_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    selection = ["--methods", "scratch", "--evaluations", "linear-probe"]
    assert main(["plan", "--protocol", "fair300", *selection, "--set", "pretraining.epochs=99"]) == 2
    assert "--set" not in capsys.readouterr().err


def test_the_paper_is_held_against_its_own_recipe_and_cells_alone(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--protocol", "fair300", "--methods", "mim"]
    plan = shown_json(capsys, *arguments)
    known = [cell for cell in plan["cells"] if cell["reported_hours"] is not None]
    assert 0 < len(known) < len(plan["cells"])
    assert plan["reported"]["accelerator_hours"] == sum(cell["reported_hours"] for cell in known)
    assert plan["reported"]["gpu_hours"] == pytest.approx(sum(cell["gpu_hours"] for cell in known))
    assert plan["reported"]["gpu_hours"] < plan["open"]["gpu_hours"]
    assert "of GPU time for the same cells here" in " ".join(shown(capsys, *arguments).split())
    changed = [*arguments, "--set", "pretraining.epochs=100"]
    plan = shown_json(capsys, *changed)
    assert plan["reported"] is None
    assert all(cell["reported_hours"] is None for cell in plan["cells"])
    text = shown(capsys, *changed)
    assert "paper" not in text


@pytest.mark.parametrize(
    ("present", "flags", "expected"),
    [
        (0, [], "less than a minute of GPU time at 100 TFLOP/s sustained; this model does not estimate CPUs"),
        (2, [], "< 1 s of GPU time at 100 TFLOP/s sustained; < 1 s of wall time on 2 GPUs"),
        (0, ["--gpus", "4"], "at 100 TFLOP/s sustained; < 1 s of wall time on 4 GPUs"),
        (0, ["--tflops", "0.01"], "at 0.01 TFLOP/s sustained, the rate given by --tflops;"),
    ],
)
def test_plan_says_whose_rate_it_reckons_with(
    present: int,
    flags: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmark.commands.plan.count_gpus", lambda: present)
    text = " ".join(shown(capsys, "plan", "--protocol", "mini", *flags).split())
    assert expected in text
    assert ("The rate is assumed" in text) == ("--tflops" not in flags)


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (write_notes, "Nothing is left to run. The rate is assumed"),
        (corrupt_record, "1 cell is damaged: status names each remedy"),
        (begin_with_other_code, "stale: --redo-stale runs"),
    ],
    ids=["done", "damaged", "stale"],
)
def test_plan_when_nothing_is_left_to_run(
    harm: Callable[[Path], None], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with finished_run(harm)(tmp_path):
        arguments = ["plan", "--protocol", "tiny.yaml", "--methods", "mim", "--evaluations", "linear-probe"]
        text = " ".join(shown(capsys, *arguments).split())
    assert "Nothing is left to run." in text
    assert expected in text
    assert "no such folder" not in text
    assert "0.00e" not in text


@pytest.mark.parametrize("command", ["plan", "status"])
def test_asking_needs_no_permission_to_write(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("theirs").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)
    assert "theirs" not in shown(capsys, command, "--protocol", "mini", "--work-dir", "theirs").replace(
        "in theirs", ""
    )
