"""Metric back-ends: what reaches them, once, after kills and redos too, and that they can hurt nothing."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmark import metric_follower
from benchmark.cli import main
from benchmark.metric_backends import Backend, Run, check_backends, make_backend
from benchmark.metric_follower import Follower
from benchmark.tracking import tracked
from protocols.errors import HarnessError
from protocols.files import append_line
from tests.benchmark.made_records import Lab
from tests.error_settings import TINY


def written(folder: Path, steps: range, *, loss: float, **more: Any) -> None:
    """Lines as a training writes them, one every ten steps; the loss is `loss` / step."""
    for step in steps:
        line = {"step": step, "steps": 100, "epoch": step / 10, "loss": loss / step, "lr": 0.1,
                "images_per_second": 64.0, "seconds": float(step), **more}  # fmt: skip
        append_line(folder / "metrics.jsonl", json.dumps(line))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Finished cells whose metrics files are empty yet."""
    made = Lab(tmp_path / "runs", methods=["mim"])
    for path in made.cells.glob("*/metrics.jsonl"):
        path.unlink()
    return made


def follower(lab: Lab, name: str = "tensorboard") -> Follower:
    folder = lab.cells.parent
    return Follower(folder, make_backend(name, folder=folder, protocol="tiny"), warn=pytest.fail)


def followed(lab: Lab, name: str = "tensorboard") -> None:
    one = follower(lab, name)
    one.poll()
    one.close()
    assert one.failure == ""


