"""`plan --probe`: real steps in a child process, their rates in the plan, and what is kept and used again."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark import measure_steps, step_probe, survey
from benchmark.cli import main
from benchmark.plan import Cell, make_plan, select
from benchmark.runtime import Runtime
from benchmark.step_costs import Kept, costs_path, read_kept, torch_version, write_kept
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.recipes import LinearProbe
from protocols.schema import Protocol
from tests.benchmark.made_costs import GPU, step_cost
from tests.error_settings import TINY

FULL = TINY.parent / "full.yaml"
CPU = Runtime(device="cpu", jobs=1, threads=1)
SELECTION = ["--protocol", str(TINY), "--methods", "mim", "scratch"]


def plan(work_dir: Path, *more: str, selection: list[str] = SELECTION) -> tuple[int, str, str]:
    """Exit code, standard output and error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["plan", *selection, "--work-dir", str(work_dir), *more])
    return code, out.getvalue(), err.getvalue()


def as_json(work_dir: Path, *more: str, selection: list[str] = SELECTION) -> Any:
    code, out, err = plan(work_dir, "--json", *more, selection=selection)
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, str]:
    """The work dir, the plan, and what was said, of one probe that starts a real process."""
    work_dir = tmp_path_factory.mktemp("probed") / "runs"
    code, out, err = plan(work_dir, "--json", "--probe", "--device", "cpu")
    assert code == 0, err
    return work_dir, json.loads(out), err


def test_hours_are_those_of_all_steps_at_the_measured_rate(probed: tuple[Path, Any, str]) -> None:
    work_dir, forecast, _ = probed
    protocol = load_protocol(str(TINY))
    costs = {one.cost.step: one.cost for one in read_kept(costs_path(work_dir, "tiny"))}
    assert set(costs) == {
        "pretrain mim vit-tiny-test",
        "finetune vit-tiny-test",
        "linear-probe vit-tiny-test",
    }
    total = 0.0
    for cell in forecast["cells"]:
        if cell["stage"] == "tokenise":
            assert cell["images_per_second"] is None
            continue
        name = protocol.pretraining if cell["stage"] == "pretrain" else protocol.evaluations[cell["stage"]]
        count = 256 if cell["stage"] == "pretrain" else name.labelled_images
        steps = count // name.global_batch * name.epochs
        images = steps * name.global_batch
        assert cell["gpu_hours"] == pytest.approx(images / cell["images_per_second"] / 3600)
        method = " mim" if cell["stage"] == "pretrain" else ""
        cost = costs[f"{cell['stage']}{method} vit-tiny-test"]
        # Both protocols' batches are no larger than the largest micro-batch: it was measured itself.
        assert cost.timings[-1].images == name.global_batch
        seconds = steps * (cost.timings[-1].seconds + cost.update_seconds)
        seconds += 256 * cost.once_seconds_per_image if isinstance(name, LinearProbe) else 0.0
        assert cell["gpu_hours"] == pytest.approx(seconds / 3600)
        total += seconds / 3600
    assert forecast["open"]["gpu_hours"] == pytest.approx(total)
    cpus = forecast["model"]["gpus"]
    assert total / cpus <= forecast["open"]["wall_hours"] <= total
    assert forecast["model"]["unmeasured_cells"] == 0
    measured = forecast["model"]["measured"]
    assert (measured["device"], measured["precision"], measured["memory_bytes"]) == ("cpu", "fp32", None)


def test_the_rate_is_that_of_this_machine(probed: tuple[Path, Any, str]) -> None:
    """Near that of a step that is timed here, by other code: neither a constant nor another unit."""
    protocol = load_protocol(str(TINY))
    (cell,) = [one for one in tiny_plan(protocol) if one.stage == "pretrain" and one.method == "mim"]
    step = step_probe.build_step(cell, protocol, CPU)
    batch = step.make_batch(protocol.pretraining.global_batch)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        step.objective.loss(batch).backward()  # type: ignore[operator]
        step.optimizer.step()
        seconds.append(time.perf_counter() - started)
    here = protocol.pretraining.global_batch / min(seconds)
    (there,) = [one["images_per_second"] for one in probed[1]["cells"] if one["stage"] == "pretrain"]
    assert here / 100 < there < here * 10


