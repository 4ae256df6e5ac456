"""What is made anew, and what must follow: stores, children, checkpoints, compliance, code that changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmark import tokenise, worker
from benchmark.checkpoint import clear_checkpoints
from benchmark.execute import execute
from benchmark.layout import BEGUN_NAME, CHECKPOINTS_NAME, cell_folder
from benchmark.plan import Cell, make_plan, mark_modified, select
from benchmark.record_cell import write_cell_record
from benchmark.runtime import Runtime
from benchmark.stage import CellContext
from benchmark.survey import begun_with, changed_since_begun, present_sources, survey
from leaderboard.record import Compliance, read_record, write_record
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.schema import Protocol
from tokenizers.kmeans import KMeansTokenizer
from tokenizers.store import open_store

TINY = str(Path(__file__).parent.parent / "tiny.yaml")
RUNTIME = Runtime(device="cpu", jobs=1, threads=1)


class Quiet:
    """Shows nothing."""

    def running(self, cells: object, finished: int, total: int) -> None:
        return None

    def ended(self, cell: object, record: object) -> None:
        return None


def planned(*overrides: str) -> tuple[Protocol, list[Cell]]:
    protocol = load_protocol(TINY, overrides=overrides)
    selection = select(protocol, methods=["mim"], evaluations=["linear-probe"])
    plan = make_plan(protocol, selection)
    return protocol, mark_modified(plan, load_protocol(TINY), selection) if overrides else plan


def context(cell: Cell, protocol: Protocol, work_dir: Path) -> CellContext:
    return CellContext(cell=cell, protocol=protocol, runtime=RUNTIME, work_dir=work_dir)


def test_a_store_made_by_other_code_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and configuration name a store; the code that encodes with them does not."""
    protocol, plan = planned()
    cell = plan[0]

    def made() -> dict[str, str]:
        """As a worker does it: what is unfinished is cleared when the cell is done."""
        cleared = context(cell, protocol, tmp_path)
        artefacts = tokenise.run(cleared).artefacts
        clear_checkpoints(cleared.folder / CHECKPOINTS_NAME)
        return artefacts

    first = made()
    (manifest,) = [tmp_path / path for path in first if path.endswith(".json")]
    before = manifest.stat().st_mtime_ns
    assert made() == first
    assert manifest.stat().st_mtime_ns == before, "the same tokens: the store stays as it is"

    encoded = KMeansTokenizer.fit_encode

    def shifted(self: KMeansTokenizer, *given: object, **options: object) -> object:
        return ((tokens + 1) % self.codebook_size for tokens in encoded(self, *given, **options))  # type: ignore[arg-type]

    monkeypatch.setattr(KMeansTokenizer, "fit_encode", shifted)
    second = made()
    assert second.keys() == first.keys()
    assert second != first
    store = open_store(manifest.parent)
    assert torch.from_numpy(store.tokens(store.rows(store.image_ids))).max() < store.codebook_size
    assert [path.name for path in manifest.parent.parent.glob(".*")] == [], "nothing is left beside it"


def test_a_damaged_store_is_replaced(tmp_path: Path) -> None:
    protocol, plan = planned()
    artefacts = tokenise.run(context(plan[0], protocol, tmp_path)).artefacts
    (manifest,) = [tmp_path / path for path in artefacts if path.endswith(".json")]
    (manifest.parent / "tokens.npy").write_bytes(b"short")
    assert tokenise.run(context(plan[0], protocol, tmp_path)).artefacts == artefacts
    open_store(manifest.parent)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("chain") / "runs"
    protocol, plan = planned()
    execute(plan, protocol, RUNTIME, work_dir, display=Quiet())
    return work_dir


def states(work_dir: Path, *overrides: str) -> dict[str, str]:
    protocol, plan = planned(*overrides)
    return {one.cell.stage: one.state for one in survey(plan, protocol, work_dir)}


def test_children_of_what_is_made_anew_are_made_anew_too(finished: Path) -> None:
    """A pre-training without a record is to do, not stale; its probe follows it nevertheless."""
    protocol, plan = planned()
    folders = {cell.stage: cell_folder(finished, protocol.name, cell.id) for cell in plan}
    probe = read_record(folders["linear-probe"])
    assert probe is not None
    (parent,) = probe.parents
    write_record(folders["linear-probe"], probe.model_copy(update={"parents": {parent: "f" * 64}}))
    assert states(finished) == {"tokenise": "done", "pretrain": "done", "linear-probe": "stale"}
    (folders["pretrain"] / "record.json").unlink()
    execute(plan, protocol, RUNTIME, finished, display=Quiet(), redo_stale=True)
    assert set(states(finished).values()) == {"done"}


