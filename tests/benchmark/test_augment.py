"""Single-image augmentation: timm's transforms with the recipe's values, and draws that are keyed."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from timm.data import create_transform
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomCrop, RandomHorizontalFlip

from benchmark import augment, batches, engine, transforms
from benchmark.augment import AugmentedBatches, centre_crop, seeded_generators, training_transform
from benchmark.classification import evaluation_batches
from benchmark.data import open_part
from benchmark.image_part import ArrayPart, ImagePart
from benchmark.transforms import normalise
from protocols import load_protocol
from protocols.recipes import FineTuning, ImageEvaluation

FULL = load_protocol(str(Path(__file__).parent.parent / "full.yaml"))
DATA = FULL.data.model_copy(update={"mean": (0.2, 0.3, 0.4), "std": (0.3, 0.25, 0.2)})
FINETUNE = FULL.evaluations["finetune"]
NOTHING = {
    "horizontal_flip": None, "resized_crop_scale": None, "resized_crop_ratio": None, "interpolation": None,
    "evaluation_crop_fraction": None, "rand_augment": None, "erasing_probability": None, "erasing_mode": None,
    "mixup_alpha": None, "cutmix_alpha": None, "mixup_probability": None, "mixup_switch_probability": None,
    "mixup_group": None,
}  # fmt: skip


def recipe(**fields: Any) -> FineTuning:
    """The full recipe with some fields replaced, validated anew."""
    return FineTuning.model_validate({**FINETUNE.model_dump(), **fields})


def photographs() -> ArrayPart:
    """Twelve smooth colour images of 56 x 40, with sample ids far apart."""
    generator = np.random.default_rng(0)
    coarse = [Image.fromarray(each) for each in generator.integers(256, size=(12, 5, 7, 3), dtype=np.uint8)]
    arrays = np.stack([np.asarray(each.resize((56, 40), Image.Resampling.BICUBIC)) for each in coarse])
    ids = np.array([3, 10, 11, 400, 2**33, 77, 78, 79, 80, 5, 6, 2**40])
    names = tuple(str(each) for each in ids)
    return ArrayPart("photographs", "training", ("a", "b", "c"), ids, names, np.arange(12) % 3, arrays)


PHOTOGRAPHS = photographs()


def steps_of(recipe: ImageEvaluation) -> dict[type, Any]:
    """The transform's steps by their type."""
    transform = training_transform(recipe, DATA)
    return {type(step): step for step in transform.transforms}  # type: ignore[attr-defined]


def square(image: Image.Image) -> Tensor:
    """(3, 28, 28) uint8: the centred square of a 56 x 40 image, by hand."""
    cut = image.crop((8, 0, 48, 40)).resize((28, 28), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1)


def normalised(pixels: Tensor) -> Tensor:
    return normalise(pixels[None], DATA.mean, DATA.std)[0]


# What is done ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_whole_transform_is_timms_for_the_same_draws(interpolation: str) -> None:
    ours = training_transform(recipe(interpolation=interpolation, erasing_probability=0.6), DATA)
    timms = create_transform(
        28, is_training=True, scale=(0.08, 1.0), ratio=(0.75, 1.3333), hflip=0.5, color_jitter=None,
        auto_augment="rand-m9-mstd0.5", interpolation=interpolation, mean=DATA.mean, std=DATA.std,
        re_prob=0.6, re_mode="pixel", re_count=1,
    )  # fmt: skip
    for key in range(60):
        image = PHOTOGRAPHS.image(key % 12)
        with seeded_generators((key, key + 1, key + 2)):
            expected = timms(image)
        with seeded_generators((key, key + 1, key + 2)):
            assert torch.equal(ours(image), expected)


