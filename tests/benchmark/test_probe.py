"""What the linear probe trains on: features of the parent's frozen trunk, kept or computed anew."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmark import probe
from benchmark.augment import AugmentedBatches, training_transform
from benchmark.engine import Training, TrainingResult
from benchmark.probe import ClassificationOfImages, FeatureBatches, FrozenTrunk
from benchmark.runtime import Runtime
from benchmark.transforms import normalise

if TYPE_CHECKING:
    from tests.benchmark.conftest import Line


def features_by_hand(line: Line, part: str) -> Tensor:
    """Of a part of the data slice: the mean of the patch tokens."""
    pixels = line.context("linear-probe").images(part).pixels(line.protocol.data.image_size)
    return tokens_by_hand(line, pixels)[:, 1:].mean(dim=1)


def tokens_by_hand(line: Line, pixels: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 (n, 3, 28, 28) -> (n, 1 + N, D) after the last norm."""
    data = line.protocol.data
    with torch.no_grad():
        return trunk_by_hand(line).forward_features(normalise(torch.from_numpy(pixels), data.mean, data.std))


def trunk_by_hand(line: Line) -> VisionTransformer:
    """timm's own trunk with the parent's weights."""
    spec = line.context("pretrain").trunk(drop_path=0.0)
    trunk = VisionTransformer(
        img_size=28, patch_size=7, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0,
        init_values=spec.layer_scale, num_classes=0,
    ).eval()  # fmt: skip
    trunk.load_state_dict(line.export, strict=True)
    return trunk


def probe_inputs(training: Training) -> tuple[Tensor, Tensor]:
    """Every input and label of epoch 0, in the order of the image part."""
    steps = training.data.steps
    order = np.concatenate([steps.positions(step) for step in range(steps.per_epoch)])
    batches = [training.data[step] for step in range(steps.per_epoch)]
    back = torch.from_numpy(order.argsort())
    inputs, labels = (torch.cat([batch[name] for batch in batches])[back] for name in ("inputs", "labels"))
    return inputs, labels


def affine_map(features: Tensor, inputs: Tensor) -> Tensor:
    """The (1 + D, D') float64 map that takes (1, features) nearest to `inputs`."""
    return torch.linalg.lstsq(with_one(features), inputs.double(), driver="gelsd").solution


def with_one(features: Tensor) -> Tensor:
    return F.pad(features.double(), (1, 0), value=1.0)


def test_probe_trains_on_whitened_patch_means_of_the_parents_trunk(line: Line) -> None:
    """An affine map of the features by hand, of mean 0 and of unit variance in every direction but one:
    LayerNorm takes out the mean over channels, so one direction has next to no variance of its own."""
    inputs, labels = probe_inputs(line.watched["linear-probe"].training)
    by_hand = features_by_hand(line, "training")
    fitted = with_one(by_hand) @ affine_map(by_hand, inputs)
    torch.testing.assert_close(inputs.double(), fitted, atol=0.01, rtol=0)
    assert float(inputs.mean(dim=0).abs().max()) < 0.01
    variances = torch.linalg.eigvalsh(torch.cov(inputs.double().T))
    assert float(variances[-1]) < 1.05
    assert float(variances[1]) > 0.95
    assert labels.tolist() == line.context("linear-probe").images("training").labels.tolist()


class Caught(Exception):
    pass


def training_under(line: Line, patch: pytest.MonkeyPatch, **fields: Any) -> Training:
    """The probe's training as it would begin, with some fields of the recipe replaced."""
    recipe = line.protocol.evaluations["linear-probe"].model_copy(update=fields)
    protocol = line.protocol.model_copy(
        update={"evaluations": {**line.protocol.evaluations, "linear-probe": recipe}}
    )
    caught: list[Training] = []

    def catch(training: Training, runtime: Runtime) -> TrainingResult:
        caught.append(training)
        raise Caught

    patch.setattr("benchmark.recipe.train", catch)
    with pytest.raises(Caught):
        probe.run(replace(line.context("linear-probe"), protocol=protocol))
    return caught[0]


@pytest.mark.parametrize("flip", [None, 0.0])
def test_probe_without_whitening_trains_on_the_patch_means(
    line: Line, monkeypatch: pytest.MonkeyPatch, flip: float | None
) -> None:
    training = training_under(line, monkeypatch, whiten=False, horizontal_flip=flip)
    assert isinstance(training.data.make_batch, FeatureBatches)
    inputs, _ = probe_inputs(training)
    torch.testing.assert_close(inputs, features_by_hand(line, "training"), atol=1e-5, rtol=1e-4)


