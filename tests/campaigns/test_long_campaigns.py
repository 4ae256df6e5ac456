"""Weeks of work in one folder: versions side by side, a move, a clock that jumps, files that go, a merge."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmark import record_cell, worker
from benchmark.cli import main
from benchmark.interrupt import Interrupted
from benchmark.layout import cell_folder
from benchmark.merging import merge_bundle
from benchmark.plan import make_plan, select
from benchmark.record_cell import note_attempt, read_attempts, write_cell_record
from benchmark.runtime import Runtime
from benchmark.stage import CellContext
from benchmark.survey import survey
from leaderboard.bundle import open_bundle
from leaderboard.lineage import ended
from leaderboard.record import RECORD_NAME, Attempt, Record, read_record, read_records
from leaderboard.report import read_board
from protocols import load_protocol
from tests.benchmark.engine_run import StopAt
from tests.benchmark.made_records import Lab
from tests.error_settings import SMALL, TINY, finished_run, only

RUNTIME = Runtime(device="cpu", jobs=1, threads=1)
pytestmark = pytest.mark.usefixtures("boards_without_drawings")


def quietly(*words: str) -> tuple[int, str]:
    """Exit code, and all that was said, with single spaces."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main(words)
    return code, " ".join(said.getvalue().split())


def records(work_dir: Path) -> dict[str, Record]:
    return {record.stage: record for record in read_records(work_dir, "tiny")}


def test_a_work_dir_that_was_moved_in_the_middle_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Tokens made, a pre-training interrupted after some steps; then the folder has another name."""
    there, here = tmp_path / "there", tmp_path / "somewhere" / "else"
    with finished_run(lambda _: None)(tmp_path):
        (tmp_path / "runs").rename(there)
    undisturbed = records(there)
    for stage in ("pretrain", "linear-probe"):
        shutil.rmtree(only(there, f"tiny/cells/{stage}-*"))
    protocol = load_protocol(str(TINY))
    plan = make_plan(protocol, select(protocol, methods=["mim"], evaluations=["linear-probe"]))
    stop = StopAt(3)
    context = CellContext(cell=plan[1], protocol=protocol, runtime=RUNTIME, work_dir=there, stop=stop)
    context.folder.mkdir()
    with pytest.raises(Interrupted):
        worker.run_cell(context)
    assert list(context.folder.glob("checkpoints/step-*.sha256"))
    here.parent.mkdir()
    shutil.move(there, here)
    code, said = quietly("--protocol", str(TINY), "--work-dir", str(here), *SMALL)
    assert code == 0, said
    assert "going on from step" in (cell_folder(here, "tiny", plan[1].id) / "log").read_text()
    moved = records(here)
    assert {stage: one.artefacts for stage, one in moved.items()} == {
        stage: one.artefacts for stage, one in undisturbed.items()
    }
    assert moved["linear-probe"].metrics == undisturbed["linear-probe"].metrics
    assert not there.exists()
    for path in here.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl"):
            assert str(tmp_path) not in path.read_text(), f"{path} depends on where it was made"


def _lose_a_record(work_dir: Path) -> None:
    shutil.rmtree(only(work_dir, "tiny/cells/linear-probe-*"))


def _lose_the_store(work_dir: Path) -> None:
    shutil.rmtree(work_dir / "tokens")


def _lose_the_backbone(work_dir: Path) -> None:
    shutil.rmtree(only(work_dir, "tiny/cells/pretrain-*/checkpoints"))


@pytest.mark.parametrize(
    ("lose", "stage", "state", "reason"),
    [
        (_lose_a_record, "linear-probe", "to do", ""),
        (
            _lose_the_store,
            "tokenise",
            "damaged",
            "tokenizer.safetensors is missing; restore it, or delete the folder",
        ),
        (_lose_the_backbone, "pretrain", "damaged", "is missing; restore it, or delete the folder"),
    ],
)
def test_what_a_user_deletes_is_said_and_made_again(
    lose: Any, stage: str, state: str, reason: str, tmp_path: Path
) -> None:
    with finished_run(lose)(tmp_path):
        work_dir = tmp_path / "runs"
    protocol = load_protocol(str(TINY))
    plan = make_plan(protocol, select(protocol, methods=["mim"], evaluations=["linear-probe"]))
    (found,) = [one for one in survey(plan, protocol, work_dir) if one.cell.stage == stage]
    assert found.state == state
    assert reason in " ".join(found.reasons)
    folder = cell_folder(work_dir, "tiny", found.cell.id)
    before = records(work_dir)
    if state == "damaged":
        assert str(folder) in found.reasons[0]
        shutil.rmtree(folder)  # as it says
    code, said = quietly("--protocol", str(TINY), "--work-dir", str(work_dir), *SMALL)
    assert code == 0, said
    after = records(work_dir)
    assert {one.state for one in survey(plan, protocol, work_dir)} == {"done"}
    for name, record in before.items():
        assert after[name].artefacts == record.artefacts, "the same bits again"


class Clock(datetime):
    """Says what a machine's clock says after somebody, or an empty battery, has set it."""

    says: datetime

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return cls.says


