"""What pre-training and fine-tuning compute: every value of the recipe, where it acts.

A test compares a watched training (conftest.py) with the protocol or with a computation by hand.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from benchmark.augment import AugmentedBatches, MixedBatches, training_transform
from benchmark.classification import Classification, backbone_of
from benchmark.plan import make_plan, select
from benchmark.transforms import color_jitter, jitter_draws, normalise, random_flip, random_shift
from methods.trunk import build_classifier
from protocols.recipes import FineTuning
from tokenizers.store import open_store

if TYPE_CHECKING:
    from tests.benchmark.conftest import Line


def block_rates(trunk: VisionTransformer) -> list[float]:
    """Every block's drop-path rate, of both its branches."""
    branches = [branch for block in trunk.blocks for branch in (block.drop_path1, block.drop_path2)]
    return [getattr(branch, "drop_prob", 0.0) for branch in branches]


def names_of(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def classifier_of(line: Line) -> VisionTransformer:
    model = line.watched["finetune"].training.model
    assert isinstance(model, Classification)
    assert isinstance(model.classifier, VisionTransformer)
    return model.classifier


# Every stage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "linear-probe"])
def test_every_step_uses_its_own_rate(line: Line, stage: str) -> None:
    """Step t of T: linear from warmup_lr over W steps, then half a cosine of T - W steps to min_lr."""
    recipe, watched = line.recipe(stage), line.watched[stage]
    per_epoch = watched.training.data.steps.images // recipe.global_batch
    total, warmup = per_epoch * recipe.epochs, round(recipe.warmup_epochs * per_epoch)
    assert len(watched.rates) == total
    scales = [group.get("lr_scale", 1.0) for group in watched.training.optimizer.param_groups]
    for step, rates in enumerate(watched.rates):
        if step < warmup:
            expected = recipe.warmup_lr + (recipe.peak_lr - recipe.warmup_lr) * step / warmup
        else:
            turn = math.cos(math.pi * (step - warmup) / (total - warmup))
            expected = recipe.min_lr + (recipe.peak_lr - recipe.min_lr) * (1 + turn) / 2
        assert rates == pytest.approx([expected * scale for scale in scales], rel=1e-6), step


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "linear-probe"])
def test_metrics_name_the_rate_that_was_used(line: Line, stage: str) -> None:
    lines = (line.context(stage).folder / "metrics.jsonl").read_text().splitlines()
    logged = {entry["step"]: entry["lr"] for entry in map(json.loads, lines)}
    rates = line.watched[stage].rates
    assert max(logged) == len(rates)
    assert logged == {step: pytest.approx(max(rates[step - 1])) for step in logged}


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "linear-probe"])
def test_the_optimiser_is_the_recipes(line: Line, stage: str) -> None:
    recipe, training = line.recipe(stage), line.watched[stage].training
    names = names_of(training.model)
    spared = {
        "pretrain": {"method.trunk.cls_token", "method.trunk.pos_embed"},
        "finetune": {"classifier.cls_token", "classifier.pos_embed"},
        "linear-probe": set(),
    }[stage]
    decays = {}
    for group in training.optimizer.param_groups:
        assert (group["betas"], group["eps"]) == (recipe.betas, recipe.eps)
        decays.update({names[id(parameter)]: group["weight_decay"] for parameter in group["params"]})
    assert decays == {
        name: recipe.weight_decay if parameter.ndim >= 2 and name not in spared else 0
        for name, parameter in training.model.named_parameters()
    }
    assert training.seed == 3


def test_gradients_are_clipped_where_the_recipe_says_so(line: Line) -> None:
    recipe = line.recipe("pretrain")
    assert recipe.clip_grad_norm is not None
    assert line.watched["pretrain"].norms == [pytest.approx(recipe.clip_grad_norm, rel=1e-3)] * 64
    for stage in ("finetune", "linear-probe"):
        assert line.watched[stage].training.clip_grad_norm is None
        assert max(line.watched[stage].norms) > recipe.clip_grad_norm


# Pre-training ----------------------------------------------------------------------------------------


