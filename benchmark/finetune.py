"""Stage `finetune`: all weights trained on labels, then measured once, after the last epoch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from benchmark.batches import Batch
from benchmark.classification import Classification, backbone_of, evaluation_result, predict
from benchmark.data import ImagePart
from benchmark.recipe import train_recipe
from benchmark.stage import CellContext, StageResult
from benchmark.transforms import normalise, random_flip, random_shift
from methods.trunk import build_classifier
from protocols.schema import Data, FineTuning


class LabelledBatches:
    """Positions and epoch -> augmented images and labels; pure in (seed, epoch, sample id)."""

    def __init__(self, images: ImagePart, data: Data, recipe: FineTuning, *, seed: int) -> None:
        self.images, self.data, self.recipe, self.seed = images, data, recipe, seed
        self.pixels = images.pixels(data.image_size)

    def __call__(self, positions: npt.NDArray[np.int64], epoch: int) -> Batch:
        sample_ids = torch.from_numpy(self.images.sample_ids[positions])
        pixels = random_shift(
            torch.from_numpy(self.pixels[positions]),
            sample_ids,
            padding=self.recipe.crop_padding,
            epoch=epoch,
            seed=self.seed,
        )
        pixels = random_flip(
            pixels, sample_ids, probability=self.recipe.horizontal_flip, epoch=epoch, seed=self.seed
        )
        return {
            "inputs": normalise(pixels, self.data.mean, self.data.std),
            "labels": torch.from_numpy(self.images.labels[positions]),
        }


def run(context: CellContext) -> StageResult:
    """Fine-tune the row's trunk and predict every evaluated image once."""
    protocol = context.protocol
    recipe = protocol.evaluations[context.cell.evaluation or ""]
    assert isinstance(recipe, FineTuning)
    labelled = context.images("training").first(recipe.labelled_images)
    evaluated = context.images(recipe.evaluated_part)
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
        images=len(labelled),
        make_batch=LabelledBatches(labelled, protocol.data, recipe, seed=context.seed),
        layer_decay=recipe.layer_decay,
    )
    pixels = torch.from_numpy(evaluated.pixels(protocol.data.image_size))
    inputs = normalise(pixels, protocol.data.mean, protocol.data.std)
    predicted = predict(classifier.eval(), inputs, device=context.runtime.device)
    return evaluation_result(context, result, evaluated, predicted)
