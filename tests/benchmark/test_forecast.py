"""What a plan will cost: hours from FLOPs, schedules, weights and files, each against the real thing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark.checkpoint import save_checkpoint, save_weights
from benchmark.classification import write_predictions
from benchmark.data import open_part
from benchmark.forecast import (
    FEATURE_WIDTHS,
    PUBLISHED_WEIGHTS_BYTES,
    RECORD_BYTES,
    accelerator_hours,
    disk_use,
    method_parameters,
    packed_images_bytes,
    reported_hours,
    trunk_parameters,
    wall_hours,
)
from benchmark.plan import Cell, make_plan, select
from methods import build_method, list_methods, method_spec
from methods.trunk import build_trunk
from protocols import load_protocol
from protocols.files import write_atomically
from protocols.schema import Part, Protocol, TrunkSpec
from tests.error_settings import TINY, finished_run
from tokenizers.open_clip_features import OpenClipFeatures
from tokenizers.weights_files import clip_file

pytestmark = pytest.mark.usefixtures("boards_without_drawings")
HOUR = 3.6e15  # FLOPs of one hour at one TFLOP/s
PRETRAINED = [name for name in list_methods() if method_spec(name).pretrains]
TRUNKS = {
    "plain": TrunkSpec(image_size=28, patch_size=4, width=64, depth=4, heads=2),
    "one block": TrunkSpec(image_size=32, patch_size=16, width=48, depth=1, heads=3, mlp_ratio=2.5),
    "wide": TrunkSpec(image_size=64, patch_size=8, width=192, depth=3, heads=3, mlp_ratio=3.0),
    "vit-t": load_protocol("fair300").trunk_spec("vit-t", drop_path=0.1),
    "vit-b": load_protocol("fair300").trunk_spec("vit-b", drop_path=0.0),
}


def cell(name: str, hours: float, *parents: Cell) -> Cell:
    return Cell(
        stage="pretrain",
        slices=((name, ""),),
        parents=tuple(parent.id for parent in parents),
        train_flops=hours * HOUR,
    )


def wall(cells: Sequence[Cell], accelerators: int, **taken: int) -> float:
    hours = {cell.id: accelerator_hours(cell.train_flops, teraflops=1.0) for cell in cells}
    names = {dict(cell.slices).popitem()[0]: cell.id for cell in cells}
    return wall_hours(
        cells,
        hours=hours,
        accelerators=accelerators,
        taken={names[name]: number for name, number in taken.items()},
    )


def test_hours_are_flops_over_the_rate() -> None:
    assert accelerator_hours(7.2e18, teraflops=100) == pytest.approx(20.0)
    assert accelerator_hours(0.0, teraflops=100) == 0.0
    assert accelerator_hours(7.2e18, teraflops=200) == pytest.approx(10.0)


def test_a_chain_takes_the_sum_on_any_number() -> None:
    first = cell("a", 1)
    second = cell("b", 2, first)
    third = cell("c", 4, second)
    for accelerators in (1, 2, 8):
        assert wall([first, second, third], accelerators) == pytest.approx(7)


def test_independent_cells_side_by_side() -> None:
    cells = [cell(str(number), 2) for number in range(4)]
    assert [wall(cells, accelerators) for accelerators in (1, 2, 3, 4, 8)] == pytest.approx([8, 4, 4, 2, 2])


def test_long_chains_start_first() -> None:
    """3, 3, 2, 2, 2 on two end at 7, longest first; a long chain behind a short cell starts early."""
    assert wall([cell(name, hours) for name, hours in zip("abcde", (2, 2, 2, 3, 3), strict=True)], 2) == 7
    root = cell("root", 1)
    long = cell("long", 5, root)
    short = [cell(f"short {number}", 2) for number in range(3)]
    # root 0-1 and long 1-6 on one, the three short ones 0-6 on the other.
    assert wall([*short, root, long], 2) == pytest.approx(6)


def test_a_cell_waits_for_all_its_parents() -> None:
    one, two = cell("one", 1), cell("two", 3)
    child = cell("child", 2, one, two)
    assert wall([one, two, child], 2) == pytest.approx(5)
    assert wall([one, two, child], 1) == pytest.approx(6)


def test_parents_that_are_done_are_not_waited_for() -> None:
    done = cell("done", 100)
    assert wall([cell("child", 2, done)], 1) == pytest.approx(2)
    assert wall([], 3) == 0.0


def test_cells_that_cost_nothing_take_no_time() -> None:
    tokens = cell("tokens", 0)
    children = [cell(f"child {number}", 1, tokens) for number in range(3)]
    assert wall([tokens, *children], 3) == pytest.approx(1)


def test_a_cell_of_several_accelerators_waits_for_all_of_them() -> None:
    """`wide` takes 2 h, four others 1 h each and one accelerator."""
    wide, narrow = cell("wide", 2), [cell(f"n{number}", 1) for number in range(4)]
    assert wall([wide, *narrow], 4, wide=1) == pytest.approx(2)
    assert wall([wide, *narrow], 4, wide=3) == pytest.approx(3), "two beside it, then two"
    assert wall([wide, *narrow], 4, wide=4) == pytest.approx(3), "all after it"
    assert wall([wide, *narrow], 6, wide=4) == pytest.approx(2), "all beside it"


def test_nothing_overtakes_a_cell_that_waits_for_accelerators() -> None:
    """`first` holds one of 2 for 4 h; `wide` (3 h) of 2 is next, and the short ones wait behind it."""
    cells = [cell("first", 4), cell("wide", 3), cell("short", 2), cell("shorter", 1)]
    assert wall(cells, 2, wide=2) == pytest.approx(4 + 3 + 2)
    with pytest.raises(ValueError, match="a cell takes 3 of 2"):
        wall(cells, 2, wide=3)


def test_a_child_of_a_wide_cell_starts_when_it_ends() -> None:
    wide = cell("wide", 2)
    child = cell("child", 1, wide)
    assert wall([wide, child, cell("other", 3)], 2, wide=2) == pytest.approx(5)
    assert wall([wide, child], 2, wide=2, child=2) == pytest.approx(3)


def test_any_schedule_lies_within_its_bounds() -> None:
    """At least the work over the accelerators and the longest chain; at most both together (Graham)."""
    draw = random.Random(0)
    for _ in range(25):
        cells: list[Cell] = []
        chain: dict[str, float] = {}
        for number in range(draw.randint(1, 14)):
            parents = draw.sample(cells, min(len(cells), draw.randint(0, 2)))
            new = cell(str(number), draw.choice([0, 1, 2, 5]), *parents)
            own = new.train_flops / HOUR
            chain[new.id] = own + max((chain[parent.id] for parent in parents), default=0.0)
            cells.append(new)
        work, longest = sum(one.train_flops for one in cells) / HOUR, max(chain.values())
        for accelerators in (1, 2, 3):
            found = wall(cells, accelerators)
            assert max(longest, work / accelerators) <= found + 1e-9
            assert found <= work / accelerators + longest + 1e-9
        assert wall(cells, 1) == pytest.approx(work)
        assert wall(cells, len(cells)) == pytest.approx(longest)


@pytest.mark.parametrize("trunk", TRUNKS.values(), ids=TRUNKS)
def test_trunk_parameters_are_exact(trunk: TrunkSpec) -> None:
    with torch.device("meta"):
        model = build_trunk(trunk)
    assert trunk_parameters(trunk) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("protocol", "trunk"), [("mini", "vit-mini"), ("fair300", "vit-t")])
@pytest.mark.parametrize("name", PRETRAINED)
def test_method_parameters_are_near(name: str, protocol: str, trunk: str) -> None:
    spec = load_protocol(protocol).trunk_spec(trunk, drop_path=0.0)
    own = method_spec(name).resolve(load_protocol(protocol).method_values(name, trunk), trunk=spec)
    codes = 1000 if method_spec(name).uses_tokens else 0
    method = build_method(name, trunk=spec, codebook_size=codes, **own)
    real = sum(parameter.numel() for parameter in method.parameters())
    assert method_parameters(name, spec, own, codebook_size=codes) == pytest.approx(real, rel=0.02)


def test_scratch_has_the_trunk_alone() -> None:
    trunk = TRUNKS["plain"]
    assert method_parameters("scratch", trunk, {}, codebook_size=1000) == trunk_parameters(trunk)


def cells_of(protocol: Protocol, stage: str, **names: list[str]) -> list[Cell]:
    return [one for one in make_plan(protocol, select(protocol, **names)) if one.stage == stage]


def test_disk_of_tokens_and_predictions_of_a_run(tmp_path: Path) -> None:
    with finished_run(lambda work_dir: None)(tmp_path):
        protocol = load_protocol(str(TINY))
        (tokens,) = (tmp_path / "runs").glob("tokens/*/*/tokens.npy")
        (tokenise,) = cells_of(protocol, "tokenise")
        header = 128  # of an .npy file
        assert disk_use(tokenise, protocol).kept - RECORD_BYTES == tokens.stat().st_size - header
        # All shards are there until the store is written from them.
        assert disk_use(tokenise, protocol).while_running == tokens.stat().st_size - header
        for stage in ("pretrain", "linear-probe"):
            (made,) = cells_of(protocol, stage, methods=["mim"])
            folder = tmp_path / "runs" / "tiny" / "cells" / made.id
            real = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            # These cells are almost all record, log and metrics, for which a fixed size is set aside.
            assert 0 <= disk_use(made, protocol).kept - real <= RECORD_BYTES


def test_disk_of_many_predictions(tmp_path: Path) -> None:
    images = open_part("fashion-mnist-12k", "test", Part(split="test", start=0, count=4000))
    predicted = np.random.default_rng(0).integers(0, 10, len(images))
    write_predictions(tmp_path, images, predicted)
    real = (tmp_path / "predictions.npz").stat().st_size
    protocol = load_protocol("mini")
    (probe,) = cells_of(protocol, "linear-probe", methods=["scratch"])
    stated = disk_use(probe, protocol).kept - RECORD_BYTES
    assert real <= stated <= 8 * real, "an upper bound: ids of files are longer than those of an array"


@pytest.mark.parametrize("name", ["mapet", "cae"])
def test_disk_of_a_pretraining(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that stay, and the most that the checkpoints of a training that runs take at once."""
    protocol = load_protocol("mini")
    made = cells_of(protocol, "pretrain", methods=[name], tokenizers=["k-pixel"])[0]
    trunk = protocol.trunk_spec("vit-mini", drop_path=0.0)
    method = build_method(name, trunk=trunk, codebook_size=256, **dict(made.hyperparameters))
    save_weights(tmp_path / "backbone", method.export_backbone())
    save_weights(tmp_path / "method", method.state_dict())
    real = sum((tmp_path / file).stat().st_size for file in ("backbone", "method"))
    use = disk_use(made, protocol)
    assert use.kept - RECORD_BYTES == pytest.approx(real, rel=0.03)
    optimizer = torch.optim.AdamW(method.parameters())
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    most = 0

    def write(path: Path, content: bytes | str) -> None:
        nonlocal most  # the newest is written and the oldest still there
        write_atomically(path, content)
        most = max(most, sum(one.stat().st_size for one in path.parent.iterdir()))

    monkeypatch.setattr("benchmark.checkpoint.write_atomically", write)
    for step in (1, 2, 3):  # the newest two are kept
        save_checkpoint(
            tmp_path / "steps", step, {"model": method.state_dict(), "optimizer": optimizer.state_dict()}
        )
    assert use.while_running == pytest.approx(most, rel=0.07)


