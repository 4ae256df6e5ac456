"""A training that runs out of memory says which micro-batch would fit, and with that it trains the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from benchmark.batches import Batch
from benchmark.interrupt import StopFlag
from benchmark.out_of_memory import OutOfMemory, is_out_of_memory
from benchmark.recipe import train_recipe
from benchmark.runtime import Runtime
from protocols import load_protocol

PROTOCOL = load_protocol(str(Path(__file__).parents[1] / "tiny.yaml"))
RECIPE = PROTOCOL.pretraining.model_copy(update={"epochs": 1})
ON_A_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...")
ON_A_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"
)


class Limited(nn.Module):
    """A regression that holds at most `most` images at once, from its `spared`-th micro-batch on."""

    def __init__(self, most: int, error: Exception | None = None, *, spared: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))
        self.most, self.error, self.spared, self.passed = most, error, spared, 0

    def loss(self, batch: Batch) -> Tensor:
        self.passed += 1
        if self.passed > self.spared and len(batch["inputs"]) > self.most:
            assert self.error is not None
            raise self.error
        return (batch["inputs"] @ self.weight - 1).square().mean()

    def positions(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["inputs"]))


def make_batch(positions: npt.NDArray[np.int64], epoch: int) -> Batch:
    return {"inputs": torch.from_numpy(positions)[:, None] / 64 + torch.arange(5) / 5}


def trained(
    folder: Path, objective: nn.Module, recipe: Any = RECIPE, group: int = 1, **runtime: Any
) -> Tensor:
    context: Any = SimpleNamespace(
        runtime=Runtime(device="cpu", jobs=1, threads=1, **runtime), seed=0, folder=folder, stop=StopFlag(),
        ran={},
    )  # fmt: skip
    images: Any = range(64)  # as many
    train_recipe(
        context, recipe, objective=objective, weights=objective, undecayed=set(), images=images,
        make_batch=make_batch, group=group,
    )  # fmt: skip
    weight: Any = objective.weight
    return weight.detach()


@pytest.mark.parametrize("error", [ON_A_GPU, ON_A_CPU, MemoryError()], ids=["gpu", "cpu", "python"])
def test_it_ends_with_the_micro_batch_that_fits_and_trains_the_same_with_it(
    tmp_path: Path, error: Exception
) -> None:
    with pytest.raises(OutOfMemory) as raised:
        trained(tmp_path / "failed", Limited(11, error, spared=1))
    assert str(raised.value) == (
        "out of memory at step 2 of 2 with micro-batches of 32 images; 8 would fit: --accumulation 4; give "
        "the command again with it and --redo-failed; it goes on from the last checkpoint"
    )
    fitting = trained(tmp_path / "fitting", Limited(11, error), accumulation=4)
    whole = trained(tmp_path / "whole", Limited(32))
    torch.testing.assert_close(fitting, whole, atol=1e-6, rtol=0)


def test_groups_that_mixing_needs_are_not_parted(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match="; 16 would fit: --accumulation 2;"):
        trained(tmp_path, Limited(20, ON_A_GPU), group=8)
    with pytest.raises(
        OutOfMemory, match=r"no smaller cut of the global batch of 32 fits: .* --precision bf16"
    ):
        trained(tmp_path, Limited(7, ON_A_GPU), group=8)


def test_one_that_asked_for_little_is_told_the_next_less(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match="micro-batches of 8 images; 2 would fit: --accumulation 16;"):
        trained(tmp_path, Limited(3, ON_A_GPU), accumulation=4)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2 shapes"):
        trained(tmp_path, Limited(3, RuntimeError("mat1 and mat2 shapes cannot be multiplied")))


def test_what_the_allocator_truly_says_is_known() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        torch.empty(2**55)
    assert is_out_of_memory(raised.value)
