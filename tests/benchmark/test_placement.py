"""How many GPUs and micro-batches a cell gets: exact batches, whole mixup groups, memory, what is asked."""

from __future__ import annotations

from typing import Any

import pytest

from benchmark.forecast import cell_time
from benchmark.placement import DoesNotFit, memory_problems, place
from benchmark.plan import Cell, make_plan, select
from benchmark.runtime import Runtime
from benchmark.step_costs import StepCosts
from protocols import load_protocol
from protocols.errors import HarnessError, ProtocolViolation
from protocols.schema import Protocol
from tests.benchmark.made_costs import GB, costs_of, step_cost

FAIR = load_protocol("fair300")


def fair_cell(stage: str, *, evaluation: str | None = None, trunk: str = "vit-b") -> Cell:
    plan = make_plan(FAIR, select(FAIR, methods=["mapet"], tokenizers=["k-clip"], trunks=[trunk]))
    return next(one for one in plan if one.stage == stage and evaluation in (None, one.evaluation))


PRETRAIN = fair_cell("pretrain")  # 2048 images a step
FINETUNE = fair_cell("finetune", evaluation="finetune")  # 1024, in groups of 128
PROBE = fair_cell("linear-probe", evaluation="linear-probe")  # 1024, augmented
TOKENISE = fair_cell("tokenise")


def runtime(**values: Any) -> Runtime:
    return Runtime.model_validate({"device": "cuda", "jobs": 8, "threads": 1, **values})


def split(
    cell: Cell,
    *,
    gpus: int = 8,
    memory: int | None = 80 * GB,
    costs: StepCosts | None = None,
    protocol: Protocol = FAIR,
    **asked: int,
) -> tuple[int, int]:
    placed = place(cell, protocol, runtime(**asked), costs=costs, memory_bytes=memory, gpus=gpus)
    return placed.processes, placed.accumulation


@pytest.mark.parametrize(
    ("cell", "megabytes", "gpus", "expected"),
    [
        # 72 GB of each GPU are usable, 2 GB of them for what does not grow with the batch.
        (PRETRAIN, 30, 8, (1, 1)),  # 63 GB on one
        (PRETRAIN, 34, 8, (1, 1)),  # 71.6 GB
        (PRETRAIN, 35, 8, (2, 1)),  # 73.7 GB: two share it
        (PRETRAIN, 200, 8, (8, 1)),  # 256 images each, 53 GB and gradients
        (PRETRAIN, 200, 4, (4, 2)),  # 4 x 2 x 256
        (PRETRAIN, 200, 3, (2, 4)),  # 3 do not divide 2048
        (PRETRAIN, 200, 1, (1, 8)),
        (PRETRAIN, 3000, 8, (8, 16)),  # 16 images at a time
        (FINETUNE, 60, 8, (1, 1)),
        (FINETUNE, 100, 8, (2, 1)),
        (FINETUNE, 250, 8, (4, 1)),  # 8 groups over 4 GPUs
        (FINETUNE, 500, 8, (8, 1)),  # one group each
        (FINETUNE, 250, 7, (4, 1)),  # never 5, 6 or 7
        (FINETUNE, 500, 5, (4, 2)),
        (PROBE, 60, 8, (1, 1)),
    ],
)
def test_fewest_gpus_then_more_then_accumulation(
    cell: Cell, megabytes: int, gpus: int, expected: tuple[int, int]
) -> None:
    costs = costs_of([step_cost(cell, FAIR, per_image=megabytes * 10**6)])
    assert split(cell, gpus=gpus, costs=costs) == expected


@pytest.mark.parametrize("cell", [PRETRAIN, FINETUNE, PROBE], ids=["pretrain", "finetune", "probe"])
def test_every_split_is_exact_and_fits(cell: Cell) -> None:
    batch, group = (2048, 1) if cell is PRETRAIN else (1024, 128 if cell is FINETUNE else 1)
    for megabytes in (10, 50, 90, 170, 300, 520):
        cost = step_cost(cell, FAIR, per_image=megabytes * 10**6)
        for gpus in range(1, 11):
            processes, accumulation = split(cell, gpus=gpus, costs=costs_of([cost]))
            assert processes <= gpus
            micro_batch, rest = divmod(batch, processes * accumulation)
            assert rest == 0
            assert micro_batch % group == 0
            copies = (processes > 1) + (accumulation > 1)
            assert 2 * GB + megabytes * 10**6 * micro_batch + copies * GB // 2 <= 72 * GB


