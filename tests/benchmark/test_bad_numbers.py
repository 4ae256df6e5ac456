"""Training that leaves the finite numbers ends by the exact step, and nothing of it is kept or measured."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmark import between_steps, probe
from benchmark.batches import Batch, StepDataset, Steps
from benchmark.between_steps import TrainingDiverged
from benchmark.checkpoint import load_newest
from benchmark.classification import most_likely_classes, predict
from benchmark.engine import Training, train
from benchmark.fitting import report_fit
from benchmark.image_part import ArrayPart
from benchmark.interrupt import Interrupted, StopFlag
from benchmark.metrics import MetricsFile
from benchmark.process_group import process_count, process_rank
from benchmark.runtime import Runtime
from leaderboard.record import Metric
from protocols.errors import HarnessError
from tests.benchmark.forked_ranks import in_processes
from tokenizers.clustering import FitIteration

IMAGES, BATCH = 120, 4
STEPS = Steps(IMAGES, BATCH, 1, seed=0)
RUNTIME = Runtime(device="cpu", jobs=1, threads=1)
BAD_STEP = 17  # of 30, counted from 1: in the middle of the second window of ten
POISONED = int(STEPS.positions(BAD_STEP - 1)[3])  # the second process's, where there are two
PART = ArrayPart(
    data_set="made", name="training", classes=("a",), sample_ids=1000 + np.arange(IMAGES),
    image_ids=tuple(f"image-{one}" for one in range(IMAGES)), labels=np.zeros(IMAGES, dtype=np.int64),
    arrays=np.zeros((IMAGES, 2, 2), dtype=np.uint8),
)  # fmt: skip


class Poisoned(nn.Module):
    """A loss that one image makes NaN; or whose gradient alone it does, or the weights after its step."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.what = what

    def loss(self, batch: Batch) -> Tensor:
        is_bad = bool((batch["positions"] == POISONED).any())
        loss = self.weight.square().sum()
        if is_bad and self.what == "loss":
            return loss * torch.nan
        if is_bad and self.what == "gradient":
            return loss + (self.weight * 0).sum().sqrt()  # 0, and its slope there infinite
        return loss

    def positions(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["positions"]))


