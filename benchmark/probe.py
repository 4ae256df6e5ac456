"""Stage `linear-probe`: a linear classifier on the frozen trunk's features.

One rule for all methods: the last block, the pre-training norm, no batch norm; the mean over patches,
or the class token where the recipe says so. Without augmentation the features are computed once
(kept_features.py); with it, anew for each batch. B images, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmark.augment import AugmentedBatches, MakeBatch, training_transform
from benchmark.batches import Batch
from benchmark.classification import (
    EVALUATION_BATCH,
    Classification,
    backbone_of,
    check_images,
    evaluation_result,
    is_finite,
    predict,
)
from benchmark.image_part import ImagePart
from benchmark.kept_features import features_of
from benchmark.recipe import train_recipe
from benchmark.stage import CellContext, StageResult
from methods.trunk import build_trunk, compile_each
from protocols.recipes import LinearProbe, NearestNeighbours
from tokenizers.base import digest_of_tensors
from tokenizers.kmeans import Whitening

# Directions of less than this share of the whole variance stay small instead of being blown up to noise.
VARIANCE_FLOOR = 1e-8


class FrozenTrunk:
    """Images (B, 3, S, S) -> features (B, D), after the trunk's final norm.

    Not a module on purpose: an objective that holds one neither trains it, nor saves it in checkpoints,
    nor puts it into training mode.
    """

    def __init__(
        self, trunk: VisionTransformer, *, features: Literal["patch-mean", "class-token"], device: str
    ) -> None:
        self.trunk = trunk.eval().to(device)
        self.features, self.device = features, device

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 over the trunk's weights."""
        return digest_of_tensors(self.trunk.state_dict())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.trunk.forward_features(images.to(self.device))  # (B, 1 + N, D)
        return tokens[:, 0] if self.features == "class-token" else tokens[:, 1:].mean(dim=1)

    def of_all(self, batches: Iterable[Tensor]) -> Tensor:
        """(n, D) on the CPU: the features of all images of all batches."""
        return torch.cat([self(batch).cpu() for batch in batches])


class FeatureBatches:
    """Positions -> features that were computed once, and labels; the same in every epoch."""

    def __init__(self, features: Tensor, labels: npt.NDArray[np.int64]) -> None:
        self.features, self.labels = features, torch.from_numpy(labels)

    def __call__(self, positions: npt.NDArray[np.int64], epoch: int) -> Batch:
        chosen = torch.from_numpy(positions)
        return {"inputs": self.features[chosen], "labels": self.labels[chosen]}


class ClassificationOfImages(Classification):
    """Cross-entropy of a linear classifier behind a frozen trunk, for batches of images."""

    def __init__(self, classifier: nn.Module, frozen: FrozenTrunk) -> None:
        super().__init__(classifier)
        self.frozen = frozen

    def compile_blocks(self) -> None:
        """See benchmark/step_choices.py; the trunk stays compiled, and has nothing to do after training."""
        compile_each(self.frozen.trunk.blocks)

    def loss(self, batch: Batch) -> Tensor:
        """Mean over the images of this micro-batch; in the runtime's precision, the trunk too."""
        return super().loss({**batch, "inputs": self.frozen(batch["inputs"])})


def run(context: CellContext) -> StageResult:
    """Train the classifier on the labelled images; every evaluated image is predicted once."""
    protocol, device = context.protocol, context.runtime.device
    recipe = protocol.evaluation(context.cell.evaluation or "", context.cell.trunk)
    assert isinstance(recipe, LinearProbe)
    labelled = context.images("training", transfer_set=recipe.transfer_set).first(recipe.labelled_images)
    evaluated = context.images(recipe.evaluated_part, transfer_set=recipe.transfer_set)
    frozen = frozen_trunk(context, features=recipe.features)
    evaluated_features = finite_features(evaluated, frozen, recipe, context)
    make_batch: MakeBatch
    if recipe.resized_crop_scale is not None or recipe.horizontal_flip:
        classifier = seeded_classifier(evaluated_features, len(labelled.classes), seed=context.seed)
        objective: Classification = ClassificationOfImages(classifier, frozen)
        make_batch = AugmentedBatches(labelled, training_transform(recipe, protocol.data), seed=context.seed)
    else:
        features = finite_features(labelled, frozen, recipe, context)
        if recipe.whiten:
            features, evaluated_features = whitened(features, evaluated_features)
        classifier = seeded_classifier(features, len(labelled.classes), seed=context.seed)
        objective = Classification(classifier)
        make_batch = FeatureBatches(features, labelled.labels)
    result = train_recipe(
        context,
        recipe,
        objective=objective,
        weights=classifier,
        undecayed=set(),
        images=labelled,
        make_batch=make_batch,
    )
    inputs = evaluated_features.split(EVALUATION_BATCH)
    predicted = predict(classifier, inputs, device=device, image_ids=evaluated.image_ids)
    return evaluation_result(context, result, evaluated, predicted)


def finite_features(
    images: ImagePart, frozen: FrozenTrunk, recipe: LinearProbe | NearestNeighbours, context: CellContext
) -> Tensor:
    """As `features_of`. HarnessError for features that are not finite, naming the images."""
    features = features_of(images, frozen, recipe, context)
    check_images(is_finite(features), images.image_ids, what="features of the frozen trunk")
    return features


def frozen_trunk(context: CellContext, *, features: Literal["patch-mean", "class-token"]) -> FrozenTrunk:
    """The row's trunk, on the runtime's device."""
    trunk = build_trunk(context.trunk(drop_path=0.0))
    trunk.load_state_dict(backbone_of(context), strict=True)
    return FrozenTrunk(trunk, features=features, device=context.runtime.device)


def seeded_classifier(features: Tensor, classes: int, *, seed: int) -> nn.Linear:
    """The classifier of features (n, D), drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return linear_classifier(features.shape[1], classes)


def whitened(labelled: Tensor, evaluated: Tensor) -> tuple[Tensor, Tensor]:
    """Both (n, D) rotated and scaled towards the unit covariance of the labelled ones."""
    floor = VARIANCE_FLOOR * float(labelled.var(dim=0).sum())
    whitening = Whitening.fit(labelled, epsilon=floor)
    return whitening.apply(labelled).float(), whitening.apply(evaluated).float()


def linear_classifier(width: int, classes: int) -> nn.Linear:
    """Linear(D, classes), weights normal(0.01), bias 0 (the initialisation of MoCo's and MAE's probes)."""
    classifier = nn.Linear(width, classes)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    return classifier