def test_disk_of_an_evaluation_while_it_runs() -> None:
    protocol = load_protocol("fair300")
    (finetune,) = cells_of(protocol, "finetune", methods=["scratch"], trunks=["vit-b"])
    (probe, *_) = cells_of(protocol, "linear-probe", methods=["mapet"], trunks=["vit-b"])
    weights = trunk_parameters(protocol.trunk_spec("vit-b", drop_path=0.0))
    assert disk_use(finetune, protocol).while_running == 4 * 3 * 3 * weights
    assert disk_use(probe, protocol).while_running == 0
    assert disk_use(finetune, protocol).kept == 50_000 * 24 + RECORD_BYTES + 4 * weights, "its classifier"
    cars = cells_of(protocol, "linear-probe", methods=["mapet"], evaluations=["stanford-cars"])
    assert {disk_use(one, protocol).kept for one in cars} == {8041 * 24 + RECORD_BYTES}
    kept = {one.part: disk_use(one, protocol).kept for one in cells_of(protocol, "tokenise")}
    assert kept == {
        None: 1_281_167 * 196 * 2 + PUBLISHED_WEIGHTS_BYTES + RECORD_BYTES,
        "test": 50_000 * 196 * 2 + RECORD_BYTES,
    }


def test_disk_of_the_features_that_a_codebook_is_fitted_on() -> None:
    """4,194,304 x 4096 float16 while the paper's k-CLIP is fitted, for the pre-training images alone."""
    protocol = load_protocol("fair300")
    use = {(one.tokenizer, one.part): disk_use(one, protocol) for one in cells_of(protocol, "tokenise")}
    tokens = 1_281_167 * 196 * 2
    assert use["k-clip", None].while_running == tokens + 4_194_304 * 4096 * 2
    assert use["vq-kd", None].while_running == tokens
    assert use["k-clip", "test"].while_running == 50_000 * 196 * 2
    trial = load_protocol("fair300", overrides=["data.pretraining.count=24", "data.training.count=24"])
    small = {(one.tokenizer, one.part): disk_use(one, trial) for one in cells_of(trial, "tokenise")}
    assert small["k-clip", None].while_running == 24 * 196 * 2 + 24 * 196 * 4096 * 2


