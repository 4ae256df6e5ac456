"""What was measured of steps: kept, read strictly, matched to the machine, and drawn out to other batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmark.layout import check_work_dir
from benchmark.plan import Cell, make_plan, select
from benchmark.runtime import Runtime
from benchmark.step_costs import (
    DamagedCosts,
    Kept,
    Machine,
    StepCost,
    Timing,
    costs_path,
    known_costs,
    of_machine,
    read_kept,
    step_shape,
    torch_version,
    write_kept,
)
from protocols import load_protocol
from tests.benchmark.made_costs import GB, GPU, step_cost

FAIR = load_protocol("fair300")
PLAN = make_plan(FAIR, select(FAIR))
CELL = next(one for one in PLAN if one.stage == "pretrain")


def cost(*timings: tuple[int, float, int | None], **values: Any) -> StepCost:
    return StepCost(
        shape="s",
        step="step",
        timings=tuple(Timing(images=n, seconds=s, peak_bytes=b) for n, s, b in timings),
        update_seconds=0.0,
        gradient_bytes=values.pop("gradient_bytes", 0),
        **values,
    )


def test_seconds_between_and_beyond_what_was_measured() -> None:
    one = cost((64, 0.2, None), (256, 0.5, None))
    assert one.seconds(64) == 0.2
    assert one.seconds(1) == 0.2, "below, the start of kernels takes as long"
    assert one.seconds(160) == pytest.approx(0.35)
    assert one.seconds(256) == 0.5
    assert one.seconds(1024) == pytest.approx(2.0), "above, at the larger one's rate, never better"
    assert cost((2, 1.0, None)).seconds(6) == pytest.approx(3.0)


def test_memory_is_a_line_through_what_was_measured() -> None:
    one = cost((64, 0.2, 10 * GB), (256, 0.5, 28 * GB), gradient_bytes=GB)
    assert one.bytes_per_image == pytest.approx(18 * GB / 192)
    assert one.bytes_fixed == pytest.approx(4 * GB)
    assert one.peak_bytes(1024) == pytest.approx(100 * GB)
    assert one.peak_bytes(1024, processes=2, accumulation=4) == pytest.approx(102 * GB)
    assert cost((2, 1.0, None), (4, 2.0, None)).peak_bytes(8) is None
    assert cost(out_of_memory_at=1).peak_bytes(1) is None
    assert cost((1, 1.0, GB), out_of_memory_at=2).peak_bytes(3) == pytest.approx(3 * GB)


def test_shapes_tell_apart_what_costs_differently() -> None:
    shapes: dict[str, set[str]] = {}
    for cell in PLAN:
        shape = step_shape(cell, FAIR)
        if shape is None:
            assert cell.stage == "tokenise"
            continue
        shapes.setdefault(cell.stage, set()).add(json.dumps(shape, sort_keys=True))
    # Per trunk: five methods; ViT-B also MaPeT at the four cutting points that Table 6 adds.
    assert {stage: len(found) for stage, found in shapes.items()} == {
        "pretrain": 5 * 3 + 4,
        "finetune": 3,
        "linear-probe": 3,
        "token-classification": 2,
    }


def test_what_was_measured_on_a_few_images_says_nothing_of_many() -> None:
    """A protocol under --set shares the file: 16 images' time and memory are no measure of 2048's."""
    few, fewer = (
        load_protocol("fair300", overrides=[f"pretraining.global_batch={batch}"]) for batch in (1024, 16)
    )
    assert step_shape(CELL, few) == step_shape(CELL, FAIR)
    assert step_shape(CELL, fewer) != step_shape(CELL, FAIR)


def test_tokens_of_another_tokenizer_and_seeds_cost_the_same() -> None:
    alike = [
        one
        for one in make_plan(FAIR, select(FAIR, methods=["mim"], trunks=["vit-t"], seeds=[0, 1]))
        if one.stage == "pretrain"
    ]
    assert len({one.id for one in alike}) == 4
    assert len({json.dumps(step_shape(one, FAIR)) for one in alike}) == 1


def machine(**values: Any) -> Machine:
    return GPU.model_copy(update={"torch": torch_version(), **values})


def kept(one: Machine, cell: Cell = CELL, **values: int) -> Kept:
    return Kept(machine=one, cost=step_cost(cell, FAIR, **values))


def runtime(device: str, precision: str = "bf16", threads: int = 1) -> Runtime:
    return Runtime.model_validate({"device": device, "precision": precision, "threads": threads, "jobs": 1})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = costs_path(tmp_path, "fair300")
    assert read_kept(path) == ()
    entries = (kept(machine()), kept(machine(precision="fp32"), bound=1))
    write_kept(path, entries)
    assert read_kept(path) == entries
    check_work_dir(tmp_path)  # a work dir with nothing else in it is one of ours
    found = of_machine(entries, machine()).of(CELL, FAIR)
    assert found == entries[0].cost
    other = next(one for one in PLAN if one.stage == "finetune")
    assert of_machine(entries, machine()).of(other, FAIR) is None


def test_the_newest_of_a_shape_counts() -> None:
    entries = (kept(machine()), kept(machine(), fixed=3 * GB))
    assert of_machine(entries, machine()).of(CELL, FAIR) == entries[1].cost


@pytest.mark.parametrize(
    ("asked", "entry", "is_known"),
    [
        (runtime("cuda"), {}, True),
        (runtime("cuda", threads=5), {}, True),
        (runtime("cuda", "fp32"), {}, False),
        (runtime("cpu"), {}, False),
        (runtime("cuda"), {"torch": "0.9"}, False),
        (runtime("cpu"), {"device": "cpu", "name": "Some CPU", "threads": 1}, True),
        (runtime("cpu", threads=2), {"device": "cpu", "name": "Some CPU", "threads": 1}, False),
        (runtime("cpu"), {"device": "cpu", "name": "Another CPU", "threads": 1}, False),
    ],
)
def test_only_what_was_measured_in_the_same_way_is_known(
    asked: Runtime, entry: dict[str, Any], is_known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmark.provenance.environment", lambda: {"cpu": "Some CPU"})
    monkeypatch.setattr("benchmark.step_costs._GPU_FACTS", tmp_path / "none")
    write_kept(costs_path(tmp_path, "p"), [kept(machine(**entry))])
    assert (known_costs(tmp_path, "p", asked) is not None) == is_known


def test_on_a_machine_with_gpus_only_theirs_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, those of the GPU that was measured last: a login node plans for its cluster."""
    write_kept(costs_path(tmp_path, "p"), [kept(machine(name="NVIDIA A")), kept(machine(name="NVIDIA B"))])
    facts = tmp_path / "facts"
    monkeypatch.setattr("benchmark.step_costs._GPU_FACTS", facts)
    found = known_costs(tmp_path, "p", runtime("cuda"))
    assert found is not None
    assert found.machine.name == "NVIDIA B"
    for name, expected in (("NVIDIA A", "NVIDIA A"), ("C", None)):
        (facts / "0000:01").mkdir(parents=True, exist_ok=True)
        (facts / "0000:01" / "information").write_text(f"Model: \t {name}\nIRQ: 1\n")
        found = known_costs(tmp_path, "p", runtime("cuda"))
        assert (found and found.machine.name) == expected


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "\x00\xff",
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"update_seconds": 0.02', '"update_seconds": "0.02"'),
        lambda text: text.replace('"update_seconds": 0.02', '"update_seconds": -1'),
        lambda text: text.replace('"images": 64', '"images": 0'),
        lambda text: text.replace('"images": 64', '"images": 256'),
        lambda text: text.replace('"step"', '"stop"'),
        lambda text: " " * 17 * 1024 * 1024,
    ],
)
def test_a_file_that_is_not_whole_is_refused(damage: Any, tmp_path: Path) -> None:
    path = costs_path(tmp_path, "fair300")
    write_kept(path, [kept(machine())])
    path.write_text(damage(path.read_text()))
    with pytest.raises(DamagedCosts, match=r"step-costs.json: damaged"):
        read_kept(path)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(DamagedCosts, match=r"delete it, or measure anew with plan --probe"):
        read_kept(path)
