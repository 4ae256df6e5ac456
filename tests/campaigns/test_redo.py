"""What runs again: `--redo-failed` and `--redo-stale` redo exactly those, and `status` said so before."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmark import execute as execution
from benchmark.execute import execute
from benchmark.layout import cell_folder
from benchmark.plan import Cell, make_plan
from benchmark.record_cell import write_cell_record
from benchmark.runtime import Runtime
from benchmark.selection import select
from benchmark.stage import StageResult
from benchmark.survey import CellState, present_sources, survey
from leaderboard import record as record_file
from leaderboard.record import Record, read_record, write_record
from protocols import load_protocol
from protocols.frozen import digest_of
from tests.campaigns.racing import Images
from tests.error_settings import TINY

RUNTIME = Runtime(device="cpu", jobs=1, threads=1)
PROTOCOL = load_protocol(str(TINY))
PLAN = make_plan(
    PROTOCOL,
    select(
        PROTOCOL, methods=["mim", "mapet", "scratch"], evaluations=["linear-probe", "finetune"], seeds=[0, 1]
    ),
)
CAMPAIGNS = 6
SOURCES = present_sources()
STATUSES = ("done", "done", "done", "stale", "stale", "failed", "stale and failed", "skipped", "nothing")


class Quiet:
    """Shows nothing."""

    def running(self, cells: object, finished: int, total: int) -> None: ...

    def ended(self, cell: object, record: object) -> None: ...


class Campaign:
    """PLAN in a work dir; each cell in one of STATUSES, and its artefact as of some version."""

    def __init__(self, work_dir: Path, random_: random.Random) -> None:
        self.work_dir, self.random = work_dir, random_
        self.versions: dict[str, int] = {}
        for cell in PLAN:
            status = self.random.choice(STATUSES)
            parents = [read_record(self.folder(name)) for name in cell.parents]
            has_parents = all(record is not None and record.status == "done" for record in parents)
            if status != "nothing":
                self.record(cell, status if has_parents or status in ("skipped", "failed") else "skipped")

    def folder(self, cell_id: str) -> Path:
        return cell_folder(self.work_dir, PROTOCOL.name, cell_id)

    def record(self, cell: Cell, status: str = "done") -> Record:
        """Write the record of `cell`, done by this code unless `status` says otherwise."""
        folder = self.folder(cell.id)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "made.bin").touch()
        word = "done" if status == "stale" else status.rpartition(" ")[2]
        made = digest_of([cell.id, self.versions.get(cell.id, 0)])
        result = StageResult(
            metrics={}, data=Images(), seconds=1.0, images_seen=1, train_flops=0.0,  # type: ignore[arg-type]
            artefacts={"made.bin": made},
        )  # fmt: skip
        record = write_cell_record(
            cell, PROTOCOL, RUNTIME, self.work_dir, status=word,  # type: ignore[arg-type]
            result=result if word == "done" else None,
            error=None if word == "done" else "it was told to", sources=SOURCES,
        )  # fmt: skip
        if status.startswith("stale"):
            old: dict[str, Any] = {}
            if record.method is not None:
                old["method"] = record.method.model_copy(update={"source_digest": "0" * 64})
            if record.tokenizer is not None:
                old["tokenizer"] = record.tokenizer.model_copy(update={"source_digest": "0" * 64})
            record = write_record(folder, record.model_copy(update=old))
        return record

    def survey(self) -> dict[str, CellState]:
        return {one.cell.id: one for one in survey(PLAN, PROTOCOL, self.work_dir)}

    def run(self, patch: pytest.MonkeyPatch, *, redo_failed: bool, redo_stale: bool) -> list[str]:
        """Execute; what ran, in order. A cell that runs is done at once, half of them with other files."""
        ran: list[str] = []

        class Process:
            exitcode = 0
            sentinel = 0

        def spawn(run: Any, cell: Cell, slots: tuple[int, ...]) -> Process:
            ran.append(cell.id)
            self.versions[cell.id] = self.random.randrange(2)
            (self.folder(cell.id) / "record.json").unlink(missing_ok=True)
            self.record(cell)
            return Process()

        stale = {name for name, one in self.survey().items() if one.state == "stale"}
        patch.setattr(execution._Execution, "_spawn", spawn)
        patch.setattr(execution, "wait", lambda *_, **__: [])
        records = execute(
            PLAN, PROTOCOL, RUNTIME, self.work_dir, display=Quiet(), redo_failed=redo_failed,
            redo_stale=redo_stale, stale=stale,
        )  # fmt: skip
        assert [record.cell_id for record in records] == [cell.id for cell in PLAN]
        return ran


def expected(
    before: Mapping[str, CellState], files: Mapping[str, str], *, redo_failed: bool, redo_stale: bool
) -> set[str]:
    """What has to run, told from `before`, the states that `status` shows, and the `files` made in the run.

    What is to do runs, what failed or is stale only if asked, and everything waits for parents that are
    done. With --redo-stale a done cell follows a parent whose files are others now.
    """
    runs: set[str] = set()
    is_done: dict[str, bool] = {}
    for cell in PLAN:
        one = before[cell.id]
        can = all(is_done[parent] for parent in cell.parents)
        was_done = one.state in ("done", "stale")
        is_asked = (
            one.state in ("to do", "resumable", "blocked")
            or (one.state == "failed" and redo_failed)
            or (one.state == "stale" and redo_stale)
        )
        follows = (
            was_done
            and redo_stale
            and one.record is not None
            and any(parent in runs and one.record.parents[parent] != files[parent] for parent in cell.parents)
        )
        if can and (is_asked or follows):
            runs.add(cell.id)
        is_done[cell.id] = cell.id in runs or was_done
    return runs


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of records, none of which has to survive a power cut; the code is read once."""

    def write(path: Path, content: str) -> None:
        path.write_text(content)

    monkeypatch.setattr(record_file, "write_atomically", write)
    for module in ("survey", "execute"):
        monkeypatch.setattr(f"benchmark.{module}.present_sources", lambda: SOURCES)