class Rates:
    """A hundredth, and in the bad step what the weights overflow by."""

    def __init__(self, optimizer: torch.optim.Optimizer, bad: int | None) -> None:
        self.optimizer, self.bad = optimizer, bad

    def step_update(self, num_updates: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = 3e38 if num_updates + 1 == self.bad else 0.01


def make_batch(positions: npt.NDArray[np.int64], epoch: int) -> Batch:
    return {"positions": torch.from_numpy(positions)}


def poisoned_training(
    folder: Path, what: str, *, steps: Steps = STEPS, clip: float | None = None, stop: StopFlag | None = None
) -> Training:
    torch.manual_seed(0)
    model = Poisoned(what)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Training(
        model=model,
        data=StepDataset(
            steps, make_batch, micro_batch=BATCH // process_count(), rank=process_rank(),
            processes=process_count(),
        ),
        optimizer=optimizer,
        schedule=Rates(optimizer, BAD_STEP if what == "weights" else None),
        clip_grad_norm=clip,
        seed=0,
        folder=folder,
        stop=stop or StopFlag(),
        images=PART,
    )  # fmt: skip


def message(folder: Path, what: str, *, runtime: Runtime = RUNTIME, **options: Any) -> str:
    with pytest.raises(TrainingDiverged) as raised:
        train(poisoned_training(folder, what, **options), runtime)
    return str(raised.value)


@pytest.mark.parametrize("clip", [None, 10.0])
@pytest.mark.parametrize(
    ("what", "said"), [("loss", "loss is nan"), ("gradient", "norm of the gradient is (inf|nan)")]
)
def test_the_exact_step_is_named_with_its_batch(
    tmp_path: Path, what: str, said: str, clip: float | None
) -> None:
    found = message(tmp_path, what, clip=clip)
    ids = [1000 + one for one in STEPS.positions(BAD_STEP - 1).tolist()]
    assert found.startswith(f"diverged at step {BAD_STEP} of 30: the ")
    assert re.search(said, found)
    facts = json.loads((tmp_path / "diverged.json").read_text())
    assert facts["sample_ids"] == ids
    assert facts["image_ids"] == [f"image-{one - 1000}" for one in ids]
    assert f"sample ids of its 4 images: {', '.join(map(str, ids))};" in found
    assert facts["step"] == BAD_STEP
    assert facts["last_finite"]["step"] == BAD_STEP - 1
    # weight' = weight (1 - 0.02) each step, of three weights that begin at 1
    assert facts["last_finite"]["loss"] == pytest.approx(3 * 0.98 ** (2 * (BAD_STEP - 2)), rel=1e-4)
    norm = 2 * math.sqrt(3) * 0.98 ** (BAD_STEP - 2)
    assert facts["last_finite"]["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert f"at step {BAD_STEP - 1}; learning rate 0.01" in found
    assert np.array_equal(facts["positions"], eval(facts["again"].partition("; ")[2].split(" gives")[0]))


@pytest.mark.parametrize("what", ["loss", "gradient", "weights"])
def test_no_checkpoint_holds_it_and_again_it_ends_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Whether it is saved after each step, or never, or goes on from a checkpoint: one and the same error."""
    never = message(tmp_path / "never", what)
    assert load_newest(tmp_path / "never" / "checkpoints") is None
    monkeypatch.setattr(between_steps, "SAVING_SHARE", math.inf)
    always = RUNTIME.model_copy(update={"checkpoint_seconds": 0.0})
    for _ in range(2):
        assert message(tmp_path / "always", what, runtime=always) == never
        saved = load_newest(tmp_path / "always" / "checkpoints")
        assert saved is not None
        assert saved["step"] == BAD_STEP - 1
        assert all(one.isfinite().all() for one in saved["model"].values())
    # Weights that a step's update spoils are seen in the next step's loss.
    assert never.startswith(f"diverged at step {BAD_STEP + (what == 'weights')} of 30: ")


def test_told_to_stop_it_does_not_save_weights_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(poisoned_training(tmp_path, "weights", stop=StopAt(BAD_STEP)), RUNTIME)
    assert load_newest(tmp_path / "checkpoints") is None
    assert message(tmp_path, "weights").startswith(f"diverged at step {BAD_STEP + 1} ")


class StopAt(StopFlag):
    """Has been told to stop from the `step`-th look on."""

    def __init__(self, step: int) -> None:
        self.step, self.looks = step, 0
        super().__init__()

    @property
    def raised(self) -> bool:
        self.looks += 1
        return self.looks >= self.step

    @raised.setter
    def raised(self, value: bool) -> None:
        assert not value


def test_weights_that_the_last_step_spoils_are_never_exported(tmp_path: Path) -> None:
    ends_there = Steps(BAD_STEP * BATCH, BATCH, 1, seed=0)
    found = message(tmp_path, "weights", steps=ends_there)
    assert found.startswith(f"diverged at step {BAD_STEP} of {BAD_STEP}: the weights are not finite after it")
    assert "learning rate 3e+38" in found
    assert load_newest(tmp_path / "checkpoints") is None


def diverge_as_one_of_two(rank: int, port: int, folder: Path) -> None:
    """One of two processes, of which the second alone has the poisoned image."""
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    two = RUNTIME.model_copy(update={"processes": 2})
    for what in ("loss", "gradient", "weights"):
        (folder / f"{what}-{rank}").write_text(message(folder / what, what, runtime=two))
    dist.destroy_process_group()


def test_two_processes_end_by_the_same_step_whoever_has_the_image(tmp_path: Path) -> None:
    in_processes(diverge_as_one_of_two, tmp_path, processes=2)
    for what in ("loss", "gradient", "weights"):
        first, second = ((tmp_path / f"{what}-{rank}").read_text() for rank in range(2))
        assert first == second
        assert first == message(tmp_path / "one", what), "what one process says"


# Evaluations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [predict, most_likely_classes])
def test_logits_that_are_not_finite_are_refused_by_their_images(measure: Any) -> None:
    logits = torch.zeros(7, 5)
    logits[2, 1], logits[6, 0] = torch.nan, torch.inf
    names = [f"image-{one}" for one in range(7)]
    told = {"device": "cpu", "image_ids": names}
    with pytest.raises(
        HarnessError, match=r"^the logits of 2 of 7 images are not finite.*: image-2, image-6;"
    ):
        measure(lambda batch: batch, logits.split(3), **told)
    logits = logits.nan_to_num(posinf=0)
    assert len(measure(lambda batch: batch, logits.split(3), **told)) == 7
    with pytest.raises(HarnessError, match="logits of 6 images were computed, and there are 7"):
        measure(lambda batch: batch, logits[1:].split(3), **told)


def test_features_that_are_not_finite_are_refused_by_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.zeros(IMAGES, 3)
    features[5, 2] = -torch.inf
    monkeypatch.setattr(probe, "features_of", lambda *_: features)
    nothing: Any = None
    with pytest.raises(HarnessError, match=r"^the features of the frozen trunk of 1 of 120 .*: image-5;"):
        probe.finite_features(PART, nothing, nothing, nothing)


def test_an_objective_of_k_means_that_is_not_finite_ends_the_fit(tmp_path: Path) -> None:
    iteration = FitIteration(
        restart=0, restarts=2, iteration=3, iterations=5, objective=1.5, seconds=0.1, imbalance=1.0, splits=0
    )
    report_fit(MetricsFile(tmp_path), iteration)
    with pytest.raises(HarnessError, match="objective of k-means is inf in iteration 3 of run 1"):
        report_fit(MetricsFile(tmp_path), replace(iteration, objective=math.inf))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_record_holds_a_number_that_is_none(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Metric(value=value, n=1, unit="%")
