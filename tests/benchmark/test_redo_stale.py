"""--redo-stale from end to end: what other code made is kept, shown apart, and run again when asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark.cli import main
from benchmark.layout import cell_folder
from benchmark.plan import make_plan, select
from benchmark.survey import survey
from leaderboard.record import Record, read_record
from protocols import load_protocol
from tests.error_settings import SMALL, TINY, finished_run

pytestmark = pytest.mark.usefixtures("boards_without_drawings")


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def age(work_dir: Path) -> None:
    """Let other code have made the pre-training."""
    (path,) = work_dir.glob("tiny/cells/pretrain-*/record.json")
    record = json.loads(path.read_text())
    record["method"]["source_digest"] = "0" * 64
    path.write_text(json.dumps(record | {"digest": ""}))


def test_redo_stale_runs_exactly_the_stale_cells_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = tmp_path / "runs"
    with finished_run(age)(tmp_path):
        pass  # it puts the finished run in place; there is nothing to put back
    protocol = load_protocol(str(TINY))
    plan = make_plan(protocol, select(protocol, methods=["mim"], evaluations=["linear-probe"]))

    def states() -> list[tuple[str, str]]:
        return [(one.cell.stage, one.state) for one in survey(plan, protocol, work_dir)]

    def records() -> dict[str, Record]:
        read = [read_record(cell_folder(work_dir, protocol.name, cell.id)) for cell in plan]
        return {record.stage: record for record in read if record is not None}

    assert states() == [("tokenise", "done"), ("pretrain", "stale"), ("linear-probe", "stale")]
    command = ["--protocol", str(TINY), "--work-dir", str(work_dir), *SMALL, "--quiet"]
    cells = work_dir / "tiny" / "cells"
    before, made = contents(cells), records()

    assert main(command) == 0
    kept = capsys.readouterr()
    assert "2 of 3 cells are stale (status says why); --redo-stale runs them again" in kept.err
    assert contents(cells) == before, "a plain run keeps what is stale"
    assert "stale" in kept.out.lower()
    page = (work_dir / "tiny" / "leaderboard" / "index.html").read_text()
    assert "method mim's code has changed since" in page.replace("&#39;", "'").replace("&#x27;", "'")

    assert main(["status", *command[:4], "--methods", "mim", "--evaluations", "linear-probe"]) == 0
    status = " ".join(capsys.readouterr().out.split())
    assert "stale (not compared on the board; --redo-stale runs them again)" in status
    assert "pretrain mim/k-pixel/vit-tiny-test seed 0: method mim's code has changed since" in status
    assert f"its parent {plan[1].id} is stale" in status

    assert main([*command, "--redo-stale"]) == 0
    redone = capsys.readouterr()
    assert "stale" not in redone.err
    attempts = {stage: len(record.attempts) for stage, record in records().items()}
    assert attempts == {"tokenise": 1, "pretrain": 2, "linear-probe": 2}, "exactly the stale cells"
    assert {state for _, state in states()} == {"done"}
    for stage, record in records().items():
        assert record.artefacts == made[stage].artefacts, "the same code gives the same bits"
        assert record.metrics == made[stage].metrics

    after = contents(cells)
    assert main([*command, "--redo-stale"]) == 0
    assert contents(cells) == after, "nothing is stale any more"
