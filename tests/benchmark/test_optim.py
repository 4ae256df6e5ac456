"""The recipe as the optimiser has it: groups, decay, layer-wise rates, and every step's rate."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmark.batches import Steps
from benchmark.optim import build_optimizer, build_schedule
from methods import build_method
from methods.trunk import build_classifier
from protocols import load_protocol
from protocols.schema import TrunkSpec

TRUNK = TrunkSpec(image_size=32, patch_size=8, width=24, depth=12, heads=3)
MINI = load_protocol("mini")


def test_decayed_and_undecayed_parameters() -> None:
    method = build_method("mapet", trunk=TRUNK, codebook_size=9, cutting_point=5, seed=0)
    optimizer = build_optimizer(method, MINI.pretraining, undecayed=method.no_weight_decay())
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    decayed, undecayed = set(), set()
    for group in optimizer.param_groups:
        assert group["lr"] == MINI.pretraining.peak_lr
        assert (group["betas"], group["eps"]) == (MINI.pretraining.betas, MINI.pretraining.eps)
        (decayed if group["weight_decay"] else undecayed).update(names[id(p)] for p in group["params"])
        assert group["weight_decay"] in (0, MINI.pretraining.weight_decay)
    assert decayed | undecayed == set(names.values())
    expected = {name for name, parameter in method.named_parameters() if parameter.ndim >= 2}
    assert decayed == expected - {"trunk.pos_embed", "trunk.cls_token"}
    assert "query_token" in decayed


def test_layer_decay_matches_the_golden() -> None:
    path = Path(__file__).parent.parent / "golden" / "layer_decay_vit_b_065.json"
    golden = json.loads(path.read_text())["timm_param_groups_layer_decay_lr_scale(0.6.11 and 1.0.31)"]
    model = build_classifier(TRUNK, classes=10, backbone=None)
    recipe = MINI.evaluations["finetune"]
    optimizer = build_optimizer(model, recipe, undecayed=set(model.no_weight_decay()), layer_decay=0.65)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            key = ".".join(name.split(".")[:2]) if name.startswith("blocks") else name.split(".")[0]
            if key not in golden:
                key = next(known for known in golden if known.startswith("stem"))
            assert group["lr_scale"] == pytest.approx(golden[key], rel=1e-9), name


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_learning_rates_of_every_step(layer_decay: float | None) -> None:
    """Warm-up from warmup_lr, the peak exactly at its end, a cosine to min_lr, scaled in each group."""
    recipe = MINI.pretraining.model_copy(update={"epochs": 10, "warmup_epochs": 2.0})
    model = build_classifier(TRUNK, classes=10, backbone=None)
    optimizer = build_optimizer(model, recipe, undecayed=set(), layer_decay=layer_decay)
    steps = Steps(images=160, global_batch=32, epochs=10, seed=0)
    schedule = build_schedule(optimizer, recipe, steps)
    for step in range(steps.total):
        schedule.step_update(step)
        if step < 10:
            expected = recipe.warmup_lr + step / 10 * (recipe.peak_lr - recipe.warmup_lr)
        else:
            share = 0.5 * (1 + math.cos(math.pi * (step - 10) / 40))
            expected = recipe.min_lr + share * (recipe.peak_lr - recipe.min_lr)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(expected * group.get("lr_scale", 1.0), rel=1e-9), step


def test_the_schedule_is_a_function_of_the_step() -> None:
    recipe = MINI.pretraining
    steps = Steps(images=6000, global_batch=64, epochs=recipe.epochs, seed=0)
    rates = []
    for path in ([7, 100, 250], [250]):
        model = build_classifier(TRUNK, classes=10, backbone=None)
        optimizer = build_optimizer(model, recipe, undecayed=set())
        schedule = build_schedule(optimizer, recipe, steps)
        for step in path:
            schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1]