def test_every_value_of_the_recipe_reaches_its_transform() -> None:
    steps = steps_of(
        recipe(
            horizontal_flip=0.3,
            resized_crop_scale=(0.25, 0.75),
            resized_crop_ratio=(0.5, 2.0),
            interpolation="bilinear",
            rand_augment="rand-m7-n3-mstd0.25",
            erasing_probability=0.4,
            erasing_mode="rand",
        )
    )
    crop, policy, erasing = (
        steps[k] for k in (RandomResizedCropAndInterpolation, RandAugment, RandomErasing)
    )
    assert (crop.size, crop.scale, crop.ratio) == ((28, 28), (0.25, 0.75), (0.5, 2.0))
    assert crop.interpolation == InterpolationMode.BILINEAR
    assert steps[RandomHorizontalFlip].p == 0.3
    assert (policy.num_layers, len(policy.ops)) == (3, 15)
    for operation in policy.ops:
        assert (operation.magnitude, operation.magnitude_std, operation.prob) == (7, 0.25, 0.5)
        assert operation.kwargs["fillcolor"] == (51, 76, 102)
        assert operation.kwargs["resample"] == Image.Resampling.BILINEAR
        assert operation.hparams["translate_const"] == 12  # int(28 * 0.45)
    assert (erasing.probability, erasing.mode, erasing.device) == (0.4, "rand", "cpu")
    assert (erasing.min_count, erasing.max_count) == (1, 1)


def test_what_is_not_set_is_not_applied() -> None:
    plain = training_transform(recipe(**NOTHING), DATA)
    for position in range(12):
        image = PHOTOGRAPHS.image(position)
        assert torch.equal(plain(image), normalised(square(image)))


def test_a_flip_alone_mirrors_the_shared_square() -> None:
    flipped = training_transform(recipe(**NOTHING | {"horizontal_flip": 1.0}), DATA)
    image = PHOTOGRAPHS.image(0)
    assert torch.equal(flipped(image), normalised(square(image).flip(-1)))


def test_a_shift_moves_the_shared_square_over_black() -> None:
    shift = recipe(**NOTHING | {"crop_padding": 2, "erasing_probability": 0.0, "erasing_mode": "const"})
    assert (steps_of(shift)[RandomCrop].size, steps_of(shift)[RandomCrop].padding) == ((28, 28), 2)
    padded = torch.nn.functional.pad(square(PHOTOGRAPHS.image(1)), (2, 2, 2, 2))
    moved = [padded[:, top : top + 28, left : left + 28] for top in range(5) for left in range(5)]
    places = set()
    for key in range(40):
        with seeded_generators((key, key, key)):
            seen = training_transform(shift, DATA)(PHOTOGRAPHS.image(1))
        (place,) = [index for index, each in enumerate(moved) if torch.equal(normalised(each), seen)]
        places.add(place)
    assert len(places) > 15


