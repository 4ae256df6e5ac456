"""Steps are arithmetic: the same images at step t whoever asks, on however many processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from benchmark.batches import Batch, StepDataset, Steps
from benchmark.engine import Training, train
from benchmark.image_files import DamagedImage
from benchmark.runtime import Runtime
from protocols.errors import HarnessError, ProtocolViolation


def make_batch(positions: npt.NDArray[np.int64], epoch: int) -> Batch:
    return {"positions": torch.from_numpy(positions), "epoch": torch.full((len(positions),), epoch)}


def test_each_epoch_sees_whole_batches_of_distinct_images() -> None:
    steps = Steps(images=70, global_batch=16, epochs=3, seed=5)
    assert (steps.per_epoch, steps.total) == (4, 12)
    epochs = [np.concatenate([steps.positions(4 * e + i) for i in range(4)]) for e in range(3)]
    for seen in epochs:
        assert len(np.unique(seen)) == 64
        assert seen.min() >= 0
        assert seen.max() < 70
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_step_needs_no_steps_before_it() -> None:
    forward = Steps(images=70, global_batch=16, epochs=3, seed=5)
    walked = [forward.positions(step) for step in range(12)]
    for step in (11, 3, 7, 0):
        fresh = Steps(images=70, global_batch=16, epochs=3, seed=5)
        np.testing.assert_array_equal(fresh.positions(step), walked[step])
    other = Steps(images=70, global_batch=16, epochs=3, seed=6)
    assert not np.array_equal(other.positions(0), walked[0])


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_processes_and_accumulation_share_out_the_same_global_batch(
    processes: int, accumulation: int
) -> None:
    steps = Steps(images=70, global_batch=16, epochs=3, seed=5)
    runtime = Runtime(device="cpu", jobs=1, threads=1, processes=processes, accumulation=accumulation)
    parts = []
    for rank in range(processes):
        data = StepDataset(
            steps, make_batch, micro_batch=runtime.micro_batch(16), rank=rank, processes=processes
        )
        assert data.per_step == accumulation
        items = [data[9 * accumulation + part] for part in range(accumulation)]
        micro_batches = [batch for batch in items if not isinstance(batch, HarnessError)]
        assert all((batch["epoch"] == 2).all() for batch in micro_batches)
        parts += [batch["positions"] for batch in micro_batches]
    assert sorted(torch.cat(parts).tolist()) == sorted(steps.positions(9).tolist())


def test_a_split_that_is_not_exact_is_refused() -> None:
    runtime = Runtime(device="cpu", jobs=1, threads=1, processes=3)
    with pytest.raises(ProtocolViolation, match=r"3 processes \(--gpus-per-cell\) x 1 steps"):
        runtime.micro_batch(16)


def test_fewer_images_than_a_batch_is_refused() -> None:
    with pytest.raises(HarnessError, match="global batch of 16"):
        Steps(images=15, global_batch=16, epochs=1, seed=0)


def damaged(positions: npt.NDArray[np.int64], epoch: int) -> Batch:
    raise DamagedImage("train/n1/a.JPEG", OSError("image file is truncated"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_whoever_reads_it(workers: int, tmp_path: Path) -> None:
    """torch would turn an error with arguments of its own, raised in a worker, into another one."""
    steps = Steps(images=16, global_batch=4, epochs=1, seed=0)
    model = torch.nn.Linear(1, 1)
    training = Training(
        model=model, data=StepDataset(steps, damaged, micro_batch=4), clip_grad_norm=None, seed=0,
        optimizer=torch.optim.AdamW(model.parameters()), schedule=Unscheduled(), folder=tmp_path,
    )  # fmt: skip
    with pytest.raises(DamagedImage, match=r"train/n1/a.JPEG cannot be read as an image"):
        train(training, Runtime(device="cpu", jobs=1, threads=1, workers=workers))


class Unscheduled:
    def step_update(self, num_updates: int) -> None:
        return None