def shown(lab: Lab, cell_id: str, part: str = "") -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads in a run's folder: tag -> steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = lab.cells.parent / "tracking" / "tensorboard" / cell_id / part
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(one.step, round(one.value, 4)) for one in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_shows_each_step_once_and_the_later_line_after_a_resume(lab: Lab) -> None:
    cell, record = lab.folder("pretrain"), lab.folder("pretrain") / "record.json"
    kept = record.read_bytes()
    record.unlink()  # it runs
    one = follower(lab)
    written(cell, range(10, 40, 10), loss=100)
    with (cell / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 40, "st')
    one.poll()
    one.poll()
    one.close()  # killed, say; training goes on from step 20, and another process follows it
    written(cell, range(30, 60, 10), loss=200)
    followed(lab)
    record.write_bytes(kept)
    followed(lab)
    followed(lab)
    found = shown(lab, lab.id("pretrain"))
    assert found["loss"] == [(10, 10.0), (20, 5.0), (30, 6.6667), (40, 5.0), (50, 4.0)]
    assert [step for step, _ in found["lr"]] == [10, 20, 30, 40, 50]
    assert found["result/images_per_second"] == [(50, 10.0)]
    assert shown(lab, lab.id("finetune"))["result/top1_percent"] == [(0, 25.0)]

    record.unlink()  # redone, from the first step on
    written(cell, range(10, 30, 10), loss=300)
    followed(lab)
    assert shown(lab, lab.id("pretrain"))["loss"] == [(10, 30.0), (20, 15.0)]


def test_phases_of_encoding_have_runs_of_their_own(lab: Lab) -> None:
    cell = lab.folder("tokenise")
    for phase, step in (("features", 5), ("features", 10), ("k-means", 1), ("k-means", 2)):
        line = {"phase": phase, "step": step, "steps": 10, "seconds": 1.0, "images_per_second": float(step)}
        append_line(cell / "metrics.jsonl", json.dumps(line))
    followed(lab)
    assert shown(lab, lab.id("tokenise"), "features")["images_per_second"] == [(5, 5.0), (10, 10.0)]
    assert shown(lab, lab.id("tokenise"), "k-means")["images_per_second"] == [(1, 1.0), (2, 2.0)]


class StandIn(types.ModuleType):
    """Has what is used of wandb: `init` with its documented arguments, and a run's four methods."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.runs: dict[str, dict[str, Any]] = {}
        self.open: set[str] = set()

    def init(self, *, project: str, group: str, name: str, id: str, resume: str, dir: str,
             config: Mapping[str, str], reinit: str) -> StandInRun:  # fmt: skip
        assert (project, group, resume, reinit) == ("fair-mim", "tiny", "allow", "create_new")
        assert name == id
        assert Path(dir).is_dir()
        assert id not in self.open, "two processes of one run"
        self.open.add(id)
        self.runs.setdefault(id, {"lines": [], "summary": {}, "config": dict(config), "metrics": set()})
        return StandInRun(self, id)


class StandInRun:
    def __init__(self, module: StandIn, run_id: str) -> None:
        self.module, self.id, self.kept = module, run_id, module.runs[run_id]
        self.summary = self.kept["summary"]

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.kept["metrics"].add((name, step_metric))

    def log(self, values: Mapping[str, float]) -> None:
        self.kept["lines"].append(dict(values))

    def finish(self) -> None:
        self.module.open.remove(self.id)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_rising_steps_of_one_resumable_run_and_a_new_run_of_a_new_start(
    lab: Lab, wandb: StandIn
) -> None:
    cell, record, name = lab.folder("pretrain"), lab.folder("pretrain") / "record.json", lab.id("pretrain")
    kept = record.read_bytes()
    record.unlink()
    written(cell, range(10, 40, 10), loss=100)
    followed(lab, "wandb")
    written(cell, range(30, 60, 10), loss=100)  # resumed from step 20
    record.write_bytes(kept)
    followed(lab, "wandb")
    run = wandb.runs[name]
    assert [line["step"] for line in run["lines"]] == [10, 20, 30, 40, 50]
    assert run["lines"][0] == {
        "step": 10, "epoch": 1.0, "loss": 10.0, "lr": 0.1, "images_per_second": 64.0, "seconds": 10.0,
    }  # fmt: skip
    assert run["metrics"] == {("step", None), ("*", "step")}
    assert run["config"] == {"cell": name, "protocol": "tiny"}
    assert run["summary"]["result/images_per_second"] == 10.0
    assert (run["summary"]["method"], run["summary"]["seed"], run["summary"]["status"]) == (
        "mim",
        "0",
        "done",
    )
    assert wandb.runs[lab.id("linear-probe")]["summary"]["result/top1_percent"] == 25.0
    assert wandb.open == set()

    record.unlink()
    written(cell, range(10, 30, 10), loss=300)
    followed(lab, "wandb")
    assert [line["loss"] for line in wandb.runs[f"{name}-2"]["lines"]] == [30.0, 15.0]
    assert len(run["lines"]) == 5


class Broken:
    """A back-end whose server goes away at the second step; `real` gets the rest."""

    name = "broken"

    def __init__(self, real: Backend) -> None:
        self.real = real

    def run(self, **given: Any) -> Run:
        run = self.real.run(**given)
        log = run.log

        def fails(step: int, values: Mapping[str, float]) -> None:
            if step == 20:
                raise ConnectionError("no route\nto the server")
            log(step, values)

        run.log = fails  # type: ignore[method-assign]
        return run


def test_a_back_end_that_fails_is_warned_of_once_and_gets_the_rest_later(lab: Lab) -> None:
    written(lab.folder("pretrain"), range(10, 50, 10), loss=100)
    folder, said = lab.cells.parent, list[str]()
    before = {path: path.read_bytes() for path in folder.glob("cells/*/*")}
    real = make_backend("tensorboard", folder=folder, protocol="tiny")
    broken = Broken(real)
    broken.name = real.name
    one = Follower(folder, broken, warn=said.append)
    one.poll()
    one.poll()
    one.close()
    assert one.failure == "ConnectionError: no route"
    (warning,) = said
    assert "no result is touched" in warning
    assert {path: path.read_bytes() for path in folder.glob("cells/*/*")} == before
    followed(lab)
    assert [step for step, _ in shown(lab, lab.id("pretrain"))["loss"]] == [10, 20, 30, 40]


def test_long_files_are_handed_over_in_pieces(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_follower, "_CHUNK", 400)
    written(lab.folder("finetune"), range(10, 200, 10), loss=100)
    followed(lab)
    found = shown(lab, lab.id("finetune"))
    assert [step for step, _ in found["loss"]] == list(range(10, 200, 10))
    assert found["result/top1_percent"] == [(190, 25.0)]


def test_a_strangers_metrics_file_stops_nothing_and_leads_nowhere(lab: Lab) -> None:
    """A bundle may bring any text as the metrics of a merged cell."""
    line = {"step": 5, "steps": 9, "loss": 1.0, "images_per_second": 1.0, "seconds": 1.0}
    for change in (
        {"step": 10**30}, {"seconds": 10**400}, {"lr": 10**400}, {"\ud800": 1}, {"phase": "../../.."},
        {"phase": ".."}, {"phase": "x" * 300},
    ):  # fmt: skip
        append_line(lab.folder("finetune") / "metrics.jsonl", json.dumps({**line, **change}))
    written(lab.folder("pretrain"), range(10, 30, 10), loss=100)
    followed(lab)
    assert [step for step, _ in shown(lab, lab.id("pretrain"))["loss"]] == [10, 20]
    assert shown(lab, lab.id("finetune"))["loss"] == [(5, 1.0)]
    events = (lab.cells.parent / "tracking").rglob("events.*")
    assert {path.relative_to(lab.cells.parent).parts[2] for path in events} == set(lab.records)


def test_the_command_hands_over_what_is_there(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    written(lab.folder("pretrain"), range(10, 30, 10), loss=100)
    words = ["track", "--protocol", str(TINY), "--work-dir", str(lab.work_dir), "--to", "TensorBoard"]
    assert main(words) == 0
    assert main(words) == 0
    assert len(shown(lab, lab.id("pretrain"))["loss"]) == 2
    state = lab.cells.parent / "tracking" / "tensorboard.json"
    state.write_text("{")
    assert main(words) == 2
    assert "delete the folder" in capsys.readouterr().err
    assert main([*words[:3], "--work-dir", str(lab.work_dir.parent / "none"), "--to", "tensorboard"]) == 2


def test_a_missing_package_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "wandb" else found(name, *more)
    )
    out = tmp_path / "runs"
    words = ["--protocol", str(TINY), "--work-dir", str(out), "--track"]
    assert main([*words, "wandb"]) == 2
    assert "pip install wandb" in capsys.readouterr().err
    assert main([*words, "tensorbord"]) == 2
    assert "did you mean 'tensorboard'" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(HarnessError, match="no metric back-end is named"):
        check_backends([","])
    assert check_backends(["tensorboard,TensorBoard"]) == ["tensorboard"]


def test_a_process_beside_the_run_follows_its_cells_to_their_end(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Namespace(protocol=str(TINY), work_dir=lab.work_dir, plugin=[])
    cell, record = lab.folder("pretrain"), lab.folder("pretrain") / "record.json"
    kept = record.read_bytes()
    record.unlink()
    written(cell, range(10, 30, 10), loss=100)
    with tracked(["tensorboard"], options, lab.protocol):
        written(cell, range(30, 50, 10), loss=100)
        record.write_bytes(kept)
    found = shown(lab, lab.id("pretrain"))
    assert [step for step, _ in found["loss"]] == [10, 20, 30, 40]
    assert found["result/images_per_second"] == [(40, 10.0)]
    assert capsys.readouterr().err == ""

    state = lab.cells.parent / "tracking" / "tensorboard.json"
    state.write_text("{")
    with tracked(["tensorboard"], options, lab.protocol):
        pass
    said = capsys.readouterr().err
    assert "ended with code 2; the results are not touched" in said
    assert "run_benchmark.py track --protocol" in said
