"""Mixup and CutMix inside groups of images: keyed draws, soft labels, and the loss of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from benchmark import finetune
from benchmark.augment import MIX, AugmentedBatches, MixedBatches
from benchmark.batches import Batch, StepDataset, Steps
from benchmark.classification import Classification
from benchmark.data import open_part
from benchmark.finetune import ShiftedBatches, training_batches
from benchmark.plan import make_plan, select
from benchmark.runtime import Runtime
from benchmark.stage import CellContext
from methods.patterns import keyed_hash
from protocols import load_protocol
from protocols.errors import HarnessError, ProtocolViolation
from protocols.recipes import FineTuning

FULL = load_protocol(str(Path(__file__).parent.parent / "full.yaml"))
FINETUNE = FULL.evaluations["finetune"]
LABELLED = open_part(FULL.data.name, "training", FULL.data.training).first(64)
NO_MIXUP = dict.fromkeys(
    ("mixup_alpha", "cutmix_alpha", "mixup_probability", "mixup_switch_probability", "mixup_group")
)
NO_SINGLE = dict.fromkeys(
    ("resized_crop_scale", "resized_crop_ratio", "interpolation", "evaluation_crop_fraction", "rand_augment",
     "erasing_probability", "erasing_mode")
)  # fmt: skip

CROP = {"resized_crop_scale": (0.5, 1.0), "resized_crop_ratio": (1.0, 1.0), "interpolation": "bicubic"}


def recipe(**fields: Any) -> FineTuning:
    """The full recipe with some fields replaced, validated anew."""
    return FineTuning.model_validate({**FINETUNE.model_dump(), **fields})


def context_of(work_dir: Path, **runtime: Any) -> CellContext:
    """The evaluation of a trunk that nothing was pre-trained for: it needs no parent."""
    plan = make_plan(FULL, select(FULL, methods=["scratch"], evaluations=["finetune"], seeds=[3]))
    (cell,) = plan
    settings = Runtime.model_validate({"device": "cpu", "jobs": 1, "threads": 1, **runtime})
    return CellContext(cell=cell, protocol=FULL, runtime=settings, work_dir=work_dir)


def plain(positions: npt.NDArray[np.int64], epoch: int) -> Batch:
    """Images that say which they are: every pixel its own number."""
    pixels = torch.arange(3 * 20 * 24).reshape(1, 3, 20, 24) / 2000
    inputs = pixels + torch.from_numpy(positions).float()[:, None, None, None]
    return {"inputs": inputs, "labels": torch.from_numpy(LABELLED.labels[positions])}


def mixed(recipe: FineTuning, *, micro_batch: int = 16, seed: int = 3) -> MixedBatches:
    return MixedBatches(
        plain, recipe, sample_ids=LABELLED.sample_ids, classes=10, micro_batch=micro_batch, seed=seed
    )


# The draws -------------------------------------------------------------------------------------------


def by_hand(positions: npt.NDArray[np.int64], *, epoch: int, seed: int) -> tuple[Tensor, Tensor, str]:
    """One group of 8: what the recipe's probabilities and alphas make of it, and which kind it was."""
    first = torch.tensor([LABELLED.sample_ids[positions[0]]])
    key = int(keyed_hash(seed, epoch, first, stream=64 * MIX + 1)) & (2**64 - 1)
    rng = np.random.RandomState([key & 0xFFFFFFFF, key >> 32])
    batch = plain(positions, epoch)
    images, others = batch["inputs"], batch["inputs"].flip(0)
    labels = torch.eye(10)[batch["labels"]]
    if rng.rand() >= 0.9:
        return images, labels, "unmixed"
    if rng.rand() >= 0.5:
        share = rng.beta(0.8, 0.8)
        return share * images + (1 - share) * others, share * labels + (1 - share) * labels.flip(0), "mixup"
    cut = np.sqrt(1 - rng.beta(1.0, 1.0))
    height, width = int(20 * cut), int(24 * cut)
    row, column = rng.randint(0, 20), rng.randint(0, 24)
    is_other = torch.zeros(20, 24, dtype=torch.bool)
    top, left = max(row - height // 2, 0), max(column - width // 2, 0)
    is_other[top : row + (height + 1) // 2, left : column + (width + 1) // 2] = True
    share = 1 - float(is_other.float().mean())
    labels = share * labels + (1 - share) * labels.flip(0)
    return torch.where(is_other, others, images), labels, "cutmix"


def test_each_group_is_mixed_as_computed_by_hand() -> None:
    kinds = []
    make_batch = mixed(recipe())
    for epoch in range(8):
        positions = np.random.default_rng(epoch).permutation(64)[:16]
        batch = make_batch(positions, epoch)
        assert batch["labels"].shape == (16, 10)
        torch.testing.assert_close(batch["labels"].sum(dim=1), torch.ones(16))
        for group in (slice(0, 8), slice(8, 16)):
            images, labels, kind = by_hand(positions[group], epoch=epoch, seed=3)
            torch.testing.assert_close(batch["inputs"][group], images, atol=1e-5, rtol=1e-6)
            torch.testing.assert_close(batch["labels"][group], labels, atol=1e-6, rtol=0)
            kinds.append(kind)
    assert {kind: kinds.count(kind) > 1 for kind in ("mixup", "cutmix")} == {"mixup": True, "cutmix": True}
    assert "unmixed" in kinds


def test_the_recipes_values_reach_timms_mixup() -> None:
    values = {
        "mixup_alpha": 0.3, "cutmix_alpha": 0.7, "mixup_probability": 0.6, "mixup_switch_probability": 0.2,
        "mixup_group": 4,
    }  # fmt: skip
    batches = mixed(recipe(**values))
    found = batches.mixup
    assert (found.mixup_alpha, found.cutmix_alpha, found.mix_prob, found.switch_prob) == (0.3, 0.7, 0.6, 0.2)
    assert (found.mode, found.num_classes, found.label_smoothing, batches.group) == ("batch", 10, 0.0, 4)


def test_draws_follow_seed_and_epoch_and_leave_numpy_alone() -> None:
    positions = np.arange(16)
    np.random.seed(5)
    undisturbed = np.random.rand()
    np.random.seed(5)
    first = mixed(recipe())(positions, 0)["inputs"]
    assert np.random.rand() == undisturbed
    assert torch.equal(mixed(recipe())(positions, 0)["inputs"], first)
    assert not torch.equal(mixed(recipe())(positions, 1)["inputs"], first)
    assert not torch.equal(mixed(recipe(), seed=4)(positions, 0)["inputs"], first)


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (1, 2)])
def test_processes_and_accumulation_do_not_move_the_draws(
    tmp_path: Path, processes: int, accumulation: int
) -> None:
    def batches(processes: int, accumulation: int) -> list[Batch]:
        context = context_of(tmp_path, processes=processes, accumulation=accumulation)
        make_batch = training_batches(LABELLED, recipe(), context)
        steps, size = Steps(64, 16, 2, seed=3), 16 // (processes * accumulation)
        parts = [
            StepDataset(steps, make_batch, micro_batch=size, rank=rank, processes=processes)
            for rank in range(processes)
        ]
        items = (part[5 * part.per_step + i] for part in parts for i in range(part.per_step))
        return [batch for batch in items if not isinstance(batch, HarnessError)]

    (whole,), (first, second) = batches(1, 1), batches(processes, accumulation)
    for name in ("inputs", "labels"):
        assert torch.equal(torch.cat([first[name], second[name]]), whole[name])


