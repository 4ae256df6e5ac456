"""Recipes: how every objective is pre-trained, and how every evaluation trains and measures.

Learning rates are per optimiser step, batches in images over all processes. A field that may be left
out is not applied where it is: its default must never change, for it is in no digest.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from protocols.frozen import (
    Betas,
    DropRate,
    Epochs,
    Frozen,
    ImageCount,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Range,
    Side,
)


class Optimisation(Frozen):
    """AdamW with a warmed-up cosine, stepped every iteration; the global batch is over all processes."""

    epochs: Epochs
    warmup_epochs: NonNegativeFloat
    global_batch: ImageCount
    optimizer: Literal["adamw"]
    betas: Betas
    eps: PositiveFloat
    weight_decay: NonNegativeFloat
    peak_lr: PositiveFloat
    min_lr: NonNegativeFloat
    warmup_lr: NonNegativeFloat
    schedule: Literal["cosine"]
    clip_grad_norm: PositiveFloat | None

    @model_validator(mode="after")
    def _ordered(self) -> Optimisation:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be less than epochs {self.epochs}")
        if max(self.min_lr, self.warmup_lr) > self.peak_lr:
            raise ValueError("min_lr and warmup_lr must not exceed peak_lr")
        return self


class PreTraining(Optimisation):
    """The one recipe under which every objective is pre-trained."""

    drop_path: DropRate
    color_jitter: NonNegativeFloat


RandAugmentPolicy = Annotated[str, Field(pattern=r"^rand(-(m|n|inc|mmax)\d+|-(mstd|p)\d+(\.\d+)?)+$")]


class ImageEvaluation(Optimisation):
    """What every evaluation on images fixes of its images. Fields that are None are not applied.

    `resized_crop_*` are the area (share of the image) and the aspect (width by height) of a random
    crop, resized to the data's size with `interpolation`. `evaluation_crop_fraction` f resizes the
    shorter side to size / f and takes the centre; without it the shared square geometry serves.
    """

    labelled_images: PositiveInt
    evaluated_part: Literal["validation", "test"]
    horizontal_flip: Probability | None = None
    resized_crop_scale: Range | None = None
    resized_crop_ratio: Range | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    evaluation_crop_fraction: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _crop_is_whole(self) -> ImageEvaluation:
        _all_or_none(self, "resized_crop_scale", "resized_crop_ratio")
        resizing = ("resized_crop_scale", "evaluation_crop_fraction", "rand_augment")
        given = [name for name in resizing if getattr(self, name, None) is not None]
        if self.interpolation is None and set(given) - {"rand_augment"}:
            raise ValueError(f"{given[0]} also needs interpolation")
        if self.interpolation is not None and not given:
            raise ValueError(f"interpolation also needs one of {', '.join(resizing)}")
        if self.resized_crop_scale is not None and self.resized_crop_scale[1] > 1:
            raise ValueError(f"resized_crop_scale {list(self.resized_crop_scale)} is more than the image")
        return self


class FineTuning(ImageEvaluation):
    """All weights trained on labels; patch tokens averaged, a fresh LayerNorm and a linear head.

    `rand_augment` is timm's name of a RandAugment policy; `erasing_*` its random erasing of one
    rectangle. Mixup and CutMix act within groups of `mixup_group` images, one draw for each group:
    with `mixup_probability` a group is mixed, by CutMix with `mixup_switch_probability`.
    """

    kind: Literal["finetune"]
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None
    label_smoothing: DropRate
    drop_path: DropRate
    crop_padding: NonNegativeInt | None = None
    rand_augment: RandAugmentPolicy | None = None
    erasing_probability: Probability | None = None
    erasing_mode: Literal["const", "rand", "pixel"] | None = None
    mixup_alpha: PositiveFloat | None = None
    cutmix_alpha: PositiveFloat | None = None
    mixup_probability: Probability | None = None
    mixup_switch_probability: Probability | None = None
    mixup_group: Annotated[int, Field(ge=2, multiple_of=2)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> FineTuning:
        _all_or_none(self, "erasing_probability", "erasing_mode")
        _all_or_none(
            self,
            "mixup_alpha",
            "cutmix_alpha",
            "mixup_probability",
            "mixup_switch_probability",
            "mixup_group",
        )
        if self.crop_padding and self.resized_crop_scale is not None:
            raise ValueError("crop_padding and resized_crop_scale are two random crops; choose one")
        if self.mixup_group is not None and self.global_batch % self.mixup_group:
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of mixup_group {self.mixup_group}"
            )
        return self


class LinearProbe(ImageEvaluation):
    """A linear classifier on the frozen trunk's features, after the pre-training norm.

    `features`: the mean of the patch tokens, or the class token. `whiten` rotates and scales them
    towards unit covariance over the labelled images: a linear map, so the classifier is still linear
    in the features, but one that its optimiser can reach. `transfer_set` names another data set to
    train and measure on.
    """

    kind: Literal["linear-probe"]
    whiten: bool
    features: Literal["patch-mean", "class-token"] = "patch-mean"
    transfer_set: Name | None = None

    @model_validator(mode="after")
    def _consistent(self) -> LinearProbe:
        if self.whiten and (self.resized_crop_scale is not None or self.horizontal_flip):
            raise ValueError("whiten needs features that do not change: no random crop, no flip")
        if self.transfer_set is not None and self.evaluated_part == "validation":
            raise ValueError("a transfer set has no validation images; evaluated_part must be test")
        return self


class NearestNeighbours(Frozen):
    """Classes of the nearest labelled images, by the cosine of the frozen trunk's features; no training.

    Each of the `neighbours` adds exp(cosine / `temperature`) to its class (Wu et al., arXiv 1805.01978,
    section 3.4). `features`, `whiten` and the images' geometry mean what they mean in a linear probe:
    with the probe's values the features are those that its classifier sees.
    """

    kind: Literal["knn"]
    labelled_images: PositiveInt
    evaluated_part: Literal["validation", "test"]
    whiten: bool
    neighbours: PositiveInt
    temperature: PositiveFloat
    features: Literal["patch-mean", "class-token"] = "patch-mean"
    interpolation: Literal["bicubic", "bilinear"] | None = None
    evaluation_crop_fraction: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> NearestNeighbours:
        _all_or_none(self, "interpolation", "evaluation_crop_fraction")
        if self.neighbours > self.labelled_images:
            raise ValueError(f"neighbours {self.neighbours} are more than the labelled images")
        return self


class TokenClassification(Optimisation):
    """Image classification from the visual tokens alone (the paper's Table 4).

    `mlp`: embedding of `width`, Linear to `hidden_width`, ReLU, mean over positions, Linear. `vit`: the
    trunk named `trunk` on learned embeddings of its width, pooled as in fine-tuning.
    """

    kind: Literal["token-classification"]
    classifier: Literal["mlp", "vit"]
    labelled_images: PositiveInt
    evaluated_part: Literal["validation", "test"]
    label_smoothing: DropRate
    width: Side | None = None
    hidden_width: Side | None = None
    trunk: Name | None = None
    drop_path: DropRate | None = None

    @model_validator(mode="after")
    def _consistent(self) -> TokenClassification:
        _all_or_none(self, "width", "hidden_width")
        _all_or_none(self, "trunk", "drop_path")
        if (self.width is None) == (self.classifier == "mlp") or (self.trunk is None) == (
            self.classifier == "vit"
        ):
            raise ValueError("classifier mlp takes width and hidden_width; vit takes trunk and drop_path")
        return self


RowEvaluation = FineTuning | LinearProbe | NearestNeighbours
AnyEvaluation = RowEvaluation | TokenClassification
Evaluation = Annotated[AnyEvaluation, Field(discriminator="kind")]


def _all_or_none(model: BaseModel, *names: str) -> None:
    given = [name for name in names if getattr(model, name) is not None]
    if given and len(given) < len(names):
        missing = [name for name in names if name not in given]
        raise ValueError(f"{', '.join(given)} also needs {', '.join(missing)}")
