"""What the linear probe trains on: whitened means of patch tokens, from the parent's frozen trunk."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from benchmark import probe
from benchmark.engine import Training, TrainingResult
from benchmark.runtime import Runtime
from benchmark.transforms import normalise

if TYPE_CHECKING:
    from tests.benchmark.conftest import Line


def features_by_hand(line: Line, part: str) -> Tensor:
    """timm's own trunk with the parent's weights; mean of the patch tokens after its last norm."""
    spec, data = line.context("pretrain").trunk(drop_path=0.0), line.protocol.data
    trunk = VisionTransformer(
        img_size=28, patch_size=7, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0,
        init_values=spec.layer_scale, num_classes=0,
    ).eval()  # fmt: skip
    trunk.load_state_dict(line.export, strict=True)
    pixels = torch.from_numpy(line.context("linear-probe").images(part).pixels(data.image_size))
    with torch.no_grad():
        return trunk.forward_features(normalise(pixels, data.mean, data.std))[:, 1:].mean(dim=1)


def probe_inputs(training: Training) -> tuple[Tensor, Tensor]:
    """Every input and label of epoch 0, in the order of the image part."""
    steps = training.data.steps
    order = np.concatenate([steps.positions(step) for step in range(steps.per_epoch)])
    batches = [batch for step in range(steps.per_epoch) for batch in training.data[step]]
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


def test_probe_without_whitening_trains_on_the_patch_means(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = line.protocol.evaluations["linear-probe"].model_copy(update={"whiten": False})
    protocol = line.protocol.model_copy(
        update={"evaluations": {**line.protocol.evaluations, "linear-probe": recipe}}
    )
    caught: list[Training] = []

    class Caught(Exception):
        pass

    def catch(training: Training, runtime: Runtime) -> TrainingResult:
        caught.append(training)
        raise Caught

    monkeypatch.setattr("benchmark.recipe.train", catch)
    with pytest.raises(Caught):
        probe.run(replace(line.context("linear-probe"), protocol=protocol))
    inputs, _ = probe_inputs(caught[0])
    torch.testing.assert_close(inputs, features_by_hand(line, "training"), atol=1e-5, rtol=1e-4)


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
