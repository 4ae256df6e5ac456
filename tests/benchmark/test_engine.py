"""The engine's promises: exact resume, exact global batches, one loss whatever the process count."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmark import between_steps
from benchmark.batches import Batch, StepDataset, Steps
from benchmark.between_steps import TrainingDiverged
from benchmark.engine import Training, train
from benchmark.runtime import Runtime
from protocols.errors import HarnessError, ProtocolViolation
from tests.benchmark.forked_ranks import in_processes

SCRIPT = Path(__file__).parent / "engine_run.py"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = _script().run


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_equal_weights(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("method", ["beit", "mapet", "cae"])
def test_stopped_and_resumed_ends_with_the_same_bits(tmp_path: Path, method: str) -> None:
    whole = run(tmp_path / "whole", method, drop_path=0.3)
    for attempt, workers in ((4, 0), (5, 2), (4, 0), (3, 0)):  # stops after steps 4, 9, 13 and 16, the last
        assert run(tmp_path / "parts", method, drop_path=0.3, stop_at=attempt, workers=workers) == {}
    resumed = run(tmp_path / "parts", method, drop_path=0.3)  # nothing is left to train
    assert_equal_weights(whole["weights"], resumed["weights"])
    assert whole["images_seen"] == resumed["images_seen"] == 512
    assert whole["loss"] == resumed["loss"], "a metrics window that an interruption cut is part of the state"


def test_a_killed_run_repeats_what_was_not_saved(tmp_path: Path) -> None:
    """Weights in memory move on after the last checkpoint; the next start begins at that checkpoint."""
    whole = run(tmp_path / "whole", "mim", drop_path=0.3)
    run(tmp_path / "parts", "mim", drop_path=0.3, stop_at=6)
    newest = sorted((tmp_path / "parts" / "checkpoints").glob("*.pt"))[-1]
    assert newest.name == "step-000000006.pt"
    run(tmp_path / "parts", "mim", drop_path=0.3, stop_at=5)
    newest = sorted((tmp_path / "parts" / "checkpoints").glob("*.pt"))[-1]
    newest.with_suffix(".sha256").unlink()  # as if killed while saving step 11
    resumed = run(tmp_path / "parts", "mim", drop_path=0.3)
    assert_equal_weights(whole["weights"], resumed["weights"])


def test_killed_after_training_nothing_is_trained_again(tmp_path: Path) -> None:
    first = run(tmp_path, "mim", drop_path=0.3)
    lines = (tmp_path / "metrics.jsonl").read_text()
    again = run(tmp_path, "mim", drop_path=0.3)  # no record was written: the cell starts once more
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    assert again["loss"] == first["loss"]
    assert all((again["weights"][name] == value).all() for name, value in first["weights"].items())


def test_workers_change_nothing(tmp_path: Path) -> None:
    alone = run(tmp_path / "0", "pim", drop_path=0.3)
    helped = run(tmp_path / "2", "pim", drop_path=0.3, workers=2)
    assert_equal_weights(alone["weights"], helped["weights"])


def test_metrics_are_appended_line_by_line(tmp_path: Path) -> None:
    run(tmp_path, "mim", drop_path=0.0)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [10, 16]
    assert all(line["steps"] == 16 and line["loss"] > 0 and line["images_per_second"] > 0 for line in lines)
    assert lines[0]["lr"] > lines[1]["lr"] > 0
    assert lines[1]["epoch"] == 2.0


def test_bfloat16_trains_float32_weights(tmp_path: Path) -> None:
    exact = run(tmp_path / "fp32", "mim", drop_path=0.0)
    half = run(tmp_path / "bf16", "mim", drop_path=0.0, precision="bf16")
    assert all(value.dtype == torch.float32 for value in half["weights"].values())
    curves = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("fp32", "bf16")]
    assert curves[0] != curves[1]
    assert curves[0] == pytest.approx(curves[1], abs=0.02)
    assert exact["weights"].keys() == half["weights"].keys()


def train_rank(rank: int, port: int, folder: Path, method: str, drop_path: float, *rest: object) -> None:
    """One of two processes of engine_run.py; `rest` are its precision and perhaps the step to stop at."""
    accumulation, workers = 1, 0
    arguments = (folder, method, drop_path, 2, rank, accumulation, workers, *rest)
    _script().main([str(one) for one in arguments])


def train_as_two(folder: Path, *arguments: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "rendezvous").unlink(missing_ok=True)
    in_processes(train_rank, folder, *arguments, processes=2)


def test_two_processes_and_accumulation_give_the_same_training(tmp_path: Path) -> None:
    """BEiT's counts differ per image, so a mean of means would drift apart. Drop path is 0."""
    one = run(tmp_path / "one", "beit", drop_path=0.0)
    accumulated = run(tmp_path / "accumulated", "beit", drop_path=0.0, accumulation=4)
    train_as_two(tmp_path / "two", "beit", 0.0, "fp32")
    two = torch.load(tmp_path / "two" / "result.pt", weights_only=True)
    curve = [line["loss"] for line in metrics(tmp_path / "one")]
    for name, other in (("accumulated", accumulated), ("two", two)):
        assert [line["loss"] for line in metrics(tmp_path / name)] == pytest.approx(curve, abs=1e-5)
        for key, value in one["weights"].items():
            torch.testing.assert_close(other["weights"][key], value, atol=5e-5, rtol=0, msg=f"{name} {key}")