@pytest.mark.parametrize("redo_stale", [False, True], ids=["", "redo stale"])
@pytest.mark.parametrize("redo_failed", [False, True], ids=["", "redo failed"])
def test_a_run_redoes_exactly_what_was_asked_for(
    redo_failed: bool, redo_stale: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for seed in range(CAMPAIGNS):
        campaign = Campaign(tmp_path / str(seed), random.Random(f"{seed} {redo_failed} {redo_stale}"))
        before = campaign.survey()
        ran = campaign.run(monkeypatch, redo_failed=redo_failed, redo_stale=redo_stale)
        after = campaign.survey()
        files = {name: one.record.artefact_digest for name, one in after.items() if one.record is not None}
        wanted = expected(before, files, redo_failed=redo_failed, redo_stale=redo_stale)
        assert len(ran) == len(set(ran)), "nothing twice"
        assert set(ran) == wanted
        places = {cell.id: place for place, cell in enumerate(PLAN)}
        assert all(
            ran.index(parent) < ran.index(name)
            for name in ran
            for parent in PLAN[places[name]].parents
            if parent in wanted
        )
        for name, one in after.items():
            if name not in wanted and before[name].record is not None and before[name].state != "blocked":
                kept = before[name].record
                assert one.record is not None
                assert kept is not None
                assert one.record.artefacts == kept.artefacts, "what is not asked for stays"
        if redo_failed and redo_stale:
            assert {one.state for one in after.values()} == {"done"}
        again = campaign.run(monkeypatch, redo_failed=False, redo_stale=redo_stale)
        assert again == [], "then there is nothing left to run"
        seen |= {one.state for one in before.values()}
    assert seen == {"done", "stale", "failed", "to do", "blocked"}


def test_a_cell_that_failed_under_other_code_is_failed_and_not_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`status` says failed, so it is --redo-failed that runs it: --redo-stale alone does not."""
    campaign = Campaign(tmp_path, random.Random("nothing"))
    for cell in PLAN:
        campaign.record(cell)
    pretraining = next(cell for cell in PLAN if cell.stage == "pretrain")
    campaign.record(pretraining, "stale and failed")
    assert campaign.survey()[pretraining.id].state == "failed"
    assert campaign.run(monkeypatch, redo_failed=False, redo_stale=True) == []
    ran = campaign.run(monkeypatch, redo_failed=True, redo_stale=False)
    assert ran == [pretraining.id]


def test_a_skipped_child_of_a_failed_cell_follows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = Campaign(tmp_path, random.Random("nothing"))
    for cell in PLAN:
        campaign.record(cell)
    pretraining = next(cell for cell in PLAN if cell.stage == "pretrain")
    children = [cell for cell in PLAN if pretraining.id in cell.parents]
    campaign.record(pretraining, "failed")
    for child in children:
        campaign.record(child, "skipped")
    states = campaign.survey()
    assert {states[child.id].state for child in children} == {"blocked"}
    assert states[children[0].id].reasons == (f"needs {pretraining.id}, which is failed",)
    assert campaign.run(monkeypatch, redo_failed=False, redo_stale=True) == []
    ran = campaign.run(monkeypatch, redo_failed=True, redo_stale=False)
    assert set(ran) == {pretraining.id, *(child.id for child in children)}


class Changing(random.Random):
    """Whatever runs again comes out with other files."""

    def randrange(self, *given: Any) -> int:
        return 1


def test_a_failed_child_of_a_stale_cell_waits_for_its_own_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent is made anew with other files, and its brother follows; it failed, and so it stays."""
    campaign = Campaign(tmp_path, Changing())
    for cell in PLAN:
        campaign.record(cell)
    pretraining = next(cell for cell in PLAN if cell.stage == "pretrain")
    failed, brother = (cell for cell in PLAN if pretraining.id in cell.parents)
    campaign.record(pretraining, "stale")
    campaign.record(failed, "failed")
    assert campaign.survey()[failed.id].state == "failed"
    ran = campaign.run(monkeypatch, redo_failed=False, redo_stale=True)
    assert set(ran) == {pretraining.id, brother.id}
    assert campaign.run(monkeypatch, redo_failed=True, redo_stale=False) == [failed.id]


def test_a_cells_id_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for thousands of times a second, of thousands of cells."""
    expected, asked = PLAN[0].id, []

    def counted(value: object) -> str:
        asked.append(value)
        return digest_of(value)

    monkeypatch.setattr("benchmark.plan.digest_of", counted)
    cell = replace(PLAN[0])
    assert {cell.id for _ in range(3)} == {expected}
    assert len(asked) == 1
    assert cell == PLAN[0]