def test_micro_batches_that_cut_groups_are_refused(tmp_path: Path) -> None:
    message = r"micro-batches of 4 images .* groups of 8; choose processes x accumulation .* divide 2$"
    for settings in ({"processes": 4}, {"accumulation": 4}, {"processes": 2, "accumulation": 2}):
        with pytest.raises(ProtocolViolation, match=message):
            finetune.run(context_of(tmp_path, **settings))
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({}, (MixedBatches, AugmentedBatches)),
        (NO_SINGLE, (MixedBatches, ShiftedBatches)),
        (NO_MIXUP, (AugmentedBatches,)),
        (NO_MIXUP | NO_SINGLE, (ShiftedBatches,)),
        (NO_MIXUP | NO_SINGLE | {"crop_padding": 2}, (ShiftedBatches,)),
        (NO_MIXUP | NO_SINGLE | {"rand_augment": "rand-m9-mstd0.5"}, (AugmentedBatches,)),
        (NO_MIXUP | NO_SINGLE | {"erasing_probability": 0.25, "erasing_mode": "pixel"}, (AugmentedBatches,)),
        (NO_MIXUP | NO_SINGLE | CROP, (AugmentedBatches,)),
    ],
)  # fmt: skip
def test_a_recipe_is_served_image_by_image_only_where_it_must(
    tmp_path: Path, fields: dict[str, Any], kinds: tuple[type, ...]
) -> None:
    batches = training_batches(LABELLED, recipe(**fields), context_of(tmp_path))
    found = [batches, batches.batches] if isinstance(batches, MixedBatches) else [batches]
    assert tuple(type(each) for each in found) == kinds


