"""Commands of the rulebook and of the way to the paper's tables, given one by one as a reader would."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmark.cli import main
from benchmark.survey import STATES
from tests.page_blocks import DOCS, blocks, calls, inline_code, logical_lines


def commands_under(page: str, heading: str) -> list[tuple[str, ...]]:
    """What the commands of one section of a page are given, in order."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    first = lines.index(heading)
    later = [number for number, line in enumerate(lines) if number > first and line.startswith("## ")]
    last = min(later, default=len(lines))
    inside = [
        block for block in blocks(DOCS / page) if first < block.line <= last and block.kind == "commands"
    ]
    return [one for block in inside for line in logical_lines(block.text) for one in calls(line)]


def test_the_way_to_a_protocol_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fork, explain and plan as they stand; the last command, the run, would take minutes."""
    monkeypatch.chdir(tmp_path)
    *steps, run = commands_under("protocols.md", "## A protocol of your own")
    assert [step[0] for step in steps] == ["fork", "explain", "plan"]
    assert main(steps[0]) == 0
    changed = (tmp_path / "my-mini.yaml").read_text().replace("epochs: {value: 5,", "epochs: {value: 3,", 1)
    (tmp_path / "my-mini.yaml").write_text(changed)
    capsys.readouterr()
    for step in steps[1:]:
        assert main(step) == 0
    shown = capsys.readouterr().out
    assert "my-mini, version 1" in shown
    assert "epochs = 3" in shown
    assert "mini, version 1: 34 cells" in shown, "the plan of all methods"
    assert run[:2] == ("--protocol", "my-mini.yaml")


def test_what_the_paper_takes_is_what_the_plan_says(capsys: pytest.CaptureFixture[str]) -> None:
    """The table at the head of docs/reproduce.md, a column for each selection."""
    text = (DOCS / "reproduce.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line[:1]
    ]
    table = {row[0].split(",")[0].split(" at ")[0]: row[1:] for row in rows if len(row) == 4}
    selections = [
        option.strip("`").split() for option in table["`plan --protocol fair300 --methods all ...`"][:2]
    ]
    found = []
    for selection in [*selections, []]:
        plan = planned(["plan", "--protocol", "fair300", "--methods", "all", *selection], capsys)
        found.append((
            f"{len(plan['cells'])}", f"{plan['open']['gpu_hours']:,.0f} h",
            f"{plan['reported']['accelerator_hours']:,.0f} h",
            f"{plan['open']['disk_bytes_kept'] / 1e9:.1f} GB",
            f"{plan['open']['disk_bytes_while_running'] / 1e9:.1f} GB",
            f"{plan['open']['disk_bytes_packed_images'] / 1e9:.1f} GB",
        ))  # fmt: skip
    names = (
        "cells", "GPU time", "the paper's own hours for as many cells", "results", "more while it runs",
        "packed images",
    )  # fmt: skip
    assert [tuple(table[name][column] for name in names) for column in range(3)] == found


def test_what_cifar_and_mini_take_is_what_the_plan_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Cells, FLOPs and minutes in the running text of docs/cifar.md and docs/mini.md."""
    cifar, mini = (
        " ".join((DOCS / name).read_text(encoding="utf-8").split()) for name in ("cifar.md", "mini.md")
    )
    (given,) = [calls(code)[0] for code in inline_code(DOCS / "cifar.md") if " plan " in code]
    plan = planned(given, capsys)
    flops, minutes = plan["open"]["train_flops"], 60 * plan["open"]["gpu_hours"]
    assert f"{flops:.3g} FLOPs of training".replace("e+", "e") in cifar
    assert f"in {len(plan['cells'])} cells, {minutes:.0f} minutes at 15 TFLOP/s" in cifar
    command = ("plan", "--protocol", "mini", "--methods", "all")
    assert f"one seed, its {len(planned(command, capsys)['cells'])} cells" in mini
    cells = planned((*command, "--evaluations", "all"), capsys)["cells"]
    assert f"`--evaluations all` has {len(cells)} cells for one seed" in mini


def planned(command: Sequence[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the plan says as JSON, of a work dir that is not there."""
    assert main([*command, "--work-dir", "none", "--json"]) == 0
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    return plan


@pytest.mark.parametrize(
    "heading", ["## 4. Tokens", "## 5. Pixels, decoded once", "## 8. Table 1, and all of it"]
)
def test_each_step_says_what_it_lacks_before_it_runs(
    heading: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands as they stand on docs/reproduce.md, with an empty data root."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").mkdir()
    given = [
        one
        for one in commands_under("reproduce.md", heading)
        if "--cluster" not in one and one[0] != "verify"
    ]
    assert given
    for command in given:
        assert main(command) == 2
        errors = capsys.readouterr().err
        assert "imagenet-1k" in errors, command
        assert "ILSVRC2012_img_train.tar" in errors or "--data-root" in errors or "DIR/imagenet-1k" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["DIR"], "nothing was begun"


def test_without_table_4_no_file_of_dall_e_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """The views that docs/reproduce.md gives to whoever leaves it out; else the option to name the file."""
    text = " ".join((DOCS / "reproduce.md").read_text(encoding="utf-8").split())
    (views,) = re.findall(r"leave Table 4 out, `(--views [\w ]+)`", text)
    shown = []
    for selection in (list[str](), views.split()):
        command = ["plan", "--protocol", "fair300", "--methods", "all", *selection]
        assert main([*command, "--work-dir", "none", "--data-root", "none"]) == 0
        shown.append(" ".join(capsys.readouterr().out.split()))
    assert '--set "tokenizers.dall-e.weights=dall-e-encoder@' in shown[0]
    assert "dall-e" not in shown[1]
    assert "stanford-cars" in shown[1], "Table 5 stays"


def test_the_cluster_file_of_the_page_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/cluster.md's file as it stands, with mini, which needs no data."""
    monkeypatch.chdir(tmp_path)
    (file,) = [block.text for block in blocks(DOCS / "cluster.md") if block.language == "yaml"]
    (tmp_path / "cluster.yaml").write_text(file)
    assert main(["--protocol", "mini", "--methods", "mim", "--cluster", "cluster.yaml", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for line in ("--partition=gpu", "--account=vision", "--exclude=node07,node08", "--constraint=nvlink"):
        assert line in shown
    assert "source /home/me/fair-mim/.venv/bin/activate" in shown


def test_the_states_of_the_questions_are_those_of_status() -> None:
    rows = re.findall(r"^\| ([a-z ]+) \| .* \|$", (DOCS / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(rows) - {"state"} == set(STATES)
