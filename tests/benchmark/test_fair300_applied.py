"""The paper's recipes in the objects that would run: read off them, compared with the paper's numbers.

Steps are counted by hand from ILSVRC 2012's 1,281,167 images. Nothing is trained.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from timm.data import RandomResizedCropAndInterpolation
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.transforms import CenterCrop, InterpolationMode, Normalize, RandomHorizontalFlip, Resize

from benchmark.augment import MixedBatches, centre_crop, training_transform
from benchmark.batches import Steps
from benchmark.optim import build_optimizer, build_schedule
from methods import build_method
from methods.cae import ContextAutoencoder
from methods.trunk import build_classifier
from protocols import load_protocol
from protocols.recipes import FineTuning, LinearProbe

FAIR300 = load_protocol("fair300")
IMAGES = 1_281_167
PRETRAINING_STEPS, FINETUNING_STEPS = 625, 1251  # whole batches of 2048 and 1024 in an epoch
TRUNKS = ["vit-t", "vit-s", "vit-b"]


def finetuning(trunk: str) -> FineTuning:
    recipe = FAIR300.evaluation("finetune", trunk)
    assert isinstance(recipe, FineTuning)
    return recipe


def classifier(trunk: str) -> VisionTransformer:
    spec = FAIR300.trunk_spec(trunk, drop_path=finetuning(trunk).drop_path)
    return build_classifier(spec, classes=1000, backbone=None)


def rates_at(model: nn.Module, recipe: object, layer_decay: float | None, at: list[int]) -> list[list[float]]:
    optimizer = build_optimizer(model, recipe, undecayed=set(), layer_decay=layer_decay)  # type: ignore[arg-type]
    steps = Steps(images=IMAGES, global_batch=recipe.global_batch, epochs=recipe.epochs, seed=0)  # type: ignore[attr-defined]
    schedule = build_schedule(optimizer, recipe, steps)  # type: ignore[arg-type]
    rates = []
    for step in at:
        schedule.step_update(step)
        rates.append(sorted({group["lr"] / group.get("lr_scale", 1.0) for group in optimizer.param_groups}))
    return rates


def test_pretraining_rates_at_the_start_after_warmup_in_the_middle_and_at_the_end() -> None:
    """Table 7: 1e-6 to 1.5e-3 in 10 epochs, then half a cosine to 1e-5 at epoch 300."""
    warmup, total = 10 * PRETRAINING_STEPS, 300 * PRETRAINING_STEPS
    at = [0, warmup // 2, warmup, (warmup + total) // 2, total - 1]
    rates = rates_at(nn.Linear(2, 2), FAIR300.pretraining, None, at)
    expected = [1e-6, (1e-6 + 1.5e-3) / 2, 1.5e-3, (1.5e-3 + 1e-5) / 2, 1e-5]
    for found, rate in zip(rates, expected, strict=True):
        assert found == [pytest.approx(rate, rel=1e-3)]


@pytest.mark.parametrize(
    ("trunk", "peak", "epochs"), [("vit-t", 2.5e-4, 300), ("vit-s", 5e-3, 200), ("vit-b", 5e-4, 100)]
)
def test_finetuning_rates(trunk: str, peak: float, epochs: int) -> None:
    """Table 8: 1e-6 to the peak in 20 epochs, then half a cosine to 1e-6."""
    recipe = finetuning(trunk)
    warmup, total = 20 * FINETUNING_STEPS, epochs * FINETUNING_STEPS
    at = [0, warmup, (warmup + total) // 2, total - 1]
    rates = rates_at(nn.Linear(2, 2), recipe, None, at)
    for found, rate in zip(rates, [1e-6, peak, (peak + 1e-6) / 2, 1e-6], strict=True):
        assert found == [pytest.approx(rate, rel=1e-3)]
    assert (recipe.clip_grad_norm, recipe.label_smoothing) == (None, 0.1)


@pytest.mark.parametrize("name", ["linear-probe", "stanford-cars", "food-101", "fgvc-aircraft"])
def test_probe_rates(name: str) -> None:
    """Supplementary D: a cosine from the peak to 0, without a warm-up."""
    recipe = FAIR300.evaluation(name, "vit-b")
    assert isinstance(recipe, LinearProbe)
    total = 50 * FINETUNING_STEPS
    rates = rates_at(nn.Linear(2, 2), recipe, None, [0, total // 2, total - 1])
    assert rates[0] == [pytest.approx(4e-3)]
    assert rates[1] == [pytest.approx(2e-3, rel=1e-3)]
    assert rates[2] == [pytest.approx(0, abs=1e-9)]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_finetuning_groups(trunk: str) -> None:
    """Weight decay 0.05 on weights alone; 0.65 for each layer from the head, but none for ViT-T."""
    model, recipe = classifier(trunk), finetuning(trunk)
    optimizer = build_optimizer(
        model, recipe, undecayed=set(model.no_weight_decay()), layer_decay=recipe.layer_decay
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)
        for parameter in group["params"]:
            name = names[id(parameter)]
            is_decayed = parameter.ndim >= 2 and name not in ("pos_embed", "cls_token")
            assert group["weight_decay"] == (0.05 if is_decayed else 0), name
            layer = int(name.split(".")[1]) + 1 if name.startswith("blocks") else 0
            layer = 13 if name.startswith(("head", "fc_norm")) else layer
            scale = 1.0 if trunk == "vit-t" else 0.65 ** (13 - layer)
            assert group.get("lr_scale", 1.0) == pytest.approx(scale), name


@pytest.mark.parametrize("trunk", TRUNKS)
def test_trunks_norms_and_dropped_paths(trunk: str) -> None:
    """Drop path 0 to 0.1 over the blocks; fine-tuning averages patches through a norm of its own."""
    width, heads = {"vit-t": (192, 3), "vit-s": (384, 6), "vit-b": (768, 12)}[trunk]
    model = classifier(trunk)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.1 * block / 11 for block in range(12)])
    assert isinstance(model.norm, nn.Identity)
    assert isinstance(model.fc_norm, nn.LayerNorm)
    assert (model.global_pool, model.fc_norm.eps, model.head.out_features) == ("avg", 1e-6, 1000)
    assert (model.embed_dim, model.blocks[0].attn.num_heads) == (width, heads)  # type: ignore[union-attr]
    assert model.pos_embed.shape == (1, 197, width)  # type: ignore[union-attr]
    assert float(model.blocks[0].ls1.gamma[0].detach()) == pytest.approx(0.1)  # type: ignore[index, union-attr]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_methods_own_values(trunk: str) -> None:
    spec = FAIR300.trunk_spec(trunk, drop_path=FAIR300.pretraining.drop_path)
    assert spec.drop_path == 0.1
    assert FAIR300.method_values("mapet", trunk)["cutting_point"] == {"vit-b": 60}.get(trunk, 50)
    method = build_method("cae", trunk=spec, codebook_size=16, **FAIR300.method_values("cae", trunk))
    assert isinstance(method, ContextAutoencoder)
    assert method.trunk.norm.eps == 1e-6
    assert not isinstance(method.trunk.norm, nn.Identity)
    widths = {parameter.shape[-1] for name, parameter in method.named_parameters() if "regressor" in name}
    assert spec.width in widths


def test_finetuning_transforms() -> None:
    """Table 8, the reference configuration and timm's defaults."""
    steps = {type(step): step for step in training_transform(finetuning("vit-b"), FAIR300.data).transforms}  # type: ignore[attr-defined]
    crop = steps[RandomResizedCropAndInterpolation]
    assert (crop.size, crop.scale) == ((224, 224), (0.08, 1.0))
    assert crop.ratio == pytest.approx((3 / 4, 4 / 3))
    assert crop.interpolation == InterpolationMode.BICUBIC
    assert steps[RandomHorizontalFlip].p == 0.5
    policy = steps[RandAugment]
    assert policy.num_layers == 2
    assert {(one.magnitude, one.magnitude_std) for one in policy.ops} == {(9, 0.5)}
    erasing = steps[RandomErasing]
    assert (erasing.probability, erasing.mode, erasing.min_count, erasing.max_count) == (0.25, "pixel", 1, 1)
    assert steps[Normalize].mean == pytest.approx([0.485, 0.456, 0.406])
    assert steps[Normalize].std == pytest.approx([0.229, 0.224, 0.225])


def test_finetuning_mixes_groups_of_128() -> None:
    recipe = finetuning("vit-s")
    mixed = MixedBatches(
        lambda positions, epoch: {},
        recipe,
        sample_ids=np.arange(1024),
        classes=1000,
        micro_batch=1024,
        seed=0,
    )
    mixup = mixed.mixup
    assert (mixed.group, mixup.mixup_alpha, mixup.cutmix_alpha) == (128, 0.8, 1.0)
    assert (mixup.mix_prob, mixup.switch_prob, mixup.mode) == (1.0, 0.5, "batch")


@pytest.mark.parametrize("name", ["finetune", "linear-probe", "stanford-cars"])
def test_evaluation_takes_the_centre_nine_tenths(name: str) -> None:
    recipe = FAIR300.evaluation(name, "vit-b")
    centre = centre_crop(recipe, FAIR300.data)  # type: ignore[arg-type]
    steps = {type(step): step for step in centre.transforms}  # type: ignore[attr-defined]
    assert steps[Resize].size == math.floor(224 / 0.9)
    assert steps[Resize].interpolation == InterpolationMode.BICUBIC
    assert tuple(steps[CenterCrop].size) == (224, 224)
