"""fair300 says what the paper says: its hyperparameter tables, value by value.

The numbers are copied from the tables of arXiv 2306.07346 that each dict names; what the text at hand
has lost stands in no table here.
"""

from __future__ import annotations

from typing import Any

import pytest

from protocols import load_protocol
from protocols.schema import Protocol

TRUNKS = ("vit-t", "vit-s", "vit-b")

# Table 7, pre-training: one column for each size, then what all share.
TABLE_7_SIZES = {
    "hidden size": (192, 384, 768),
    "FFN inner hidden size": (768, 1536, 3072),
    "attention heads": (3, 6, 12),
}
TABLE_7 = {
    "epochs": 300,
    "global_batch": 2048,
    "optimizer": "adamw",
    "eps": 1e-8,
    "betas": [0.9, 0.999],
    "peak_lr": 1.5e-3,
    "min_lr": 1e-5,
    "warmup_lr": 1e-6,
    "schedule": "cosine",
    "warmup_epochs": 10,
    "clip_grad_norm": 3.0,
    "drop_path": 0.1,
    "weight_decay": 0.05,
    "color_jitter": 0.4,
}
LAYERS, HEAD_SIZE, LAYER_SCALE = 12, 64, 0.1
# Table 8, fine-tuning.
TABLE_8_SIZES = {
    "peak_lr": (2.5e-4, 5e-3, 5e-4),
    "epochs": (300, 200, 100),
    "layer_decay": (None, 0.65, 0.65),
}
TABLE_8 = {
    "global_batch": 1024,
    "warmup_epochs": 20,
    "optimizer": "adamw",
    "eps": 1e-8,
    "betas": [0.9, 0.999],
    "min_lr": 1e-6,
    "warmup_lr": 1e-6,
    "schedule": "cosine",
    "weight_decay": 0.05,
    "label_smoothing": 0.1,
    "drop_path": 0.1,
    "clip_grad_norm": None,
    "erasing_probability": 0.25,
    "rand_augment": "rand-m9-mstd0.5",
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
}
# What Table 8 leaves to timm's defaults and to the reference configuration.
BESIDE_TABLE_8 = {
    "kind": "finetune",
    "labelled_images": 1281167,
    "evaluated_part": "test",
    "resized_crop_scale": [0.08, 1.0],
    "resized_crop_ratio": [3 / 4, 4 / 3],
    "interpolation": "bicubic",
    "horizontal_flip": 0.5,
    "erasing_mode": "pixel",
    "mixup_probability": 1.0,
    "mixup_switch_probability": 0.5,
    "mixup_group": 128,
    "evaluation_crop_fraction": 0.9,
}
# Supplementary D; learning rate and weight decay are BEiT's, for the text has lost them.
LINEAR_PROBE = {"epochs": 50, "global_batch": 1024, "optimizer": "adamw", "schedule": "cosine", "min_lr": 0.0}
BEIT_PROBE = {"peak_lr": 4e-3, "weight_decay": 1e-4}
# Supplementary D: accelerators and hours by stage and size.
COMPUTE = {
    "pretrain": ((16, 24.0), (32, 24.0), (64, 24.0)),
    "finetune": ((4, 48.0), (4, 36.0), (16, 12.0)),
}
TRANSFER = {"stanford-cars": (8144, 8041), "food-101": (75750, 25250), "fgvc-aircraft": (6667, 3333)}


@pytest.fixture(scope="module")
def fair300() -> Protocol:
    return load_protocol("fair300")


def test_trunks_are_table_7s(fair300: Protocol) -> None:
    assert fair300.names("trunks") == TRUNKS
    for position, name in enumerate(TRUNKS):
        trunk = fair300.trunks[name]
        assert trunk.width == TABLE_7_SIZES["hidden size"][position]
        assert trunk.width * trunk.mlp_ratio == TABLE_7_SIZES["FFN inner hidden size"][position]
        assert trunk.heads == TABLE_7_SIZES["attention heads"][position]
        assert (trunk.depth, trunk.width / trunk.heads, trunk.layer_scale) == (LAYERS, HEAD_SIZE, LAYER_SCALE)
        assert fair300.trunk_spec(name, drop_path=0.1).grid == 14


def test_pretraining_is_table_7s(fair300: Protocol) -> None:
    assert fair300.slice("pretraining") == TABLE_7


@pytest.mark.parametrize("position", range(3), ids=TRUNKS)
def test_fine_tuning_is_table_8s(fair300: Protocol, position: int) -> None:
    sizes = {name: values[position] for name, values in TABLE_8_SIZES.items()}
    assert fair300.slice(f"evaluation:finetune@{TRUNKS[position]}") == TABLE_8 | sizes | BESIDE_TABLE_8
    assert fair300.evaluation("finetune", TRUNKS[position]).epochs == sizes["epochs"]