@pytest.mark.parametrize(("mode", "spread"), [("const", False), ("pixel", True)])
def test_erasing_alone_fills_one_rectangle_of_the_normalised_square(mode: str, spread: bool) -> None:
    """Normalised first: a constant of 0 is the mean colour, and noise has no bounds of a pixel's."""
    erase = training_transform(recipe(**NOTHING | {"erasing_probability": 1.0, "erasing_mode": mode}), DATA)
    filled = []
    for key in range(60):
        image = PHOTOGRAPHS.image(key % 12)
        with seeded_generators((key, key, key)):
            changed = erase(image) != normalised(square(image))
        with seeded_generators((key, key, key)):
            erased = erase(image)
        rows, columns = changed.any(0).any(1).nonzero()[:, 0], changed.any(0).any(0).nonzero()[:, 0]
        inside = erased[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
        assert int(changed.any(0).sum()) == inside[0].numel(), "not one rectangle"
        filled.append(inside.flatten())
    values = torch.cat(filled)
    if spread:
        assert float(values.std()) == pytest.approx(1.0, abs=0.05)
        assert float(values.min()) < -2.5
        assert float(values.max()) > 2.5
    else:
        assert not values.any()


def test_grey_images_are_augmented_as_colour() -> None:
    part = open_part(FULL.data.name, "test", FULL.data.test)
    assert part.image(0).mode == "L"
    transform = training_transform(recipe(), DATA)
    assert transform(part.image(0)).shape == (3, 28, 28)
    (measured,) = evaluation_batches(part, recipe(), DATA)
    assert measured.shape == (len(part), 3, 28, 28)


@pytest.mark.parametrize("policy", ["rand-x3", "rand-m9.5", "rand-n1.5", "rand-t1", "rand", "augmix-m3"])
def test_a_policy_that_timm_would_misread_is_refused_by_the_schema(policy: str) -> None:
    with pytest.raises(ValidationError, match="rand_augment"):
        recipe(rand_augment=policy)


# Evaluation ------------------------------------------------------------------------------------------


def test_evaluation_cuts_the_centre_of_the_resized_image() -> None:
    """28 / 0.9 is 31 rounded down; 56 x 40 becomes 43 x 31, whose centre begins at (8, 2)."""
    ours = centre_crop(recipe(evaluation_crop_fraction=0.9), DATA)
    timms = create_transform(
        28, is_training=False, crop_pct=0.9, interpolation="bicubic", mean=DATA.mean, std=DATA.std
    )
    for position in range(12):
        image = PHOTOGRAPHS.image(position)
        by_hand = image.resize((43, 31), Image.Resampling.BICUBIC).crop((8, 2, 36, 30))
        expected = normalised(torch.from_numpy(np.array(by_hand)).permute(2, 0, 1))
        assert torch.equal(ours(image), expected)
        assert torch.equal(ours(image), timms(image))


def test_evaluation_uses_the_recipes_interpolation() -> None:
    image = PHOTOGRAPHS.image(0)
    by_hand = image.resize((39, 28), Image.Resampling.BILINEAR).crop((6, 0, 34, 28))
    ours = centre_crop(recipe(evaluation_crop_fraction=1.0, interpolation="bilinear"), DATA)(image)
    assert torch.equal(ours, normalised(torch.from_numpy(np.array(by_hand)).permute(2, 0, 1)))


def test_evaluation_without_a_fraction_is_the_shared_square() -> None:
    (ours,) = evaluation_batches(PHOTOGRAPHS, recipe(evaluation_crop_fraction=None), DATA)
    assert torch.equal(ours, normalise(torch.from_numpy(PHOTOGRAPHS.pixels(28)), DATA.mean, DATA.std))


# The draws -------------------------------------------------------------------------------------------


def augmented(*, seed: int = 7, images: ImagePart = PHOTOGRAPHS) -> AugmentedBatches:
    return AugmentedBatches(images, training_transform(recipe(), DATA), seed=seed)


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_an_images_augmentation_depends_on_nothing_else() -> None:
    together = augmented()(np.arange(12), 2)
    assert together["labels"].tolist() == PHOTOGRAPHS.labels.tolist()
    seed_all(1)
    for position in range(12):
        alone = augmented()(np.array([position]), 2)
        assert torch.equal(alone["inputs"][0], together["inputs"][position])
    order = np.array([5, 11, 0, 3])
    assert torch.equal(augmented()(order, 2)["inputs"], together["inputs"][order])


def test_the_same_image_is_drawn_for_by_its_id_epoch_and_seed() -> None:
    """Twelve copies of one image under ids of their own: every augmentation is another one."""
    copies = replace(PHOTOGRAPHS, arrays=np.repeat(PHOTOGRAPHS.arrays[:1], 12, axis=0))
    keys = [(7, 2), (7, 3), (8, 2)]
    seen = [augmented(images=copies, seed=seed)(np.arange(12), epoch)["inputs"] for seed, epoch in keys]
    assert len({each.numpy().tobytes() for each in torch.cat(seen)}) == 36


def test_augmenting_leaves_the_global_generators_alone() -> None:
    seed_all(5)
    undisturbed = (random.random(), random.gauss(0, 1), np.random.rand(), float(torch.rand(())))
    seed_all(5)
    augmented()(np.arange(12), 0)
    with pytest.raises(ZeroDivisionError), seeded_generators((1, 2, 3)):
        raise ZeroDivisionError
    assert (random.random(), random.gauss(0, 1), np.random.rand(), float(torch.rand(()))) == undisturbed


def test_generators_do_not_repeat_one_another() -> None:
    """`random` and numpy seeded with one key would draw the same numbers."""
    keys = augment.generator_keys(np.arange(200), epoch=0, seed=0, stream=augment.AUGMENT)
    draws = []
    for key in keys:
        with seeded_generators(key):
            draws.append((random.random(), np.random.rand(), float(torch.rand(()))))
    table = np.array(draws)
    assert np.abs(np.corrcoef(table.T) - np.eye(3)).max() < 0.2
    assert len(np.unique(table)) == 600


def test_no_two_uses_share_a_hash_stream() -> None:
    single = [0, 1, batches.ORDER, engine.DROP_PATH]
    many = [transforms.FLIP, transforms.SHIFT, transforms.JITTER, augment.AUGMENT, augment.MIX]
    assert len(set(many)) == len(many)
    assert min(many) * 64 > max(single)