def test_a_flip_alone_makes_the_probe_see_images(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    training = training_under(line, monkeypatch, whiten=False, horizontal_flip=1.0)
    assert isinstance(training.data.make_batch, AugmentedBatches)
    inputs, _ = probe_inputs(training)
    pixels = torch.from_numpy(line.context("linear-probe").images("training").pixels(28)).flip(-1)
    torch.testing.assert_close(inputs, normalise(pixels, line.protocol.data.mean, line.protocol.data.std))


def test_probe_predicts_with_the_labelled_images_whitening(line: Line) -> None:
    training = line.watched["linear-probe"].training
    to_inputs = affine_map(features_by_hand(line, "training"), probe_inputs(training)[0])
    inputs = (with_one(features_by_hand(line, "test")) @ to_inputs).float()
    with torch.no_grad():
        expected = training.model.classifier(inputs).argmax(dim=1)  # type: ignore[operator]
    predicted = line.predictions("linear-probe")["predicted"]
    assert len(predicted) == 203
    assert np.mean(predicted == expected.numpy()) > 0.99


def test_probe_starts_small_and_seeded(line: Line) -> None:
    before = line.watched["linear-probe"].before
    torch.manual_seed(3)
    width = before["classifier.weight"].shape[1]
    expected = probe.linear_classifier(width, 10)
    assert torch.equal(before["classifier.weight"], expected.weight)
    assert before["classifier.weight"].std() == pytest.approx(0.01, rel=0.2)
    assert not before["classifier.bias"].any()


# With augmentation -----------------------------------------------------------------------------------


def test_augmented_probe_computes_features_of_each_batch_anew(full_line: Line) -> None:
    training = full_line.watched["linear-probe"].training
    images = full_line.context("linear-probe").images("training").first(128)
    recipe = full_line.protocol.evaluations["linear-probe"]
    augmented = AugmentedBatches(images, training_transform(recipe, full_line.protocol.data), seed=3)
    classifier = training.model.classifier
    for step in (0, 3):  # of epochs 0 and 1
        batch = training.data[step]
        chosen = training.data.steps.positions(step)
        assert torch.equal(batch["inputs"], augmented(chosen, step // 2)["inputs"])
        assert batch["labels"].tolist() == images.labels[chosen].tolist()
        with torch.no_grad():
            tokens = trunk_by_hand(full_line).forward_features(batch["inputs"])
            expected = F.cross_entropy(classifier(tokens[:, 1:].mean(dim=1)), batch["labels"])  # type: ignore[operator]
        loss = training.model.loss(batch)  # type: ignore[operator]
        torch.testing.assert_close(loss.detach(), expected)
        loss.backward()
        assert classifier.weight.grad is not None  # type: ignore[union-attr]


def test_augmented_probe_trains_and_saves_the_classifier_alone(full_line: Line) -> None:
    watched = full_line.watched["linear-probe"]
    model = watched.training.model
    assert isinstance(model, ClassificationOfImages)
    trained = [p for group in watched.training.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in model.classifier.parameters()}
    assert set(model.state_dict()) == {"classifier.weight", "classifier.bias"}
    for name, value in watched.before.items():
        assert not torch.equal(model.state_dict()[name], value), f"{name} was not trained"
    frozen = model.frozen.trunk
    assert not any(module.training for module in frozen.modules()), (
        "conftest puts the model into training mode"
    )
    assert not model.frozen(torch.zeros(2, 3, 28, 28)).requires_grad
    assert all(p.grad is None for p in frozen.parameters())
    assert frozen.state_dict().keys() == full_line.export.keys()
    for name, value in full_line.export.items():
        assert torch.equal(frozen.state_dict()[name], value), name


def test_augmented_probe_predicts_centre_crops(full_line: Line) -> None:
    images = full_line.context("linear-probe").images("test")
    crops = [
        np.array(image.convert("RGB").resize((31, 31), Image.Resampling.BICUBIC).crop((2, 2, 30, 30)))
        for image in images.images()
    ]
    features = tokens_by_hand(full_line, np.stack(crops).transpose(0, 3, 1, 2))[:, 1:].mean(dim=1)
    with torch.no_grad():
        expected = full_line.watched["linear-probe"].training.model.classifier(features)  # type: ignore[operator]
    kept = full_line.predictions("linear-probe")
    assert kept["predicted"].tolist() == expected.argmax(dim=1).tolist()
    assert kept["labels"].tolist() == images.labels.tolist()


# On another data set, from the class token -----------------------------------------------------------


def test_transfer_probe_trains_and_measures_on_the_transfer_set(full_line: Line) -> None:
    context, training = full_line.context("transfer"), full_line.watched["transfer"].training
    inputs, labels = probe_inputs(training)
    there = {name: context.images(name, transfer_set="elsewhere") for name in ("training", "test")}
    class_tokens = {
        name: tokens_by_hand(full_line, images.pixels(28))[:, 0] for name, images in there.items()
    }
    torch.testing.assert_close(inputs, class_tokens["training"][:96], atol=1e-5, rtol=1e-4)
    assert labels.tolist() == there["training"].labels[:96].tolist()
    with torch.no_grad():
        expected = training.model.classifier(class_tokens["test"]).argmax(dim=1)  # type: ignore[operator]
    kept = full_line.predictions("transfer")
    assert kept["image_ids"].tolist() == [f"test/{position:07d}" for position in range(300, 390)]
    assert kept["predicted"].tolist() == expected.tolist()
    assert full_line.results["transfer"].data.digest == there["test"].digest


def test_features_are_the_patch_mean_or_the_class_token() -> None:
    class Echo(nn.Module):
        def forward_features(self, images: Tensor) -> Tensor:
            return images.flatten(2)  # (B, 1 + N, D) that says which token is which

    images = torch.arange(24.0).reshape(2, 4, 3, 1)
    by_mean, by_token = (
        FrozenTrunk(Echo(), features=kind, device="cpu")(images)  # type: ignore[arg-type]
        for kind in ("patch-mean", "class-token")
    )
    assert by_mean.tolist() == images[:, 1:, :, 0].mean(dim=1).tolist()
    assert by_token.tolist() == images[:, 0, :, 0].tolist()
