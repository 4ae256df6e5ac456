"""CAE as built: where paths are dropped, and how its own layers start."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from methods import build_method
from methods.base import Method
from methods.cae import ContextAutoencoder
from protocols.schema import TrunkSpec

TRUNK = TrunkSpec(image_size=24, patch_size=4, width=48, depth=3, heads=2, drop_path=0.2)
OWN = ("projection.", "regressor.", "decoder.", "head.")
LINEAR_COUNT = 1 + 3 * 6 + 3 * 4 + 1  # projection; q k v proj fc1 fc2; qkv proj fc1 fc2; head


@pytest.fixture(scope="module")
def cae() -> Method:
    return build_method(
        "cae", trunk=TRUNK, codebook_size=64, seed=0, mask_count=18, min_block=4,
        regressor_depth=3, decoder_depth=3, decoder_width=64, decoder_heads=4, alignment_weight=2.0,
    )  # fmt: skip


def own_linears(method: Method) -> dict[str, nn.Linear]:
    """Every Linear outside the trunk."""
    return {
        name: module
        for name, module in method.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("trunk.")
    }


@pytest.mark.parametrize("part", ["trunk.blocks", "regressor", "decoder"])
def test_drop_path_rises_with_depth_in_every_part(cae: Method, part: str) -> None:
    for block, rate in zip(cae.get_submodule(part).children(), (0.0, 0.1, 0.2), strict=True):
        for branch in (block.drop_path1, block.drop_path2):
            assert getattr(branch, "drop_prob", 0.0) == pytest.approx(rate)


def test_no_path_is_dropped_at_rate_zero() -> None:
    cae = build_method(
        "cae", trunk=TRUNK.model_copy(update={"drop_path": 0.0}), codebook_size=64, seed=0, mask_count=18,
        min_block=4, regressor_depth=2, decoder_depth=2, decoder_width=64, decoder_heads=4,
        alignment_weight=2.0,
    )  # fmt: skip
    assert {getattr(module, "drop_prob", 0.0) for module in cae.modules()} == {0.0}


def test_every_linear_starts_xavier_uniform_with_zero_bias(cae: Method) -> None:
    """Uniform within sqrt(6 / (in + out)): the bound is nearly reached and never passed."""
    linears = own_linears(cae)
    assert len(linears) == LINEAR_COUNT
    for name, linear in linears.items():
        assert name.startswith(OWN) or name == "head"
        bound = math.sqrt(6 / (linear.in_features + linear.out_features))
        weight = linear.weight.detach()
        assert 0.99 * bound < float(weight.abs().max()) <= bound * (1 + 1e-6), name
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05), name
        if linear.bias is not None:
            assert not linear.bias.any(), name


def test_only_the_keys_have_no_bias(cae: Method) -> None:
    bare = {name for name, linear in own_linears(cae).items() if linear.bias is None}
    assert bare == {f"regressor.{index}.attn.k" for index in range(3)}


def test_equal_widths_need_no_projection() -> None:
    cae = build_method(
        "cae", trunk=TRUNK, codebook_size=64, seed=0, mask_count=18, min_block=4, regressor_depth=1,
        decoder_depth=1, decoder_width=48, decoder_heads=2, alignment_weight=2.0,
    )  # fmt: skip
    assert isinstance(cae, ContextAutoencoder)
    assert isinstance(cae.projection, nn.Identity)


def test_the_trunk_keeps_its_own_initialisation(cae: Method) -> None:
    plain = build_method("mim", trunk=TRUNK, codebook_size=64, seed=0, mask_count=18)
    for name, value in plain.export_backbone().items():
        assert torch.equal(cae.export_backbone()[name], value), name