def test_a_clock_that_jumps_changes_labels_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A year ahead, then ten years back: attempts keep their order, and nothing is subtracted."""
    lab = Lab(tmp_path / "runs", methods=["scratch"])
    cell = lab.cell("linear-probe", "scratch")
    folder = lab.cells / cell.id
    before = survey(lab.plan, lab.protocol, lab.work_dir)
    monkeypatch.setattr(record_cell, "datetime", Clock)
    today = datetime(2026, 5, 1, tzinfo=UTC)
    for days, event in (
        (0, "start"),
        (366, "interrupted"),
        (-3650, "start"),
        (-3651, "interrupted"),
        (1, "start"),
    ):
        Clock.says = today + timedelta(days=days)
        note_attempt(folder, event=event)
    Clock.says = today
    attempts = read_attempts(folder, ending="done")
    assert [(one.started[:4], one.ended[:4], one.outcome) for one in attempts] == [
        ("2026", "2027", "interrupted"),
        ("2016", "2016", "interrupted"),
        ("2026", "2026", "done"),
    ]
    record = write_cell_record(cell, lab.protocol, RUNTIME, lab.work_dir, status="failed", error="x")
    assert read_record(folder) == record
    assert record.cost.wall_seconds == 0
    assert ended(record)[0].startswith("2026-05-01"), (
        "not when an attempt ended under the clock that was ahead"
    )
    after = survey(lab.plan, lab.protocol, lab.work_dir)
    assert [one.state for one in after if one.cell.id != cell.id] == [
        one.state for one in before if one.cell.id != cell.id
    ]


def test_the_latest_attempt_counts_and_not_the_latest_date(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "runs", methods=["scratch"])
    record = lab.records[lab.id("finetune", "scratch")]
    ahead, right = (
        Attempt(started=f"{year}-01-01T00:00:00+00:00", ended=f"{year}-01-02T00:00:00+00:00", outcome="done")
        for year in (2099, 2026)
    )
    assert ended(record.model_copy(update={"attempts": (ahead, right)}))[0].startswith("2026")
    assert ended(record.model_copy(update={"attempts": ()}))[0] == ""


def test_versions_of_a_protocol_stand_side_by_side(tmp_path: Path) -> None:
    """One work dir, one name, other slices: nothing is overwritten, and each board shows its own rows."""
    newer = tmp_path / "newer.yaml"
    newer.write_text(
        TINY.read_text()
        .replace("version: 1", "version: 2")
        .replace("count: {value: 203", "count: {value: 200")
    )
    first = Lab(tmp_path / "runs", correct=10)
    before = {path: path.read_bytes() for path in first.cells.rglob("*") if path.is_file()}
    second = Lab(tmp_path / "runs", correct=20, protocol=load_protocol(str(newer)))
    assert not set(first.records) & set(second.records), "each slice that a cell uses is in its id"
    assert {path: path.read_bytes() for path in before} == before
    for lab, top1 in ((first, 25.0), (second, 50.0)):
        board = read_board(lab.work_dir, lab.protocol)
        assert set(board.rows["linear-probe_top1_percent"]) == {top1}
        standings = board.runs.groupby("standing")["top1_percent"].apply(set).to_dict()
        assert standings == {"board": {top1}, "other version": {75.0 - top1}}
        states = survey(lab.plan, lab.protocol, lab.work_dir)
        assert {one.record.cell_id for one in states if one.record} == set(lab.records)
    code, said = quietly("report", "--protocol", str(newer), "--work-dir", str(tmp_path / "runs"))
    assert code == 0, said
    assert "another version" in said or "other version" in said


def test_two_machines_records_merge_to_their_union_in_any_order(tmp_path: Path) -> None:
    """Seeds 0 and 1 here, 1 and 2 there, seed 3 elsewhere: overlaps agree, and the board knows no order."""
    labs = [
        Lab(tmp_path / name, methods=["scratch", "mim"], seeds=seeds, seconds=seconds)
        for name, seeds, seconds in (("a", (0, 1), 1.0), ("b", (1, 2), 2.0), ("c", (3,), 3.0))
    ]
    bundles = []
    for lab in labs:
        bundles.append(tmp_path / f"{lab.work_dir.name}.tar")
        lab.bundle(bundles[-1])
    union = set().union(*(lab.records for lab in labs))
    boards = set()
    for number, order in enumerate(itertools.permutations(range(3))):
        work_dir = tmp_path / f"merged-{number}"
        for index in order:
            with open_bundle(bundles[index]) as bundle:
                results = {one.result for one in merge_bundle(bundle, work_dir)}
            assert results <= {"merged", "already here", "made here too"}
        found = {record.cell_id: record for record in read_records(work_dir, "tiny")}
        assert set(found) == union
        board = read_board(work_dir, labs[0].protocol)
        assert set(board.rows["linear-probe_seeds"]) == {4}
        measured = [name for name in board.rows.columns if "seconds" not in name and "hours" not in name]
        boards.add(board.rows[measured].to_csv())
    assert len(boards) == 1
    for index, other in ((0, 1), (1, 0)):  # into a work dir of its own, both ways round
        own = labs[index].work_dir
        kept = {path: path.read_bytes() for path in labs[index].cells.glob(f"*/{RECORD_NAME}")}
        with open_bundle(bundles[other]) as bundle:
            assert "refused" not in {one.result for one in merge_bundle(bundle, own)}
        assert {path: path.read_bytes() for path in kept} == kept
        assert {one.cell_id for one in read_records(own, "tiny")} == set(labs[0].records) | set(
            labs[1].records
        )


def test_no_metric_of_a_copy_depends_on_where_it_lies(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "runs")
    shutil.copytree(lab.work_dir, tmp_path / "copy")
    mine, copied = (read_board(one, lab.protocol) for one in (lab.work_dir, tmp_path / "copy"))
    assert mine.runs.to_csv() == copied.runs.to_csv()
    assert json.dumps(mine.notes) == json.dumps(copied.notes)
