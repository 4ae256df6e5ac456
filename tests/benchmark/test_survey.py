"""Where cells stand: every state, with its reasons, from what lies on disk."""

from __future__ import annotations

import fcntl
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark import worker
from benchmark.cli import main
from benchmark.layout import BEGUN_NAME, CHECKPOINTS_NAME, cell_folder
from benchmark.plan import Cell, make_plan, select
from benchmark.record_cell import write_cell_record
from benchmark.runtime import Runtime
from benchmark.stage import CellContext, StageResult
from benchmark.survey import CellState, begun_with, changed_since_begun, is_locked, present_sources, survey
from leaderboard.record import read_record, write_record
from protocols import load_protocol
from protocols.errors import HarnessError
from tests.error_settings import TINY

RUNTIME = Runtime(device="cpu", jobs=1, threads=1)
OTHER_CODE = "0" * 64


class Bench:
    """The cells of one objective on tiny, and how to put them into a state by hand."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.protocol = load_protocol(str(TINY))
        self.plan = make_plan(self.protocol, select(self.protocol, methods=["mim"]))

    def cell(self, name: str) -> Cell:
        (found,) = [cell for cell in self.plan if (cell.evaluation or cell.stage) == name]
        return found

    def folder(self, name: str) -> Path:
        folder = cell_folder(self.work_dir, self.protocol.name, self.cell(name).id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def record(self, *names: str, status: str = "done", error: str | None = None) -> None:
        for name in names:
            folder = self.folder(name)
            artefact = {f"{name}.bin": "a" * 64}
            (folder / f"{name}.bin").touch()
            images = CellContext(
                cell=self.cell(name), protocol=self.protocol, runtime=RUNTIME, work_dir=self.work_dir
            ).images("test")
            result = StageResult(
                metrics={}, data=images, seconds=1.0, images_seen=1, train_flops=0.0, artefacts=artefact
            )
            write_cell_record(
                self.cell(name), self.protocol, RUNTIME, self.work_dir, status=status,  # type: ignore[arg-type]
                result=result if status == "done" else None, error=error, peak_memory_bytes=0,
            )  # fmt: skip
            assert (folder / "record.json").is_file()

    def change(self, name: str, **fields: Any) -> None:
        """Rewrite a record with other values in some fields."""
        folder = self.folder(name)
        record = read_record(folder)
        assert record is not None
        write_record(folder, record.model_copy(update=fields))

    def begin(self, name: str, *, source: str | None = None) -> None:
        """What an interrupted training leaves: a finished checkpoint, its source, a line of metrics."""
        folder = self.folder(name)
        checkpoints = folder / CHECKPOINTS_NAME
        checkpoints.mkdir()
        (checkpoints / "step-000000012.pt").write_bytes(b"weights")
        (checkpoints / "step-000000012.sha256").write_text("digest")
        parents = {
            one: record.artefact_digest
            for one in self.cell(name).parents
            if (record := read_record(cell_folder(self.work_dir, self.protocol.name, one))) is not None
        }
        begun = begun_with(self.cell(name), present_sources(), parents)
        if source is not None:
            begun[f"method:{self.cell(name).method}"] = source
        (checkpoints / BEGUN_NAME).write_text(json.dumps(begun))
        line = {"step": 12, "steps": 64, "loss": 2.5, "seconds": 1.0, "images_per_second": 3.0}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n" + '{"step": 13, "st')

    def survey(self) -> dict[str, CellState]:
        states = survey(self.plan, self.protocol, self.work_dir)
        assert [one.cell for one in states] == self.plan
        return {one.cell.evaluation or one.cell.stage: one for one in states}

    def states(self) -> dict[str, str]:
        return {name: one.state for name, one in self.survey().items()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "runs")


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob("*"))
    }


def test_nothing_is_there_and_nothing_is_made(bench: Bench) -> None:
    assert set(bench.states().values()) == {"to do"}
    assert not bench.work_dir.exists()


def test_done_and_to_do(bench: Bench) -> None:
    bench.record("tokenise", "pretrain", "finetune")
    assert bench.states() == {
        "tokenise": "done", "pretrain": "done", "finetune": "done", "linear-probe": "to do",
    }  # fmt: skip
    states = bench.survey()
    assert states["finetune"].record is not None
    assert states["finetune"].reasons == ()


def test_skipped_is_to_do_again(bench: Bench) -> None:
    bench.record("tokenise")
    bench.record("pretrain", status="skipped", error="a cell, which this one needs, did not succeed")
    assert bench.states()["pretrain"] == "to do"


def test_failed_with_the_first_line_of_its_error(bench: Bench) -> None:
    bench.record("tokenise")
    bench.record("pretrain", status="failed", error="TrainingDiverged: the loss is nan\nand more")
    failed = bench.survey()["pretrain"]
    assert (failed.state, failed.reasons) == ("failed", ("TrainingDiverged: the loss is nan",))


def test_damaged_names_file_and_remedy_and_spares_the_others(bench: Bench) -> None:
    bench.record("tokenise", "pretrain", "finetune")
    path = bench.folder("pretrain") / "record.json"
    path.write_text(path.read_text()[:-40])
    states = bench.survey()
    assert states["pretrain"].state == "damaged"
    (reason,) = states["pretrain"].reasons
    assert str(path) in reason
    assert "delete the folder" in reason
    assert (states["tokenise"].state, states["finetune"].state) == ("done", "stale")
    assert states["finetune"].reasons == (f"parent {bench.cell('pretrain').id} has no record any more",)


def test_running_while_another_process_holds_the_lock(bench: Bench) -> None:
    bench.record("tokenise")
    bench.begin("pretrain")
    lock = bench.folder("pretrain") / ".lock"
    lock.write_text("")
    assert not is_locked(bench.folder("pretrain"))
    hold = (
        "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        running = bench.survey()["pretrain"]
        assert running.state == "running"
        assert running.metrics is not None
        assert running.metrics["step"] == 12, "the last whole line"
    assert bench.states()["pretrain"] == "resumable", "the lock went with its process"


def test_asking_takes_no_lock(bench: Bench) -> None:
    """A cell that starts while somebody asks must not find its lock taken."""
    lock = bench.folder("pretrain") / ".lock"
    lock.write_text("")
    bench.survey()
    with lock.open() as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_resumable_says_how_far_it_was(bench: Bench) -> None:
    bench.record("tokenise")
    bench.begin("pretrain")
    begun = bench.survey()["pretrain"]
    assert begun.state == "resumable"
    assert begun.metrics is not None
    assert (begun.metrics["step"], begun.metrics["steps"]) == (12, 64)


def test_an_unfinished_checkpoint_is_nothing_to_go_on_from(bench: Bench) -> None:
    bench.begin("pretrain")
    (bench.folder("pretrain") / CHECKPOINTS_NAME / "step-000000012.sha256").unlink()
    assert bench.states()["pretrain"] == "to do"


def test_stale_by_the_methods_code_and_its_children_with_it(bench: Bench) -> None:
    bench.record("tokenise", "pretrain", "finetune", "linear-probe")
    record = read_record(bench.folder("pretrain"))
    assert record is not None
    assert record.method is not None
    bench.change("pretrain", method=record.method.model_copy(update={"source_digest": OTHER_CODE}))
    states = bench.survey()
    assert {name: one.state for name, one in states.items()} == {
        "tokenise": "done", "pretrain": "stale", "finetune": "stale", "linear-probe": "stale",
    }  # fmt: skip
    assert states["pretrain"].reasons == ("method mim's code has changed since",)
    parent = bench.cell("pretrain").id
    expected = f"its parent {parent} is stale: method mim's code has changed since"
    assert states["finetune"].reasons == states["linear-probe"].reasons == (expected,)


def test_stale_by_the_tokenizers_code(bench: Bench) -> None:
    bench.record("tokenise", "pretrain")
    record = read_record(bench.folder("tokenise"))
    assert record is not None
    assert record.tokenizer is not None
    bench.change("tokenise", tokenizer=record.tokenizer.model_copy(update={"source_digest": OTHER_CODE}))
    states = bench.survey()
    assert states["tokenise"].reasons == ("tokenizer k-pixel's code has changed since",)
    assert states["pretrain"].state == "stale"
    assert states["finetune"].state == "to do"


def test_stale_by_a_parent_made_anew_with_other_artefacts(bench: Bench) -> None:
    bench.record("tokenise", "pretrain", "linear-probe")
    bench.change("pretrain", artefacts={"pretrain.bin": "b" * 64})
    states = bench.survey()
    assert states["pretrain"].state == "done"
    assert states["linear-probe"].reasons == (f"parent {bench.cell('pretrain').id} was made anew since",)


def test_stale_when_begun_by_other_code(bench: Bench) -> None:
    bench.record("tokenise")
    bench.begin("pretrain", source=OTHER_CODE)
    begun = bench.survey()["pretrain"]
    assert (begun.state, begun.reasons) == ("stale", ("it was begun with other code of method mim",))


def test_blocked_by_what_is_missing_and_by_a_parent() -> None:
    protocol = load_protocol("fair300")
    plan = make_plan(protocol, select(protocol, methods=["mapet"], trunks=["vit-b"], views=["table5"]))
    states = survey(plan, protocol, Path("nowhere"))
    assert {one.state for one in states} == {"blocked"}
    tokens = states[0]
    assert [one.what for one in tokens.missing] == [
        "data set imagenet-1k: no --data-root DIR is given",
        "tokenizer vq-kd: no --data-root DIR is given, where its weights lie",
    ]
    assert tokens.reasons == tuple(one.what for one in tokens.missing)
    food = next(one for one in states if one.cell.evaluation == "food-101")
    assert [one.what for one in food.missing] == ["data set food-101: no --data-root DIR is given"]


def test_blocked_by_a_parent_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.inputs.list_tokenizers", lambda: ["k-other"])
    states = bench.survey()
    assert {one.state for one in states.values()} == {"blocked"}
    assert states["tokenise"].missing
    assert states["pretrain"].missing == ()
    assert states["pretrain"].reasons == (f"needs {bench.cell('tokenise').id}, which is blocked",)
    assert states["finetune"].reasons == (f"needs {bench.cell('pretrain').id}, which is blocked",)
    bench.record("tokenise", "pretrain")
    assert bench.states() == {
        "tokenise": "done", "pretrain": "done", "finetune": "to do", "linear-probe": "to do",
    }  # fmt: skip


def test_data_folders_are_looked_for_under_the_root(tmp_path: Path) -> None:
    protocol = load_protocol("fair300")
    plan = make_plan(protocol, select(protocol, methods=["scratch"]))
    (tmp_path / "imagenet-1k" / "train").mkdir(parents=True)
    (found,) = {one.missing for one in survey(plan, protocol, Path("nowhere"), data_root=tmp_path)}
    folder = tmp_path / "imagenet-1k"
    assert [one.what for one in found] == [
        f"data set imagenet-1k: {folder} has no class folders in train, nor ILSVRC2012_img_train.tar",
        f"data set imagenet-1k: {folder} has no class folders in val, nor ILSVRC2012_img_val.tar and "
        "ILSVRC2012_devkit_t12.tar.gz",
    ]
    tokens = [cell for cell in make_plan(protocol, select(protocol)) if cell.stage == "tokenise"]

    def missing() -> set[str]:
        states = survey(tokens, protocol, Path("nowhere"), data_root=tmp_path)
        return {one.what for state in states for one in state.missing if one.what.startswith("data set")}

    assert missing() == {one.what for one in found}
    (folder / "train" / "n01440764").mkdir()
    assert missing() == {found[1].what}
    (folder / "val" / "n01440764").mkdir(parents=True)
    assert missing() == set()


def test_surveying_changes_nothing(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.record("tokenise", "finetune")
    bench.begin("pretrain", source=OTHER_CODE)
    (bench.folder("linear-probe") / "record.json").write_text("{")
    before = listing(bench.work_dir)
    for command in ("status", "plan"):
        for more in ([], ["--json"]):
            arguments = [command, "--protocol", str(TINY), "--work-dir", str(bench.work_dir), *more]
            assert main(arguments) == 0
    assert len(capsys.readouterr().out) > 1000
    assert listing(bench.work_dir) == before


def test_status_says_why_and_what_to_do(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.record("tokenise")
    bench.begin("pretrain")
    bench.record("finetune", status="failed", error="TrainingDiverged: the loss is nan")
    arguments = ["status", "--protocol", str(TINY), "--work-dir", str(bench.work_dir), "--methods", "mim"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "- pretrain mim/k-pixel/vit-tiny-test seed 0, step 12 of 64" in text
    assert "failed (--redo-failed runs them again):" in text
    assert f"  {bench.folder('finetune') / 'log'}" in text
    assert main([*arguments, "--json"]) == 0
    cells = {cell["stage"]: cell for cell in json.loads(capsys.readouterr().out)["cells"]}
    assert (cells["pretrain"]["state"], cells["pretrain"]["step"]) == ("resumable", 12)
    assert cells["finetune"]["reasons"] == ["TrainingDiverged: the loss is nan"]


def context_of(bench: Bench, name: str) -> CellContext:
    return CellContext(
        cell=bench.cell(name), protocol=bench.protocol, runtime=RUNTIME, work_dir=bench.work_dir
    )


def test_a_training_goes_on_only_with_its_own_code(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.begin("pretrain", source=OTHER_CODE)
    context = context_of(bench, "pretrain")
    checkpoints = context.folder / CHECKPOINTS_NAME
    before = listing(context.folder)
    with pytest.raises(HarnessError, match=r"begun with other code of method mim.*--redo-stale"):
        worker.check_begun(context, redo_stale=False)
    assert listing(context.folder) == before, "nothing is dropped without being asked to"
    with caplog.at_level(logging.WARNING):
        worker.check_begun(context, redo_stale=True)
    assert "its checkpoints are dropped" in caplog.text
    assert not list(checkpoints.glob("step-*"))
    assert changed_since_begun(context.folder, begun_with(context.cell, context.sources, {})) is None
    worker.check_begun(context, redo_stale=False)


def test_redo_stale_keeps_checkpoints_of_present_code(bench: Bench) -> None:
    bench.begin("pretrain")
    context = context_of(bench, "pretrain")
    worker.check_begun(context, redo_stale=True)
    assert len(list((context.folder / CHECKPOINTS_NAME).glob("step-*"))) == 2


def test_the_worker_records_the_refusal(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.record("tokenise")
    bench.begin("pretrain", source=OTHER_CODE)
    assert worker.run_cell(context_of(bench, "pretrain")) == 1
    failed = bench.survey()["pretrain"]
    assert failed.state == "failed"
    assert failed.reasons[0].startswith("it was begun with other code of method mim")
    assert "Traceback" in capsys.readouterr().err  # in the cell's log, when a child runs it
