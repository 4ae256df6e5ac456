"""What the engine does to one step: the clip, the schedule's step, and the seed of dropped paths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmark.batches import Batch, StepDataset, Steps
from benchmark.engine import Training, train
from benchmark.runtime import Runtime

STEPS = 4


class Steep(nn.Module):
    """A loss with a gradient of 1e6 in each of four weights; notes the seed that each step starts from."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.seeds: list[int] = []

    def loss(self, batch: Batch) -> Tensor:
        self.seeds.append(torch.initial_seed())
        return 1e6 * self.weight.sum()

    def positions(self, batch: Batch) -> Tensor:
        return torch.tensor(1)


class Noted:
    """A schedule that notes which steps it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def step_update(self, num_updates: int) -> None:
        self.asked.append(num_updates)


def descend(folder: Path, *, clip: float | None = 1.0, seed: int = 0) -> tuple[Steep, Noted]:
    """Plain descent at rate 1: the weights move by exactly what the clip leaves of the gradient."""
    model, schedule = Steep(), Noted()
    training = Training(
        model=model,
        data=StepDataset(Steps(2 * STEPS, 2, 1, seed), lambda positions, epoch: {}, micro_batch=2),
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        schedule=schedule,
        clip_grad_norm=clip,
        seed=seed,
        folder=folder,
    )
    train(training, Runtime(device="cpu", jobs=1, threads=1))
    return model, schedule


@pytest.mark.parametrize("clip", [0.5, 3.0])
def test_a_huge_gradient_moves_the_weights_by_the_clip(tmp_path: Path, clip: float) -> None:
    model, _ = descend(tmp_path, clip=clip)
    assert float(model.weight.detach().norm()) == pytest.approx(STEPS * clip, rel=1e-4)


def test_without_a_clip_the_gradient_is_left_alone(tmp_path: Path) -> None:
    model, _ = descend(tmp_path, clip=None)
    assert model.weight.detach().tolist() == pytest.approx([-1e6 * STEPS] * 4)


def test_the_schedule_is_asked_for_each_step_once_from_zero(tmp_path: Path) -> None:
    _, schedule = descend(tmp_path)
    assert schedule.asked == list(range(STEPS))


def test_dropped_paths_differ_by_step_seed_and_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that dropped the same paths would not be one larger batch."""
    first = descend(tmp_path / "first")[0].seeds
    assert descend(tmp_path / "again")[0].seeds == first
    other_seed = descend(tmp_path / "seed", seed=1)[0].seeds
    monkeypatch.setattr("benchmark.engine.process_rank", lambda: 1)
    other_process = descend(tmp_path / "process")[0].seeds
    assert len({*first, *other_seed, *other_process}) == 3 * STEPS