def test_a_contrast_among_images_is_the_same_in_micro_batches(tmp_path: Path) -> None:
    """Of a global batch of 32 and groups of 8; cut into single images it would be refused."""
    one = run(tmp_path / "one", "splitmask", drop_path=0.0)
    parts = run(tmp_path / "parts", "splitmask", drop_path=0.0, accumulation=4)
    assert parts["loss"] == pytest.approx(one["loss"], abs=1e-5)
    for key, value in one["weights"].items():
        torch.testing.assert_close(parts["weights"][key], value, atol=5e-5, rtol=0, msg=key)
    with pytest.raises(ProtocolViolation, match="in whole groups of 8 images"):
        run(tmp_path / "single", "splitmask", drop_path=0.0, accumulation=8)


def test_two_stopped_processes_resume_to_the_same_bits(tmp_path: Path) -> None:
    train_as_two(tmp_path / "whole", "mapet", 0.3, "fp32")
    train_as_two(tmp_path / "parts", "mapet", 0.3, "fp32", 13)
    assert not (tmp_path / "parts" / "result.pt").exists()
    asked_at = 1  # after step 15; heard after 16, the last, which is saved
    train_as_two(tmp_path / "parts", "mapet", 0.3, "fp32", asked_at)
    assert not (tmp_path / "parts" / "result.pt").exists()
    train_as_two(tmp_path / "parts", "mapet", 0.3, "fp32")
    whole, parts = (
        torch.load(tmp_path / name / "result.pt", weights_only=True) for name in ("whole", "parts")
    )
    assert_equal_weights(whole["weights"], parts["weights"])
    assert whole["loss"] == parts["loss"]


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_another_number_of_processes_goes_on_with_the_same_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, first: int, then: int
) -> None:
    """Stopped within a metrics window, whose sum the processes then share differently."""
    whole = run(tmp_path / "whole", "beit", drop_path=0.0)
    caplog.set_level("INFO")
    for processes, stop in ((first, [13]), (then, [])):
        if processes == 1:
            run(tmp_path / "parts", "beit", drop_path=0.0, stop_at=stop[0] if stop else None)
        else:
            train_as_two(tmp_path / "parts", "beit", 0.0, "fp32", *stop)
    assert [line["step"] for line in metrics(tmp_path / "parts")] == [10, 16]
    curves = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("whole", "parts")]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert whole["images_seen"] == 512
    assert ("going on from step 14 of 16, saved by 2 processes" in caplog.text) == (then == 1)


def save_slowly(rank: int, port: int, folder: Path) -> None:
    """One of two processes, of which the first takes long to save, as it does on a cluster's file system."""
    real = between_steps.save_checkpoint

    def slow(folder: Path, step: int, state: Mapping[str, Any]) -> None:
        (folder.parent / f"saved-{step}").touch()
        time.sleep(0.5)
        real(folder, step, state)

    between_steps.save_checkpoint = slow
    script: Any = _script()
    script.CHECKPOINT_SECONDS = 0
    script.main([str(one) for one in (folder, "mim", 0.0, 2, rank, 1, 0, "fp32")])


def test_saving_takes_its_share_of_the_time_in_several_processes_too(tmp_path: Path) -> None:
    """Those that do not save know nothing of its cost: only the first one's clock says when."""
    in_processes(save_slowly, tmp_path, processes=2)
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-2", "saved-16"}


class Explodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def loss(self, batch: Batch) -> Tensor:
        return (self.weight * torch.nan).sum()

    def positions(self, batch: Batch) -> Tensor:
        return torch.tensor(1)


class Sleeps(nn.Module):
    """Takes `seconds` for each step."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seconds = seconds

    def loss(self, batch: Batch) -> Tensor:
        time.sleep(self.seconds)
        return self.weight.sum()

    def positions(self, batch: Batch) -> Tensor:
        return torch.tensor(1)


class NoSchedule:
    def step_update(self, num_updates: int) -> None:
        return None


def train_simply(
    model: nn.Module, folder: Path, runtime: Runtime, *, steps: int, reading: float = 0.0
) -> None:
    """`reading` is how many seconds a batch takes."""

    def make_batch(positions: object, epoch: int) -> Batch:
        time.sleep(reading)
        return {}

    data = StepDataset(Steps(4 * steps, 4, 1, 0), make_batch, micro_batch=4)
    train(
        Training(
            model=model, data=data, optimizer=torch.optim.AdamW(model.parameters()), schedule=NoSchedule(),
            clip_grad_norm=None, seed=0, folder=folder,
        ),
        runtime,
    )  # fmt: skip


def test_another_precision_cannot_finish_what_one_began(tmp_path: Path) -> None:
    run(tmp_path, "mim", drop_path=0.0, stop_at=4)
    with pytest.raises(HarnessError, match="begun in fp32; go on with --precision fp32"):
        run(tmp_path, "mim", drop_path=0.0, precision="bf16")


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    told = r"^diverged at step 1 of 10: the loss is nan; no finite step before it is known;"
    with pytest.raises(TrainingDiverged, match=told):
        train_simply(Explodes(), tmp_path, Runtime(device="cpu", jobs=1, threads=1), steps=10)
    assert not list((tmp_path).glob("checkpoints/*.pt"))


def test_missing_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProtocolViolation, match="1 processes are running, the runtime says 2"):
        train_simply(Explodes(), tmp_path, Runtime(device="cpu", jobs=1, threads=1, processes=2), steps=10)


@pytest.mark.parametrize(("reading", "training"), [(0.01, 0.0), (0.0, 0.01)])
def test_each_line_says_how_long_the_loop_waited_for_data(
    tmp_path: Path, reading: float, training: float
) -> None:
    runtime = Runtime(device="cpu", jobs=1, threads=1)
    train_simply(Sleeps(training), tmp_path, runtime, steps=20, reading=reading)
    share = metrics(tmp_path)[1]["waiting_for_data"]  # the first line's time holds the start as well
    assert 0.5 < share <= 1 if reading else 0 <= share < 0.5
