"""BEiT v2's patch aggregation against its definition, and by which way the image reaches its second head."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods import build_method, method_spec
from methods.beit_v2 import PatchAggregation
from protocols.errors import HarnessError
from protocols.schema import TrunkSpec
from tests.methods.naive_vit import (
    block,
    cross_entropy,
    embedded,
    layer_norm,
    linear,
    shaken,
    slopes,
    weights_of,
)

TRUNK = TrunkSpec(image_size=16, patch_size=4, width=16, depth=3, heads=2, layer_scale=0.5)
CODES, EARLY = 7, 2


def build(*, drop_path: float = 0.0, **changes: int) -> PatchAggregation:
    given = {"mask_count": 6, "min_block": 2, "early_layer": EARLY, "head_depth": 2}
    trunk = TRUNK.model_copy(update={"drop_path": drop_path})
    built = build_method("beit-v2", trunk=trunk, codebook_size=CODES, seed=0, **(given | changes))
    assert isinstance(built, PatchAggregation)
    shaken(built)
    return built


@pytest.fixture(scope="module")
def method() -> PatchAggregation:
    return build()


@pytest.fixture(scope="module")
def batch(method: PatchAggregation) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 16, 16, generator=generator)
    tokens = torch.randint(CODES, (3, 16), generator=generator)
    return images, tokens, method.draw(torch.arange(3), 0, 0)


def by_definition(
    method: PatchAggregation, images: Tensor, tokens: Tensor, pattern: Tensor
) -> tuple[dict[str, list[np.ndarray]], list[int]]:
    """Logits of both heads at the masked patches, image by image in float64, and their targets."""
    weights = weights_of(method)
    logits: dict[str, list[np.ndarray]] = {"main": [], "aggregation": []}
    targets = []
    for image, token, masked in zip(images, tokens.tolist(), pattern.tolist(), strict=True):
        patches = embedded(weights, image, TRUNK.patch_size)
        for number in range(16):
            if masked[number]:
                patches[number] = weights["mask_token"][0, 0]
                targets.append(token[number])
        rows = np.concatenate([weights["trunk.cls_token"][0], patches]) + weights["trunk.pos_embed"][0]
        after = []
        for number in range(TRUNK.depth):
            rows = block(weights, f"trunk.blocks.{number}", rows, TRUNK.heads)
            after.append(rows)
        second = np.concatenate([after[-1][:1], after[EARLY - 1][1:]])
        for number in range(2):
            second = block(weights, f"aggregator.{number}", second, TRUNK.heads)
        for name, encoded in (("main", after[-1]), ("aggregation", second)):
            predicted = linear(weights, "head", layer_norm(weights, "trunk.norm", encoded[1:]))
            logits[name] += [predicted[number] for number in range(16) if masked[number]]
    return logits, targets


def test_both_terms_are_the_definitions(
    method: PatchAggregation, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    logits, targets = by_definition(method, *batch)
    out = method(*batch)
    main, aggregation = (cross_entropy(logits[name], targets) for name in ("main", "aggregation"))
    assert abs(main - aggregation) > 1e-3
    assert out["loss_tokens"].item() == pytest.approx(main, rel=1e-5)
    assert out["loss_aggregation"].item() == pytest.approx(aggregation, rel=1e-5)
    assert out["loss"].item() == pytest.approx(main + aggregation, rel=1e-5)
    np.testing.assert_allclose(out["logits"].detach(), np.array(logits["main"]), rtol=1e-4, atol=1e-5)
    assert out["targets"].tolist() == targets


def test_gradients_are_the_definitions(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    built = build().double()
    images, tokens, pattern = batch

    def defined() -> float:
        logits, targets = by_definition(built, images, tokens, pattern)
        return sum(cross_entropy(of_head, targets) for of_head in logits.values())

    loss = built(images.double(), tokens, pattern)["loss"]
    found, expected = slopes(built, loss, defined)
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_first_term_is_beits(method: PatchAggregation, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    beit = build_method("beit", trunk=TRUNK, codebook_size=CODES, seed=0, mask_count=6, min_block=2)
    own = {name: value for name, value in method.state_dict().items() if not name.startswith("aggregator.")}
    beit.load_state_dict(own)
    assert torch.equal(beit.draw(torch.arange(3), 0, 0), batch[2])
    assert beit(*batch)["loss"].item() == method(*batch)["loss_tokens"].item()


@pytest.mark.parametrize(
    ("after_block", "rows", "moved"),
    [
        (3, slice(1, None), {"loss_tokens"}),  # the last block's patches
        (3, slice(0, 1), {"loss_aggregation"}),  # its class token
        (2, slice(1, None), {"loss_tokens", "loss_aggregation"}),  # the early block's patches
    ],
)
def test_what_each_head_sees(
    method: PatchAggregation,
    batch: tuple[Tensor, Tensor, Tensor],
    after_block: int,
    rows: slice,
    moved: set[str],
) -> None:
    """Later patches reach the second head through the class token alone."""

    def shift(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        shifted = output.clone()
        shifted[:, rows] += torch.linspace(-1, 1, output.shape[-1])
        return shifted

    before = method(*batch)
    handle = method.trunk.blocks[after_block - 1].register_forward_hook(shift)
    try:
        after = method(*batch)
    finally:
        handle.remove()
    names = ("loss_tokens", "loss_aggregation")
    assert {name for name in names if before[name].item() != after[name].item()} == moved


def test_the_second_term_trains_every_block_and_the_class_token(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    built = build()
    built(*batch)["loss_aggregation"].backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_exported_trunk_has_no_second_head(method: PatchAggregation) -> None:
    assert not [name for name in method.export_backbone() if "aggregator" in name]


@pytest.mark.parametrize(("early", "depth", "rates"), [(1, 1, [0.1]), (2, 1, [0.2]), (3, 2, [0.15, 0.2])])
def test_drop_path_goes_on_from_the_early_block(early: int, depth: int, rates: list[float]) -> None:
    """As in the released model: of as many blocks as the trunk or the way through the head has."""
    built = build(drop_path=0.2, early_layer=early, head_depth=depth)
    assert [one.drop_path1.drop_prob for one in built.aggregator] == pytest.approx(rates)


def released(method: PatchAggregation) -> dict[str, Tensor]:
    """The method's weights under the released model's names; k has no bias there."""
    rename: list[Callable[[str], str]] = [
        lambda name: name.removeprefix("trunk."),
        lambda name: name.replace("head.", "lm_head.") if name.startswith("head.") else name,
        lambda name: name.replace("aggregator.", "cls_pt_layers."),
        lambda name: name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"),
    ]
    found = {}
    for name, value in method.state_dict().items():
        for one in rename:
            name = one(name)
        if name.endswith("attn.qkv.bias"):
            query, _, values = value.chunk(3)
            found |= {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): values}
        else:
            found[name] = value
    return found


def test_released_names_are_read_strictly(
    method: PatchAggregation, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    """A k bias moves no attention, so that the loss is the same without it."""
    other = build(min_block=3)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_reference(released(method))
    assert other(*batch)["loss"].item() == pytest.approx(method(*batch)["loss"].item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"unexpected rel_pos_bias\.relative_position_bias_table"):
        other.load_reference(
            released(method) | {"rel_pos_bias.relative_position_bias_table": torch.zeros(1, 2)}
        )


def test_an_early_layer_that_the_trunk_lacks() -> None:
    spec = method_spec("beit-v2")
    assert spec.work is not None
    assert spec.resolve({}, trunk=TRUNK)["early_layer"] == 2
    assert spec.resolve({}, trunk=TRUNK.model_copy(update={"depth": 12}))["early_layer"] == 9
    with pytest.raises(HarnessError, match="early_layer must be at most 3"):
        spec.work(TRUNK, spec.resolve({"early_layer": 4}, trunk=TRUNK))
    with pytest.raises(ValueError, match="early_layer must be at most 3"):
        build(early_layer=4)