def test_pretraining_batches_are_jittered_images_with_their_own_tokens(line: Line) -> None:
    context, training = line.context("pretrain"), line.watched["pretrain"].training
    data, images = line.protocol.data, context.images("pretraining")
    (store_path,) = [path for path in context.parent().artefacts if path.endswith(".json")]
    store = open_store((line.work_dir / store_path).parent)
    tokens = torch.from_numpy(store.tokens(store.rows(images.image_ids)))
    for step in (0, 9):  # of epochs 0 and 1
        batch = training.data[step]
        chosen = training.data.steps.positions(step)
        ids = torch.from_numpy(images.sample_ids[chosen])
        pixels = torch.from_numpy(images.pixels(data.image_size)[chosen])
        jittered = color_jitter(pixels, *jitter_draws(ids, strength=0.4, epoch=step // 8, seed=3))
        seen = training.model.images(batch)  # type: ignore[operator]
        torch.testing.assert_close(seen, normalise(jittered, data.mean, data.std))
        assert not torch.allclose(seen, normalise(pixels, data.mean, data.std), atol=0.01)
        assert torch.equal(batch["tokens"], tokens[torch.from_numpy(chosen)])
        assert torch.equal(batch["pattern"], training.model.method.draw(ids, step // 8, 3))  # type: ignore[operator, union-attr]


def test_pretraining_drops_paths_at_the_recipes_rate(line: Line) -> None:
    trunk = line.watched["pretrain"].training.model.method.trunk  # type: ignore[union-attr]
    assert block_rates(trunk) == pytest.approx([0, 0, 0.2, 0.2])  # type: ignore[arg-type]


def test_pretraining_exports_the_trained_trunk(line: Line) -> None:
    watched = line.watched["pretrain"]
    after = watched.training.model.state_dict()
    for name, value in line.export.items():
        assert torch.equal(value, after[f"method.trunk.{name}"]), name
    assert not torch.equal(after["method.trunk.pos_embed"], watched.before["method.trunk.pos_embed"])


def test_without_pretraining_a_row_starts_where_pretraining_starts(line: Line, tmp_path: Path) -> None:
    plan = make_plan(line.protocol, select(line.protocol, methods=["scratch"], seeds=[3]))
    for cell in plan:
        scratch = backbone_of(replace(line.context("finetune"), cell=cell, work_dir=tmp_path))
        for name, value in line.watched["pretrain"].before.items():
            if name.startswith("method.trunk."):
                assert torch.equal(scratch.pop(name.removeprefix("method.trunk.")), value), name
        assert scratch == {}


# Fine-tuning -----------------------------------------------------------------------------------------


def test_finetuning_starts_at_the_parents_trunk_with_a_fresh_seeded_head(line: Line) -> None:
    before = line.watched["finetune"].before
    expected = {name: value for name, value in line.export.items() if not name.startswith("norm.")}
    torch.manual_seed(3)
    fresh = build_classifier(line.context("finetune").trunk(drop_path=0.0), classes=10, backbone=None)
    assert not torch.equal(expected["pos_embed"], fresh.state_dict()["pos_embed"])
    for name in ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"):
        expected[name] = fresh.state_dict()[name]
    assert before.keys() == {f"classifier.{name}" for name in expected}
    for name, value in expected.items():
        assert torch.equal(before[f"classifier.{name}"], value), name


def test_finetuning_drops_paths_at_its_own_rate(line: Line) -> None:
    assert block_rates(classifier_of(line)) == pytest.approx([0, 0, 0.6, 0.6])


def test_finetuning_decays_the_rate_by_distance_from_the_head(line: Line) -> None:
    training = line.watched["finetune"].training
    names = names_of(training.model)
    scales = {
        names[id(parameter)].removeprefix("classifier."): group["lr_scale"]
        for group in training.optimizer.param_groups
        for parameter in group["params"]
    }
    distance = {"head": 0, "fc_norm": 0, "blocks.1": 1, "blocks.0": 2}
    for name, scale in scales.items():
        matching = [steps for prefix, steps in distance.items() if name.startswith(f"{prefix}.")]
        assert scale == pytest.approx(0.65 ** (matching[0] if matching else 3)), name
    assert len(scales) == len(names)


def test_finetuning_batches_are_shifted_and_flipped_labelled_images(line: Line) -> None:
    training, data = line.watched["finetune"].training, line.protocol.data
    images = line.context("finetune").images("training").first(128)
    assert training.data.steps.images == 128
    for step in (0, 5):  # of epochs 0 and 1
        batch = training.data[step]
        chosen, epoch = training.data.steps.positions(step), step // 4
        ids = torch.from_numpy(images.sample_ids[chosen])
        pixels = torch.from_numpy(images.pixels(data.image_size)[chosen])
        shifted = random_shift(pixels, ids, padding=2, epoch=epoch, seed=3)
        flipped = random_flip(shifted, ids, probability=0.5, epoch=epoch, seed=3)
        assert not torch.equal(shifted, pixels)
        assert not torch.equal(flipped, shifted)
        torch.testing.assert_close(batch["inputs"], normalise(flipped, data.mean, data.std))
        assert batch["labels"].tolist() == images.labels[chosen].tolist()


def test_finetuning_loss_smooths_labels(line: Line) -> None:
    """(1 - 0.1) of the label's nats and 0.1 of the mean over all classes."""
    training, classifier = line.watched["finetune"].training, classifier_of(line).eval()
    batch = training.data[0]
    with torch.no_grad():
        nats = -F.log_softmax(classifier(batch["inputs"]), dim=1)
        expected = 0.9 * nats.gather(1, batch["labels"][:, None]).mean() + 0.1 * nats.mean()
        loss = training.model.loss(batch)  # type: ignore[operator]
    torch.testing.assert_close(loss, expected)
    assert abs(float(expected - nats.gather(1, batch["labels"][:, None]).mean())) > 1e-3


def test_finetuning_predicts_without_augmentation_or_dropped_paths(line: Line) -> None:
    recipe = line.protocol.evaluations["finetune"]
    assert isinstance(recipe, FineTuning)
    data, images = line.protocol.data, line.context("finetune").images(recipe.evaluated_part)
    inputs = normalise(torch.from_numpy(images.pixels(data.image_size)), data.mean, data.std)
    assert not classifier_of(line).training, "the stage left it in training mode"
    with torch.no_grad():
        expected = classifier_of(line).eval()(inputs).argmax(dim=1)
    kept = line.predictions("finetune")
    assert kept["predicted"].tolist() == expected.tolist()
    assert kept["labels"].tolist() == images.labels.tolist()
    assert len(set(kept["predicted"].tolist())) > 1
    accuracy = 100 * np.mean(expected.numpy() == images.labels)
    assert line.results["finetune"].metrics["top1_percent"].value == pytest.approx(accuracy)


def test_the_full_recipe_trains_on_mixed_images_that_were_augmented_one_by_one(full_line: Line) -> None:
    training = full_line.watched["finetune"].training
    images = full_line.context("finetune").images("training").first(64)
    recipe = full_line.protocol.evaluations["finetune"]
    assert isinstance(recipe, FineTuning)
    augmented = AugmentedBatches(images, training_transform(recipe, full_line.protocol.data), seed=3)
    mixed = MixedBatches(augmented, recipe, sample_ids=images.sample_ids, classes=10, micro_batch=16, seed=3)
    for step in (0, 5):  # of epochs 0 and 1
        batch = training.data[step]
        chosen, epoch = training.data.steps.positions(step), step // 4
        expected = mixed(chosen, epoch)
        assert torch.equal(batch["inputs"], expected["inputs"])
        assert torch.equal(batch["labels"], expected["labels"])
        assert batch["labels"].shape == (16, 10)
        assert not torch.equal(batch["inputs"], augmented(chosen, epoch)["inputs"])


def test_the_full_recipe_smooths_soft_labels(full_line: Line) -> None:
    training, classifier = full_line.watched["finetune"].training, classifier_of(full_line).eval()
    batch = training.data[0]
    with torch.no_grad():
        nats = -F.log_softmax(classifier(batch["inputs"]), dim=1)
        expected = (nats * (0.9 * batch["labels"] + 0.1 / 10)).sum(dim=1).mean()
        loss = training.model.loss(batch)  # type: ignore[operator]
    torch.testing.assert_close(loss, expected)


def test_the_full_recipe_predicts_centre_crops(full_line: Line) -> None:
    data, images = full_line.protocol.data, full_line.context("finetune").images("test")
    # 28 x 28 at fraction 0.9: resized to 31 (31.1 rounded down), the centre begins at 1.5, which rounds to 2.
    crops = [
        np.array(image.convert("RGB").resize((31, 31), Image.Resampling.BICUBIC).crop((2, 2, 30, 30)))
        for image in images.images()
    ]
    inputs = normalise(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), data.mean, data.std)
    with torch.no_grad():
        expected = classifier_of(full_line).eval()(inputs).argmax(dim=1)
    kept = full_line.predictions("finetune")["predicted"]
    assert kept.tolist() == expected.tolist()
    assert len(kept) == 203


def test_images_of_parts_and_of_transfer_sets(full_line: Line) -> None:
    context = full_line.context("transfer")
    assert context.images("training").image_ids[0] == "train/0000000"
    there = context.images("training", transfer_set="elsewhere")
    assert (there.image_ids[0], there.image_ids[-1], len(there)) == ("train/0000512", "train/0000611", 100)
    assert context.images("test", transfer_set="elsewhere").sample_ids.tolist() == list(range(300, 390))