def test_gradients_that_wait_or_travel_count() -> None:
    """1024 images take 71.2 GB, and fit; not so beside a copy of the gradients of 1 GB."""
    cell = PRETRAIN
    for gradients, expected in ((GB // 2, (2, 1)), (GB, (4, 1))):
        cost = step_cost(cell, FAIR, fixed=2 * GB, per_image=67_500_000, gradients=gradients)
        assert split(cell, costs=costs_of([cost])) == expected


def test_a_batch_that_ran_out_of_memory_is_not_tried_again() -> None:
    costs = costs_of([step_cost(PRETRAIN, FAIR, per_image=1000, bound=512)])
    assert split(PRETRAIN, costs=costs) == (8, 1)
    assert split(PRETRAIN, costs=costs, gpus=4) == (4, 2), "512 on each of 4 ran out"


def test_what_is_asked_for_is_kept() -> None:
    costs = costs_of([step_cost(PRETRAIN, FAIR, per_image=30 * 10**6)])
    assert split(PRETRAIN, costs=costs) == (1, 1)
    assert split(PRETRAIN, costs=costs, gpus_per_cell=4) == (4, 1)
    assert split(PRETRAIN, costs=costs, accumulation=4) == (1, 4)
    assert split(PRETRAIN, costs=costs, gpus_per_cell=2, accumulation=2) == (2, 2)
    hungry = costs_of([step_cost(PRETRAIN, FAIR, per_image=200 * 10**6)])
    assert split(PRETRAIN, costs=hungry, gpus_per_cell=2) == (2, 4), "accumulation is derived"
    assert split(PRETRAIN, costs=hungry, accumulation=2) == (4, 2), "GPUs are derived"


def test_without_a_probe_it_is_as_asked() -> None:
    for cell in (PRETRAIN, FINETUNE, PROBE, TOKENISE):
        assert split(cell, memory=None) == (1, 1)
        assert split(cell, gpus_per_cell=4) == (4, 1)
    assert split(FINETUNE, accumulation=8) == (1, 8)
    unlike = costs_of([step_cost(FINETUNE, FAIR)])
    assert split(PRETRAIN, costs=unlike) == (1, 1), "another step's cost says nothing"


def test_tokenising_takes_processes_and_has_no_batch() -> None:
    assert split(TOKENISE, gpus_per_cell=7) == (7, 1)
    assert split(TOKENISE) == (1, 1)


def test_what_lies_ready_takes_one_gpu() -> None:
    """Features computed once, and tokens, take no memory that grows with the trunk."""
    mini = load_protocol("mini")
    plan = make_plan(mini, select(mini, methods=["mim"], evaluations=["linear-probe"]))
    plan += make_plan(mini, select(mini, evaluations=["token-mlp"]))
    for cell in plan:
        if cell.evaluation is not None:
            costs = costs_of([step_cost(cell, mini, per_image=GB)])
            assert split(cell, costs=costs, protocol=mini) == (1, 1)
            assert split(cell, costs=costs, protocol=mini, gpus_per_cell=2) == (2, 1)


@pytest.mark.parametrize(
    ("cell", "asked", "message"),
    [
        (PRETRAIN, {"gpus_per_cell": 3}, r"3 processes \(--gpus-per-cell\).*must be one of 1, 2, 4, 8, 16"),
        (FINETUNE, {"gpus_per_cell": 5}, r"in whole groups of 128 images; .*must be one of 1, 2, 4, 8$"),
        (FINETUNE, {"accumulation": 16}, "must be one of 1, 2, 4, 8$"),
        (FINETUNE, {"gpus_per_cell": 4, "accumulation": 4}, "must be one of 1, 2, 4, 8$"),
    ],
)
@pytest.mark.parametrize("is_measured", [True, False], ids=["measured", "unmeasured"])
def test_an_impossible_split_says_what_is_allowed(
    cell: Cell, asked: dict[str, int], message: str, is_measured: bool
) -> None:
    costs = costs_of([step_cost(cell, FAIR)]) if is_measured else None
    with pytest.raises(ProtocolViolation, match=message):
        split(cell, costs=costs, **asked)


def test_more_gpus_than_there_are() -> None:
    with pytest.raises(HarnessError, match="--gpus-per-cell 8: there are 4 to share; give 1 to 4"):
        split(PRETRAIN, gpus=4, gpus_per_cell=8)
    on_cpu = Runtime(device="cpu", jobs=1, threads=1, gpus_per_cell=2)
    placed = place(PRETRAIN, FAIR, on_cpu, costs=None, memory_bytes=None, gpus=0)
    assert placed.processes == 2, "a CPU holds as many processes as are asked for"


def problems(cost_bytes: int, *, bound: int | None = None, gpus: int = 8, **asked: Any) -> list[str]:
    """What of the pre-training and the fine-tuning does not fit, and the remedy."""
    plan = [TOKENISE, PRETRAIN, FINETUNE, FINETUNE]
    costs = costs_of([step_cost(one, FAIR, per_image=cost_bytes, bound=bound) for one in plan[1:]])
    found = memory_problems(plan, FAIR, runtime(**asked), costs=costs, memory_bytes=80 * GB, gpus=gpus)
    return [f"{one.what} | {one.remedy}" for one in found]


def test_what_does_not_fit_is_listed_once_with_what_would() -> None:
    assert problems(10**6) == []
    assert problems(200 * 10**6, gpus=1, precision="bf16") == []
    (one,) = problems(GB, precision="bf16")
    assert "finetune vit-b in micro-batches of 128 images (8 GPUs x 1 steps) needs 130.5 GB" in one
    assert "72.0 GB are usable | run it on GPUs with more memory" in one
    assert "bf16" not in one
    assert "--precision bf16" in problems(GB, precision="fp32")[0]
    (one,) = problems(200 * 10**6, gpus=2, accumulation=2, precision="bf16")
    assert "pretrain mapet vit-b in micro-batches of 512 images (2 GPUs x 2 steps) needs 105.4 GB" in one
    assert "leave out --accumulation: 2 GPUs x 4 steps fit" in one
    assert "with 1 when measured" in problems(GB, bound=1)[0]
    assert problems(10**6, gpus_per_cell=3) == [], "a batch that cannot be split is told elsewhere"


def test_a_cell_that_does_not_fit_stops_before_it_starts() -> None:
    costs = costs_of([step_cost(FINETUNE, FAIR, per_image=GB)])
    with pytest.raises(DoesNotFit, match="GPU memory: finetune vit-b") as caught:
        split(FINETUNE, costs=costs)
    assert caught.value.exit_code == 2


def test_the_time_of_a_cell_is_that_of_its_steps() -> None:
    """1,281,167 images, 625 steps of 2048 an epoch, 300 epochs, on 8 GPUs of 256 images, 0.34 + 0.02 s."""
    costs = costs_of([step_cost(PRETRAIN, FAIR, per_image=200 * 10**6)])
    time = cell_time(PRETRAIN, FAIR, runtime(), costs=costs, accelerators=8, teraflops=1.0)
    assert (time.accelerators, time.accumulation) == (8, 1)
    assert time.hours == pytest.approx(625 * 300 * 0.36 / 3600)
    assert time.accelerator_hours == pytest.approx(8 * time.hours)
    assert time.images_per_second == pytest.approx(256 / 0.36)
    alone = cell_time(PRETRAIN, FAIR, runtime(), costs=costs, accelerators=1, teraflops=1.0)
    assert alone.hours == pytest.approx(625 * 300 * (8 * 0.34 + 0.02) / 3600)
    unknown = cell_time(FINETUNE, FAIR, runtime(gpus_per_cell=2), costs=costs, accelerators=8, teraflops=5.0)
    assert unknown.images_per_second is None
    assert unknown.accelerator_hours == pytest.approx(FINETUNE.train_flops / 5e12 / 3600)
    assert unknown.hours == pytest.approx(unknown.accelerator_hours / 2)