def test_each_step_is_told_on_standard_error(probed: tuple[Path, Any, str]) -> None:
    lines = probed[2].splitlines()
    assert lines[0].startswith("measuring 3 kinds of step on ")
    assert lines[0].endswith(f"kept in {costs_path(probed[0], 'tiny')}")
    assert len(lines) == 4
    assert all("images/s in micro-batches of" in line for line in lines[1:])
    assert [line.split(":")[0] for line in lines[1:]] == ["  1 of 3", "  2 of 3", "  3 of 3"]


def tiny_plan(protocol: Protocol) -> list[Cell]:
    return make_plan(protocol, select(protocol))


def no_child(*_: object) -> Any:
    raise AssertionError("a process was started")


def test_what_is_known_is_not_measured_again(
    probed: tuple[Path, Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir, first, _ = probed
    before = costs_path(work_dir, "tiny").read_bytes()
    monkeypatch.setattr(measure_steps, "_child", no_child)
    assert as_json(work_dir) == as_json(work_dir, "--probe", "--device", "cpu") == first
    assert costs_path(work_dir, "tiny").read_bytes() == before
    _, text, _ = plan(work_dir)
    words = " ".join(text.split())
    assert "of CPU time as measured" in words
    assert "Steps were measured on " in words
    _, text, _ = plan(work_dir, "--probe", "--gpus", "3", "--device", "cpu")
    assert "pretrain mim vit-tiny-test" in text
    assert "on 3 CPUs" in " ".join(text.split())


def test_what_was_not_measured_stays_the_models(probed: tuple[Path, Any, str]) -> None:
    work_dir, _, _ = probed
    other = as_json(work_dir, "--precision", "bf16")
    assert other["model"]["measured"] is None
    given = as_json(work_dir, "--tflops", "1")
    assert given["model"]["measured"] is None
    assert given["cells"][-1]["gpu_hours"] == pytest.approx(given["cells"][-1]["train_flops"] / 3.6e15)
    more = ["--protocol", str(TINY), "--methods", "mim", "cae", "--evaluations", "finetune"]
    mixed = as_json(work_dir, selection=more)
    assert mixed["model"]["unmeasured_cells"] == 1
    (cae,) = [one for one in mixed["cells"] if one["stage"] == "pretrain" and one["method"] == "cae"]
    assert cae["gpu_hours"] == pytest.approx(cae["train_flops"] / 1e14 / 3600)
    _, text, _ = plan(work_dir, selection=more)
    assert "Of 1 cell to be run the step was not measured" in " ".join(text.split())


class _InProcess:
    """The child's part, in this process."""

    def __init__(self, protocol: Protocol, runtime: Runtime) -> None:
        self.protocol, self.runtime = protocol, runtime
        self.answer: object = step_probe.this_machine(runtime)

    def send(self, cell: Cell) -> None:
        self.answer = step_probe.measure(cell, self.protocol, self.runtime)

    def recv(self) -> object:
        return self.answer


@contextmanager
def in_process(protocol: Protocol, runtime: Runtime) -> Iterator[_InProcess]:
    yield _InProcess(protocol, runtime)


def test_a_damaged_file_is_told_and_measured_anew(
    probed: tuple[Path, Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = tmp_path / "runs"
    shutil.copytree(probed[0], work_dir)
    path = costs_path(work_dir, "tiny")
    path.write_text(path.read_text()[:-20])
    code, out, err = plan(work_dir, "--json")
    assert code == 0
    assert json.loads(out)["model"]["measured"] is None
    assert "step-costs.json: damaged" in err
    assert "it is not used" in err
    monkeypatch.setattr(measure_steps, "_child", in_process)
    code, out, err = plan(work_dir, "--json", "--probe", "--device", "cpu")
    assert "all steps are measured anew" in err
    assert len(read_kept(path)) == 3
    assert json.loads(out)["model"]["unmeasured_cells"] == 0


def test_a_measuring_that_was_interrupted_goes_on(
    probed: tuple[Path, Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = costs_path(tmp_path, "tiny")
    entries = read_kept(costs_path(probed[0], "tiny"))
    write_kept(path, entries[:1])
    monkeypatch.setattr(measure_steps, "_child", in_process)
    _, _, err = plan(tmp_path, "--json", "--probe", "--device", "cpu")
    assert len(err.splitlines()) == 1 + 2
    assert read_kept(path)[0] == entries[0]
    assert {one.cost.shape for one in read_kept(path)} == {one.cost.shape for one in entries}


class _DeadProcess:
    """A process that was killed before it said anything."""

    exitcode = -9
    says: object = None

    def __init__(self, *, target: object, args: tuple[Connection, Any, Any], daemon: bool) -> None:
        self.there = args[0]

    def start(self) -> None:
        if self.says is not None:
            self.there.send(self.says)
        self.there.close()

    def join(self, timeout: float | None = None) -> None:
        return None

    def is_alive(self) -> bool:
        return False


def test_a_child_that_dies_or_fails_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Context:
        Process = _DeadProcess

    for says in (None, step_probe.this_machine(CPU)):  # the second dies before it is asked for a step
        with monkeypatch.context() as patch:
            patch.setattr("multiprocessing.get_context", lambda name: Context)
            patch.setattr(_DeadProcess, "says", says)
            code, _, err = plan(tmp_path, "--probe", "--device", "cpu")
        assert code == 2
        assert "error: the process that measures steps was killed by SIGKILL" in err
    monkeypatch.setattr(measure_steps, "_child", in_process)
    monkeypatch.setattr(_InProcess, "recv", lambda self: "ValueError: no")
    code, _, err = plan(tmp_path, "--probe", "--device", "cpu")
    assert code == 2
    assert "the device cannot be measured: ValueError: no" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--probe", "--tflops", "3"], "--tflops and --probe are two rates"),
        (["--gpus-per-cell", "0"], "--gpus-per-cell must be 1 or more, got 0"),
        (["--accumulation", "0"], "--accumulation must be 1 or more, got 0"),
        (["--probe", "--device", "cpu", "--accumulation", "3"], "must be one of 1, 2, 4, 8, 16, 32"),
        (["--probe", "--device", "cuda"], "--device cuda: no CUDA device is visible"),
    ],
)
def test_mistakes(flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(measure_steps, "_child", no_child)
    code, _, err = plan(tmp_path / "runs", *flags)
    assert (code, err.count("\n")) == (3 if "must be one" in message else 2, 1)
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_a_plan_for_gpus_places_its_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs of a GPU that is not here: cells of several GPUs, memory, and a batch that cannot be split."""
    fair = load_protocol("fair300")
    selection = ["--protocol", "fair300", "--methods", "mapet", "--tokenizers", "k-clip", "--trunks", "vit-b"]
    selection += ["--views", "none"]
    cells = make_plan(
        fair, select(fair, methods=["mapet"], tokenizers=["k-clip"], trunks=["vit-b"], views=["none"])
    )
    machine = GPU.model_copy(update={"torch": torch_version()})
    hungry = 180 * 10**6
    entries = [
        Kept(machine=machine, cost=step_cost(one, fair, per_image=hungry))
        for one in cells
        if one.stage != "tokenise"
    ]
    write_kept(costs_path(tmp_path, "fair300"), entries)
    asked = ["--precision", "bf16", "--gpus", "8"]
    forecast = as_json(tmp_path, *asked, selection=selection)
    gpus = {one["evaluation"] or one["stage"]: one["gpus"] for one in forecast["cells"]}
    assert gpus == {"tokenise": 1, "pretrain": 8, "finetune": 4, "linear-probe": 4}
    assert forecast["model"]["unmeasured_cells"] == 0
    hours = {one["stage"]: one["gpu_hours"] for one in forecast["cells"]}
    # The pre-training takes all GPUs; then fine-tuning and probe share them.
    after = max(hours["finetune"], hours["linear-probe"]) / 4
    assert forecast["open"]["wall_hours"] == pytest.approx(hours["pretrain"] / 8 + after)
    _, text, _ = plan(tmp_path, *asked, selection=selection)
    words = " ".join(text.split())
    assert "on 8 GPUs, 1 cell on 1, 2 on 4, 1 on 8;" in words
    assert "Test GPU in bf16 (torch" in words
    _, text, _ = plan(tmp_path, *asked, "--cells", selection=selection)
    assert "8 x " in text
    here = Runtime(device="cuda", jobs=8, threads=1, precision="bf16")
    monkeypatch.setattr("benchmark.commands.plan.detect_runtime", lambda **_: here)
    monkeypatch.setattr("benchmark.measure_steps._child", no_child)
    _, text, _ = plan(tmp_path, *asked, "--probe", selection=selection)
    (line,) = [line for line in text.splitlines() if line.startswith("pretrain mapet vit-b")]
    # 256 images of 180 MB, 2 GB, and 0.5 GB of gradients to exchange, in 0.34 s and 0.02 s of update.
    assert line.split()[3:] == ["8", "1", "x", "256", "711", "48.6", "GB"]
    code, _, err = plan(tmp_path, *asked, "--gpus-per-cell", "3", selection=selection)
    assert code == 3
    assert "must be one of 1, 2, 4, 8" in err
    few = as_json(tmp_path, *asked, "--gpus-per-cell", "1", "--accumulation", "2", selection=selection)
    whats = [one["what"] for one in few["missing"] if one["what"].startswith("GPU memory")]
    assert len(whats) == 3
    assert [one["stage"] for one in few["cells"] if one["is_placed"]] == ["tokenise"]
    assert as_json(tmp_path, "--gpus", "8", selection=selection)["model"]["measured"] is None, "fp32"


def test_what_is_half_done_counts_by_what_is_left(
    probed: tuple[Path, Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(probed[0], tmp_path / "runs")
    monkeypatch.setattr(survey, "changed_since_begun", lambda folder, now: None)
    (pretrain,) = [one for one in probed[1]["cells"] if one["stage"] == "pretrain"]
    folder = tmp_path / "runs" / "tiny" / "cells" / pretrain["id"]
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step-48.sha256").write_text("")
    line = {"step": 48, "steps": 64, "loss": 1.0, "seconds": 1.0, "images_per_second": 1.0}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    forecast = as_json(tmp_path / "runs")
    (found,) = [one for one in forecast["cells"] if one["stage"] == "pretrain"]
    assert (found["state"], found["left"]) == ("resumable", 0.25)
    saved = probed[1]["open"]["gpu_hours"] - forecast["open"]["gpu_hours"]
    assert saved == pytest.approx(0.75 * pretrain["gpu_hours"])


@pytest.mark.parametrize("name", [str(TINY), str(FULL), "mini"])
def test_every_kind_of_step_trains_what_its_stage_trains(name: str) -> None:
    protocol = load_protocol(name)
    seen = set()
    torch.manual_seed(0)  # paths are dropped at random, and what is dropped does not change
    for cell in make_plan(protocol, select(protocol)):
        if cell.stage == "tokenise" or (cell.evaluation or cell.method) in seen:
            continue
        seen.add(cell.evaluation or cell.method)
        step = step_probe.build_step(cell, protocol, CPU)
        before = [one.detach().clone() for one in step.trained]
        seconds = step_probe._step(step, step.make_batch(4), CPU)
        assert all(second > 0 for second in seconds)
        changed = [not torch.equal(old, new) for old, new in zip(before, step.trained, strict=True)]
        assert all(changed) or cell.stage == "pretrain"
        assert sum(changed) > 0.9 * len(changed)
        if cell.stage == "linear-probe":
            assert len(changed) == 2, "the trunk is frozen"
    assert len(seen) >= 4


def test_less_is_tried_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = load_protocol(str(TINY))
    cell = next(one for one in tiny_plan(protocol) if one.stage == "pretrain")
    timed, tried = step_probe._timed, []

    def with_memory_for(most: int) -> None:
        def fake(step: step_probe.Step, images: int, runtime: Runtime) -> Any:
            tried.append(images)
            if images > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return timed(step, images, runtime)

        monkeypatch.setattr(step_probe, "_timed", fake)

    with_memory_for(9)
    cost = step_probe.measure(cell, protocol, CPU)
    assert tried == [16, 4, 8]
    assert cost.out_of_memory_at == 16
    assert [one.images for one in cost.timings] == [4, 8]
    with_memory_for(0)
    cost = step_probe.measure(cell, protocol, CPU)
    assert (cost.timings, cost.out_of_memory_at) == ((), 1)
    assert cost.gradient_bytes > 0
    assert "out of memory with one image" in measure_steps.described(cost)


def test_memory_that_others_hold_is_no_bound() -> None:
    step_probe.check_nobody_else(75 * 10**9, 80 * 10**9)
    with pytest.raises(HarnessError, match=r"hold 30\.0 GB of the GPU's 80\.0 GB"):
        step_probe.check_nobody_else(50 * 10**9, 80 * 10**9)
