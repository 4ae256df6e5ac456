"""The cost model against torch's own counter, for every method."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmark.cost import forward_flops, training_flops
from methods import build_method, list_methods, method_spec
from methods.trunk import build_trunk
from protocols.schema import TrunkSpec

TRUNKS = {
    "mini": TrunkSpec(image_size=28, patch_size=4, width=64, depth=4, heads=2),
    "wide": TrunkSpec(image_size=64, patch_size=8, width=192, depth=3, heads=3),
}
OWN: dict[str, dict[str, int]] = {
    "mim": {"mask_count": 20},
    "beit": {"mask_count": 20, "min_block": 4},
    "pim": {"cutting_point": 15},
    "mapet": {"cutting_point": 15},
    "cae": {"mask_count": 20, "min_block": 4, "regressor_depth": 2, "decoder_depth": 1, "decoder_width": 32,
            "decoder_heads": 2},
}  # fmt: skip


def counted(module: torch.nn.Module, run: object) -> float:
    # The mathematical kernel is made of products that the counter knows, forward and backward.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()  # type: ignore[operator]
    return float(counter.get_total_flops())


@pytest.mark.parametrize("trunk", TRUNKS.values(), ids=TRUNKS)
@pytest.mark.parametrize("name", [name for name in list_methods() if method_spec(name).pretrains])
def test_training_flops_agree_with_torch(name: str, trunk: TrunkSpec) -> None:
    method = build_method(name, trunk=trunk, codebook_size=50, seed=0, **OWN[name])
    images = torch.randn(4, 3, trunk.image_size, trunk.image_size)
    tokens = torch.zeros(4, trunk.patches, dtype=torch.int64)
    if name == "beit":  # exactly as many as its target, which is what the model counts
        pattern = torch.zeros(4, trunk.patches, dtype=torch.bool)
        pattern[:, :20] = True
    else:
        pattern = method.draw(torch.arange(4), 0, 0)
    measured = counted(method, lambda: method(images, tokens, pattern)["loss"].backward()) / 4
    resolved = method_spec(name).resolve(OWN[name], trunk=trunk)
    assert training_flops(name, trunk, resolved, codebook_size=50) == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("trunk", TRUNKS.values(), ids=TRUNKS)
def test_forward_flops_agree_with_torch(trunk: TrunkSpec) -> None:
    model = build_trunk(trunk)
    images = torch.randn(2, 3, trunk.image_size, trunk.image_size)
    measured = counted(model, lambda: model.forward_features(images)) / 2
    assert forward_flops(trunk) == pytest.approx(measured, rel=0.02)


def test_scratch_costs_no_pretraining() -> None:
    assert training_flops("scratch", TRUNKS["mini"], {}, codebook_size=50) == 0
