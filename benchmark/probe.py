"""Stage `linear-probe`: a linear classifier on the frozen trunk's mean patch token.

One rule for all methods: the last block, the pre-training norm, the mean over patches, no class
token, no batch norm. Without augmentation the features are computed once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmark.batches import Batch
from benchmark.classification import (
    EVALUATION_BATCH,
    Classification,
    backbone_of,
    evaluation_result,
    predict,
)
from benchmark.data import ImagePart
from benchmark.recipe import train_recipe
from benchmark.stage import CellContext, StageResult
from benchmark.transforms import normalise
from methods.trunk import build_trunk
from protocols.schema import Data, LinearProbe
from tokenizers.kmeans import Whitening

# Directions of less than this share of the whole variance stay small instead of being blown up to noise.
VARIANCE_FLOOR = 1e-8


def run(context: CellContext) -> StageResult:
    """Features once, then the classifier; every evaluated image is predicted once."""
    protocol, device = context.protocol, context.runtime.device
    recipe = protocol.evaluations[context.cell.evaluation or ""]
    assert isinstance(recipe, LinearProbe)
    labelled = context.images("training").first(recipe.labelled_images)
    evaluated = context.images(recipe.evaluated_part)
    trunk = build_trunk(context.trunk(drop_path=0.0))
    trunk.load_state_dict(backbone_of(context), strict=True)
    trunk = trunk.eval().to(device)
    features = {
        part.name: patch_mean_features(trunk, part, protocol.data, device=device)
        for part in (labelled, evaluated)
    }
    if recipe.whiten:
        labelled_features = features[labelled.name]
        floor = VARIANCE_FLOOR * float(labelled_features.var(dim=0).sum())
        whitening = Whitening.fit(labelled_features, epsilon=floor)
        features = {name: whitening.apply(values).float() for name, values in features.items()}
    labels = torch.from_numpy(labelled.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        classifier = linear_classifier(features[labelled.name].shape[1], len(labelled.classes))

    def make_batch(positions: npt.NDArray[np.int64], epoch: int) -> Batch:
        chosen = torch.from_numpy(positions)
        return {"inputs": features[labelled.name][chosen], "labels": labels[chosen]}

    result = train_recipe(
        context,
        recipe,
        objective=Classification(classifier),
        weights=classifier,
        undecayed=set(),
        images=len(labelled),
        make_batch=make_batch,
    )
    predicted = predict(classifier, features[evaluated.name], device=device)
    return evaluation_result(context, result, evaluated, predicted)


def linear_classifier(width: int, classes: int) -> nn.Linear:
    """Linear(D, classes), weights normal(0.01), bias 0 (the initialisation of MoCo's and MAE's probes)."""
    classifier = nn.Linear(width, classes)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    return classifier


@torch.no_grad()
def patch_mean_features(trunk: nn.Module, images: ImagePart, data: Data, *, device: str) -> Tensor:
    """(n, D) on the CPU: mean of the patch tokens after the trunk's final norm, class token left out."""
    pixels = torch.from_numpy(images.pixels(data.image_size))
    means = []
    for batch in pixels.split(EVALUATION_BATCH):
        tokens = trunk.forward_features(normalise(batch, data.mean, data.std).to(device))  # type: ignore[operator]
        means.append(tokens[:, 1:].mean(dim=1).cpu())
    return torch.cat(means)
