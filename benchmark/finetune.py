"""Stage `finetune`: all weights trained on labels, then measured once, after the last epoch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from benchmark.augment import (
    AugmentedBatches,
    MakeBatch,
    MixedBatches,
    training_transform,
)
from benchmark.batches import Batch
from benchmark.checkpoint import save_weights
from benchmark.classification import (
    Classification,
    backbone_of,
    evaluation_batches,
    evaluation_result,
    predict,
)
from benchmark.image_part import ImagePart
from benchmark.recipe import train_recipe
from benchmark.stage import CellContext, StageResult
from benchmark.transforms import normalise, random_flip, random_shift
from methods.trunk import build_classifier
from protocols.recipes import FineTuning
from protocols.schema import Data

CLASSIFIER = "checkpoints/classifier.safetensors"


class ShiftedBatches:
    """Positions and epoch -> images shifted and flipped as one tensor, and labels (B,).

    Pure in (seed, epoch, sample id). For recipes of small images, which need no single-image transform.
    """

    def __init__(self, images: ImagePart, data: Data, recipe: FineTuning, *, seed: int) -> None:
        self.images, self.data, self.recipe, self.seed = images, data, recipe, seed
        self.pixels = images.pixels(data.image_size)

    def __call__(self, positions: npt.NDArray[np.int64], epoch: int) -> Batch:
        sample_ids = torch.from_numpy(self.images.sample_ids[positions])
        pixels = random_shift(
            torch.from_numpy(self.pixels[positions]),
            sample_ids,
            padding=self.recipe.crop_padding or 0,
            epoch=epoch,
            seed=self.seed,
        )
        pixels = random_flip(
            pixels, sample_ids, probability=self.recipe.horizontal_flip or 0.0, epoch=epoch, seed=self.seed
        )
        return {
            "inputs": normalise(pixels, self.data.mean, self.data.std),
            "labels": torch.from_numpy(self.images.labels[positions]),
        }


def run(context: CellContext) -> StageResult:
    """Fine-tune the row's trunk, predict every evaluated image once, and keep the classifier."""
    protocol = context.protocol
    recipe = protocol.evaluation(context.cell.evaluation or "", context.cell.trunk)
    assert isinstance(recipe, FineTuning)
    labelled = context.images("training").first(recipe.labelled_images)
    evaluated = context.images(recipe.evaluated_part)
    make_batch = training_batches(labelled, recipe, context)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        classifier = build_classifier(
            context.trunk(drop_path=recipe.drop_path),
            classes=len(labelled.classes),
            backbone=backbone_of(context),
        )
    result = train_recipe(
        context,
        recipe,
        objective=Classification(classifier, label_smoothing=recipe.label_smoothing),
        weights=classifier,
        undecayed=set(classifier.no_weight_decay()),
        images=labelled,
        make_batch=make_batch,
        layer_decay=recipe.layer_decay,
        group=recipe.mixup_group or 1,
    )
    inputs = evaluation_batches(evaluated, recipe, protocol.data, workers=context.runtime.workers)
    predicted = predict(
        classifier.eval(), inputs, device=context.runtime.device, image_ids=evaluated.image_ids
    )
    kept = {CLASSIFIER: save_weights(context.folder / CLASSIFIER, classifier.state_dict())}
    measured = evaluation_result(context, result, evaluated, predicted)
    return replace(measured, artefacts=measured.artefacts | kept)


def training_batches(labelled: ImagePart, recipe: FineTuning, context: CellContext) -> MakeBatch:
    """What makes the recipe's batches: of whole tensors, or image by image; then mixed where it says so.

    Raises ProtocolViolation if this runtime's micro-batches cannot be cut into whole mixup groups.
    """
    data, seed = context.protocol.data, context.seed
    of_single_images = (recipe.resized_crop_scale, recipe.rand_augment, recipe.erasing_probability)
    batches: MakeBatch
    if all(value is None for value in of_single_images):
        batches = ShiftedBatches(labelled, data, recipe, seed=seed)
    else:
        batches = AugmentedBatches(labelled, training_transform(recipe, data), seed=seed)
    if recipe.mixup_group is None:
        return batches
    return MixedBatches(
        batches,
        recipe,
        sample_ids=labelled.sample_ids,
        classes=len(labelled.classes),
        micro_batch=context.runtime.micro_batch(recipe.global_batch),
        seed=seed,
    )