@pytest.mark.parametrize("model", FEATURE_WIDTHS)
def test_feature_widths_are_those_of_the_networks(model: str) -> None:
    wanted = clip_file({"model": model, "weights": "openai"})
    assert OpenClipFeatures(model=model, image_size=64, wanted=wanted).width == FEATURE_WIDTHS[model]


def test_disk_of_packed_images() -> None:
    assert packed_images_bytes(load_protocol("fair300")) == 1_281_167 * 3 * 224 * 224


def test_reported_hours_are_the_papers() -> None:
    protocol = load_protocol("fair300")
    plan = make_plan(protocol, select(protocol))
    pretrain = 10 * 16 * 24 + 10 * 32 * 24 + 14 * 64 * 24
    finetune = 11 * 4 * 48 + 11 * 4 * 36 + 15 * 16 * 12
    assert reported_hours(plan, protocol) == pretrain + finetune == 39_600
    table6 = make_plan(protocol, select(protocol, views=["table6"]))
    assert reported_hours(table6, protocol) == 5 * (64 * 24 + 16 * 12)
    silent = [one for one in plan if one.stage not in ("pretrain", "finetune")]
    assert silent
    assert reported_hours(silent, protocol) is None, "of probes and tokens the paper says nothing"
    assert reported_hours(silent + plan[:2], protocol) == 16 * 24


def test_a_protocol_that_reports_nothing() -> None:
    protocol = load_protocol("mini")
    assert reported_hours(make_plan(protocol, select(protocol)), protocol) is None