def test_what_was_explored_and_is_now_the_protocols_own_is_clean(finished: Path) -> None:
    """The id says all that moves a cell's numbers; how it came to be run does not."""
    protocol, plan = planned()
    folder = cell_folder(finished, protocol.name, plan[1].id)
    record = read_record(folder)
    assert record is not None
    explored = Compliance(status="modified", deviations=("pretraining.epochs=8",))
    write_record(folder, record.model_copy(update={"compliance": explored}))
    (again, *_) = [one for one in execute(plan, protocol, RUNTIME, finished, display=Quiet())
                   if one.cell_id == plan[1].id]  # fmt: skip
    assert again.compliance == Compliance(status="clean")
    assert read_record(folder) == again
    assert again.artefacts == record.artefacts


def test_a_lost_file_is_told_before_the_board_needs_it(finished: Path) -> None:
    protocol, plan = planned()
    predictions = cell_folder(finished, protocol.name, plan[2].id) / "predictions.npz"
    kept = predictions.read_bytes()
    predictions.unlink()
    (probe,) = [one for one in survey(plan, protocol, finished) if one.cell.stage == "linear-probe"]
    assert probe.state == "damaged"
    assert "predictions.npz is missing" in probe.reasons[0]
    predictions.write_bytes(kept)
    assert states(finished)["linear-probe"] == "done"


def test_a_training_goes_on_only_with_the_parents_it_was_begun_on(tmp_path: Path) -> None:
    protocol, plan = planned()
    probe = context(plan[2], protocol, tmp_path)
    checkpoints = probe.folder / CHECKPOINTS_NAME
    checkpoints.mkdir(parents=True)
    old = begun_with(probe.cell, probe.sources, {plan[1].id: "a" * 64})
    (checkpoints / BEGUN_NAME).write_text(json.dumps(old))
    new = begun_with(probe.cell, probe.sources, {plan[1].id: "b" * 64})
    assert changed_since_begun(probe.folder, new) is None, "without a checkpoint nothing was begun"
    (checkpoints / "step-000000004.pt").write_bytes(b"weights")
    (checkpoints / "step-000000004.sha256").write_text("digest")
    assert changed_since_begun(probe.folder, old) is None
    said = changed_since_begun(probe.folder, new)
    assert said == f"it was begun on an earlier version of its parent {plan[1].id}"


def test_code_that_changes_during_a_run_ends_the_cell(tmp_path: Path) -> None:
    """Its modules would be partly the old ones, and its record would name the new."""
    protocol, plan = planned()
    begun = present_sources() | {"method:mim": "0" * 64}
    cell = replace(context(plan[1], protocol, tmp_path), sources=begun)
    with pytest.raises(HarnessError, match="the code of method mim changed while this run was going on"):
        worker._check_sources(cell)
    worker._check_sources(replace(cell, cell=plan[0]))  # a tokenising cell runs no method


def test_records_name_the_code_that_the_run_began_with(tmp_path: Path) -> None:
    protocol, plan = planned()
    sources = {"method:mim": "1" * 64, "tokenizer:k-pixel": "2" * 64}
    for cell in plan:
        cell_folder(tmp_path, protocol.name, cell.id).mkdir(parents=True)
        record = write_cell_record(
            cell, protocol, RUNTIME, tmp_path, status="failed", error="x", sources=sources
        )
        assert record.method is None or record.method.source_digest == "1" * 64
        assert record.tokenizer is not None
        assert record.tokenizer.source_digest == "2" * 64


def test_a_modified_cell_is_never_without_a_deviation(tmp_path: Path) -> None:
    """An evaluation is moved by its method's own values too, through its parent."""
    protocol, plan = planned("methods.mim.mask_count=5")
    marked = [cell.stage for cell in plan if cell.is_modified]
    assert marked == ["pretrain", "linear-probe"]
    probe = plan[-1]
    cell_folder(tmp_path, protocol.name, probe.id).mkdir(parents=True)
    record = write_cell_record(probe, protocol, RUNTIME, tmp_path, status="failed", error="x")
    assert record.compliance == Compliance(status="modified", deviations=("methods.mim.mask_count=5",))