def test_whole_tensors_without_shift_or_flip_are_the_images(tmp_path: Path) -> None:
    still = recipe(**NO_MIXUP | NO_SINGLE | {"horizontal_flip": None})
    batch = training_batches(LABELLED, still, context_of(tmp_path))(np.arange(5), 1)
    pixels = torch.from_numpy(LABELLED.pixels(28)[:5]).float() / 255
    torch.testing.assert_close(batch["inputs"], (pixels - 0.286) / 0.353)


# The loss --------------------------------------------------------------------------------------------


def logits_and_labels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(16, 10, generator=generator), torch.randint(10, (16,), generator=generator)


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0)])
def test_smoothing_in_the_loss_is_timms_smoothing_before_mixing(alphas: tuple[float, float]) -> None:
    logits, labels = logits_and_labels()
    targets = []
    for smoothing in (0.1, 0.0):
        np.random.seed(2)
        timms = Mixup(alphas[0], alphas[1], label_smoothing=smoothing, num_classes=10)
        targets.append(timms(torch.zeros(16, 3, 28, 28), labels)[1])
    smoothed, soft = targets
    assert 0.02 < float(soft.max(dim=1).values.min()) < 0.98, "nothing was mixed"
    expected = SoftTargetCrossEntropy()(logits, smoothed)
    ours = Classification(nn.Identity(), label_smoothing=0.1).loss({"inputs": logits, "labels": soft})
    torch.testing.assert_close(ours, expected)
    assert abs(float(SoftTargetCrossEntropy()(logits, soft) - expected)) > 1e-2


def test_soft_labels_of_one_class_are_hard_labels() -> None:
    logits, labels = logits_and_labels()
    objective = Classification(nn.Identity(), label_smoothing=0.1)
    soft = {"inputs": logits, "labels": torch.eye(10)[labels]}
    hard = {"inputs": logits, "labels": labels}
    torch.testing.assert_close(objective.loss(soft), objective.loss(hard))
    assert int(objective.positions(soft)) == int(objective.positions(hard)) == 16


def test_accumulation_steps_give_the_same_losses(tmp_path: Path) -> None:
    """fp32, no dropped paths: the whole fine-tuning of the full recipe, and its weights."""
    losses, predicted = [], []
    for accumulation in (1, 2):
        context = context_of(tmp_path / str(accumulation), accumulation=accumulation)
        finetune.run(context)
        lines = (context.folder / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
        with np.load(context.folder / "predictions.npz") as archive:
            predicted.append(archive["predicted"].tolist())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert predicted[0] == predicted[1]
