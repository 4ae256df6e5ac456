"""What the fields of a recipe must agree on, as a file's author is told it: file, line, what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from protocols import load_protocol
from protocols.errors import HarnessError

Written = Callable[..., Path]

CROP = {"resized_crop_scale": "[0.5, 1.0]", "resized_crop_ratio": "[0.75, 1.5]", "interpolation": "bicubic"}
MIXUP = {
    "mixup_alpha": "0.8",
    "cutmix_alpha": "1.0",
    "mixup_probability": "1.0",
    "mixup_switch_probability": "0.5",
    "mixup_group": "16",
}


def with_fields(written: Written, evaluation: str, fields: dict[str, str], *without: str) -> Path:
    """tiny.yaml whose `evaluation` has these fields in the place of those of the same name."""
    path = written("tiny")
    head, opening, body = path.read_text().partition(f"\n  {evaluation}:\n")
    kept, replaced = [], [*fields, *without]
    for number, line in enumerate(body.splitlines(keepends=True)):
        is_own = "\n  linear-probe" not in "".join(body.splitlines(keepends=True)[: number + 1])
        if not (is_own and line.strip().split(":")[0] in replaced):
            kept.append(line)
    own = "".join(f"    {name}: {{value: {value}, source: test}}\n" for name, value in fields.items())
    path.write_text(head + opening + own + "".join(kept))
    return path


def without(fields: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in fields.items() if key != name}


RULES = [
    (
        "finetune",
        without(CROP, "interpolation"),
        "resized_crop_scale also needs interpolation",
    ),
    (
        "finetune",
        {"interpolation": "bilinear"},
        "interpolation also needs one of resized_crop_scale, evaluation_crop_fraction, rand_augment",
    ),
    ("finetune", {"evaluation_crop_fraction": "0.9"}, "evaluation_crop_fraction also needs interpolation"),
    ("finetune", {"evaluation_crop_fraction": "1.1"}, "less than or equal to 1, got 1.1"),
    (
        "finetune",
        {**CROP, "crop_padding": "0", "resized_crop_scale": "[0.5, 1.5]"},
        "resized_crop_scale [0.5, 1.5] is more than the image",
    ),
    (
        "finetune",
        {**CROP, "resized_crop_scale": "[0.9, 0.5]"},
        "the first of [0.9, 0.5] must not exceed the second",
    ),
    ("finetune", {**CROP, "resized_crop_ratio": "[0.0, 1.0]"}, "greater than 0, got 0.0"),
    ("finetune", CROP, "crop_padding and resized_crop_scale are two random crops; choose one"),
    ("finetune", {"horizontal_flip": "1.5"}, "less than or equal to 1, got 1.5"),
    ("finetune", {"interpolation": "nearest"}, "'bicubic' or 'bilinear', got 'nearest'"),
    ("finetune", {"evaluated_part": "training"}, "'validation' or 'test', got 'training'"),
    ("finetune", {"erasing_probability": "0.25"}, "erasing_probability also needs erasing_mode"),
    ("finetune", {"erasing_mode": "pixel"}, "erasing_mode also needs erasing_probability"),
    (
        "finetune",
        {"erasing_mode": "black", "erasing_probability": "0.1"},
        "'const', 'rand' or 'pixel', got 'black'",
    ),
    ("finetune", {"rand_augment": "augment-m9"}, "should match pattern"),
    (
        "finetune",
        without(MIXUP, "mixup_group"),
        "mixup_alpha, cutmix_alpha, mixup_probability, mixup_switch_probability also needs mixup_group",
    ),
    ("finetune", {**MIXUP, "mixup_group": "24"}, "global_batch 32 is not a multiple of mixup_group 24"),
    ("finetune", {**MIXUP, "mixup_group": "5"}, "multiple of 2, got 5"),
    ("finetune", {**MIXUP, "mixup_alpha": "0.0"}, "greater than 0, got 0.0"),
    ("finetune", {"layer_decay": "2"}, "less than or equal to 1, got 2"),
    ("finetune", {"label_smoothing": "1.0"}, "less than 1, got 1.0"),
    ("finetune", {"warmup_epochs": "2"}, "warmup_epochs 2.0 must be less than epochs 2"),
    ("finetune", {"warmup_lr": "0.1"}, "min_lr and warmup_lr must not exceed peak_lr"),
    ("finetune", {"schedule": "linear"}, "must be 'cosine', got 'linear'"),
    ("finetune", {"whiten": "true"}, "unknown key"),
    (
        "linear-probe",
        {"horizontal_flip": "0.5"},
        "whiten needs features that do not change: no random crop, no flip",
    ),
    ("linear-probe", CROP, "whiten needs features that do not change: no random crop, no flip"),
    ("linear-probe", {"features": "mean"}, "'patch-mean' or 'class-token', got 'mean'"),
    ("linear-probe", {"transfer_set": "cars"}, "names 'cars', which is no transfer set"),
    (
        "linear-probe",
        {"transfer_set": "cars", "evaluated_part": "validation"},
        "a transfer set has no validation images; evaluated_part must be test",
    ),
    ("linear-probe", {"layer_decay": "0.5"}, "unknown key"),
]


@pytest.mark.parametrize(("evaluation", "fields", "message"), RULES)
def test_rules_of_image_evaluations(
    written: Written, evaluation: str, fields: dict[str, str], message: str
) -> None:
    path = with_fields(written, evaluation, fields)
    with pytest.raises(HarnessError) as caught:
        load_protocol(str(path))
    told = str(caught.value)
    assert message in told
    lines = path.read_text().splitlines()
    first = lines.index(f"  {evaluation}:") + 1
    assert all(f"evaluations.{evaluation}" in line for line in told.splitlines()), told
    assert all(first <= int(line.split(":")[1]) <= first + len(fields) for line in told.splitlines()), told


@pytest.mark.parametrize(
    ("evaluation", "fields", "dropped"),
    [
        ("finetune", {**CROP, **MIXUP, "evaluation_crop_fraction": "0.9"}, "crop_padding"),
        (
            "finetune",
            {"erasing_probability": "0.25", "erasing_mode": "rand", "rand_augment": "rand-m9-mstd0.5"},
            "",
        ),
        ("finetune", {"horizontal_flip": "null", "layer_decay": "null"}, "crop_padding"),
        (
            "linear-probe",
            {**CROP, "horizontal_flip": "0.5", "whiten": "false", "features": "class-token"},
            "",
        ),
        ("linear-probe", {"evaluated_part": "validation", "horizontal_flip": "0.0"}, ""),
    ],
)
def test_recipes_that_agree(written: Written, evaluation: str, fields: dict[str, str], dropped: str) -> None:
    recipe = load_protocol(str(with_fields(written, evaluation, fields, dropped))).slice(
        f"evaluation:{evaluation}"
    )
    assert set(fields) <= set(recipe)
    assert dropped not in recipe


TOKENS = {
    "kind": "token-classification", "labelled_images": "128", "evaluated_part": "test", "epochs": "2",
    "warmup_epochs": "0", "global_batch": "32", "optimizer": "adamw", "betas": "[0.9, 0.999]", "eps": "1e-8",
    "weight_decay": "0.05", "peak_lr": "1e-3", "min_lr": "0", "warmup_lr": "0", "schedule": "cosine",
    "clip_grad_norm": "null", "label_smoothing": "0.1",
}  # fmt: skip
MLP = {"classifier": "mlp", "width": "16", "hidden_width": "16"}
VIT = {"classifier": "vit", "trunk": "vit-tiny-test", "drop_path": "0.1"}
EITHER = "classifier mlp takes width and hidden_width; vit takes trunk and drop_path"


def with_tokens(written: Written, fields: dict[str, str]) -> Path:
    path = written("tiny")
    own = "".join(
        f"    {name}: {{value: {value}, source: test}}\n" for name, value in {**TOKENS, **fields}.items()
    )
    path.write_text(f"{path.read_text()}  tokens:\n{own}")
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (without(MLP, "hidden_width"), "width also needs hidden_width"),
        (without(VIT, "drop_path"), "trunk also needs drop_path"),
        ({"classifier": "mlp"}, EITHER),
        ({"classifier": "vit"}, EITHER),
        ({**MLP, "classifier": "vit"}, EITHER),
        ({**VIT, "classifier": "mlp"}, EITHER),
        ({**MLP, **VIT}, EITHER),
        ({**VIT, "trunk": "vit-b"}, "names 'vit-b', which trunks does not define"),
        ({**MLP, "classifier": "rnn"}, "'mlp' or 'vit', got 'rnn'"),
        ({**MLP, "horizontal_flip": "0.5"}, "unknown key"),
    ],
)
def test_rules_of_token_classification(written: Written, fields: dict[str, str], message: str) -> None:
    path = with_tokens(written, fields)
    with pytest.raises(HarnessError, match=r"^other\.yaml:\d+: evaluations\.tokens") as caught:
        load_protocol(str(path))
    assert message in str(caught.value)
    assert int(str(caught.value).split(":")[1]) >= path.read_text().splitlines().index("  tokens:") + 1


@pytest.mark.parametrize("fields", [MLP, VIT])
def test_token_classifiers_that_agree(written: Written, fields: dict[str, str]) -> None:
    assert load_protocol(str(with_tokens(written, fields))).slice("evaluation:tokens").keys() >= fields.keys()


def test_validation_images_that_the_data_lacks(written: Written) -> None:
    path = written("fair300", ("evaluated_part: {value: test", "evaluated_part: {value: validation"))
    with pytest.raises(
        HarnessError, match=r"evaluations\.finetune: asks for validation images; data has none"
    ):
        load_protocol(str(path), locked=False)


def test_transfer_sets_keep_test_images_apart(written: Written) -> None:
    path = written("fair300", ("      split: {value: test, source: \"the data set's own split\"}",
                               "      split: {value: train, source: x}"))  # fmt: skip
    with pytest.raises(
        HarnessError, match=r"transfer_sets\.stanford-cars: test images \(train 0 to 8040\) overlap"
    ):
        load_protocol(str(path), locked=False)