def test_the_linear_probe_is_supplementary_d_s(fair300: Protocol) -> None:
    probe = fair300.slice("evaluation:linear-probe")
    stated = {**LINEAR_PROBE, **BEIT_PROBE, "features": "patch-mean", "whiten": False, "warmup_epochs": 0}
    assert {name: probe[name] for name in stated} == stated
    for name in BEIT_PROBE:
        assert fair300.sources[f"evaluations.linear-probe.{name}"].assumed


@pytest.mark.parametrize("name", TRANSFER)
def test_other_domains_are_probed_with_the_same_recipe(fair300: Protocol, name: str) -> None:
    own = {"labelled_images": TRANSFER[name][0], "transfer_set": name}
    assert fair300.slice(f"evaluation:{name}") == {**fair300.slice("evaluation:linear-probe"), **own}
    transfer_set = fair300.transfer_sets[name]
    assert (transfer_set.training.count, transfer_set.test.count) == TRANSFER[name]


def test_methods_are_section_5_1s(fair300: Protocol) -> None:
    """Counts of 196 patches; the cutting point counts the class token."""
    expected: dict[str, Any] = {
        "scratch": [{}] * 3,
        "mim": [{"mask_count": 75}] * 3,
        "beit": [{"mask_count": 75, "min_block": 16}] * 3,
        "pim": [{"cutting_point": point} for point in (50, 50, 60)],
        "mapet": [{"cutting_point": point} for point in (50, 50, 60)],
        "cae": [
            {
                "mask_count": 98, "min_block": 16, "regressor_depth": 4, "decoder_depth": 4,
                "decoder_width": width, "decoder_heads": heads, "alignment_weight": 2.0,
            }
            for width, heads in ((192, 3), (384, 6), (768, 12))
        ],
    }  # fmt: skip
    assert set(fair300.defaults.methods) == set(expected)
    for method, values in expected.items():
        assert [dict(fair300.method_values(method, trunk)) for trunk in TRUNKS] == values, method


def test_tokenizers_have_8192_codes_on_the_trunks_grid(fair300: Protocol) -> None:
    sizes = {
        name: (values["image_size"], values["codebook_size"]) for name, values in fair300.tokenizers.items()
    }
    assert sizes == {"k-clip": (448, 8192), "vq-kd": (224, 8192), "dall-e": (112, 8192)}
    k_clip = dict(fair300.tokenizers["k-clip"])
    assert (
        k_clip["sampled_features"] == k_clip["codebook_size"] * k_clip["max_points_per_centroid"] == 4194304
    )
    assert (k_clip["iterations"], k_clip["restarts"], k_clip["seed"]) == (20, 5, 1234)


def test_images_are_all_of_imagenets(fair300: Protocol) -> None:
    data = fair300.data
    assert (data.name, data.image_size) == ("imagenet-1k", 224)
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.std == (0.229, 0.224, 0.225)
    assert data.validation is None
    assert data.training == data.pretraining
    assert (data.training.split, data.training.start, data.training.count) == ("train", 0, 1281167)
    assert (data.test.split, data.test.start, data.test.count) == ("test", 0, 50000)


def test_token_classifiers_follow_vit_t_s_fine_tuning_for_100_epochs(fair300: Protocol) -> None:
    shared = ("warmup_epochs", "global_batch", "optimizer", "eps", "betas", "min_lr", "warmup_lr", "schedule",
              "weight_decay", "label_smoothing", "clip_grad_norm")  # fmt: skip
    for name, own in (
        ("token-mlp", {"classifier": "mlp", "width": 768, "hidden_width": 768}),
        ("token-vit-t", {"classifier": "vit", "trunk": "vit-t", "drop_path": 0.1}),
    ):
        assert fair300.slice(f"evaluation:{name}") == {
            **{field: TABLE_8[field] for field in shared}, **own,
            "kind": "token-classification", "labelled_images": 1281167, "evaluated_part": "test",
            "epochs": 100, "peak_lr": 2.5e-4,
        }  # fmt: skip
        assert all(fair300.sources[f"evaluations.{name}.{field}"].assumed for field in (*shared, "epochs"))


def test_reported_cost_is_supplementary_d_s(fair300: Protocol) -> None:
    assert fair300.reported_cost is not None
    assert "V100" in fair300.reported_cost.accelerator
    for stage, spent in COMPUTE.items():
        stages = fair300.reported_cost.stages[stage]
        assert tuple((stages[trunk].accelerators, stages[trunk].hours) for trunk in TRUNKS) == spent
    assert set(fair300.reported_cost.stages) == set(COMPUTE)
