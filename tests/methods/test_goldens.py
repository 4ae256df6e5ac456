"""Every objective against the numbers of its public reference implementation, at 1e-5."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from methods import build_method, patterns
from methods.base import Method
from methods.cae import ContextAutoencoder
from methods.cae_blocks import sin_cos_positions
from methods.two_stream import PermutedPrediction
from protocols.schema import TrunkSpec

GOLDEN = Path(__file__).parent.parent / "golden"
Golden = Callable[[str], dict[str, Any]]
ATOL = 1e-5


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected, atol=ATOL, rtol=0)


def part(data: dict[str, Any], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}


class RecordedGradients:
    """Gradients under the reference's names: the gradient of the loss with respect to what was loaded.

    Loading is linear (copies and concatenations), so loading gradients back is its inverse: the
    expected gradients are loaded into a copy like weights, and compared there.
    """

    def __init__(self, method: Method, build: Callable[[], Method]) -> None:
        self.method, self.build = method, build

    def compare(self, expected: dict[str, Tensor], skip: tuple[str, ...] = ()) -> int:
        holder = self.build()
        holder.load_reference(expected)
        wanted = dict(holder.named_parameters())
        compared = 0
        for name, parameter in self.method.named_parameters():
            if name in skip:
                continue
            assert parameter.grad is not None, name
            gradient = parameter.grad.clone()
            if name.endswith("qkv.bias") and self.has_no_key_bias:
                gradient.chunk(3)[1].zero_()
            torch.testing.assert_close(gradient, wanted[name].detach(), atol=ATOL, rtol=0, msg=name)
            compared += 1
        return compared

    has_no_key_bias = False


class TestMaPeT:
    @pytest.fixture
    def data(self, golden: Golden) -> dict[str, Any]:
        return golden("mapet_tiny")

    def build(self) -> Method:
        trunk = TrunkSpec(image_size=32, patch_size=4, width=24, depth=3, heads=3)
        return build_method("mapet", trunk=trunk, codebook_size=50, cutting_point=17, seed=0).eval()

    def test_logits_loss_and_every_gradient(self, data: dict[str, Any]) -> None:
        method = self.build()
        method.load_reference(part(data, "weight/"))
        out = method(data["images"], data["tokens"], data["order"])
        close(out["logits"], data["logits_permuted"])
        close(out["loss"], data["loss"])
        out["loss"].backward()
        assert RecordedGradients(method, self.build).compare(part(data, "grad/")) == len(
            list(method.parameters())
        )

    def test_masks_are_the_references(self, data: dict[str, Any]) -> None:
        """Ours in permuted order, scattered to the reference's raster order, mask tokens last."""
        method = self.build()
        assert isinstance(method, PermutedPrediction)
        context, targets = method.cutting_point, method.targets
        slots = 1 + method.trunk_spec.patches
        dense = torch.cat(
            [torch.ones(method.dense_rows, method.dense_rows), torch.zeros(method.dense_rows, targets)], dim=1
        ).bool()
        ours = torch.cat(
            [dense, method.sees]
        )  # rows context, mask, target, query; keys context, mask, target
        for index, order in enumerate(data["order"]):
            target_is = data["target_is"][index]
            # Reference mask tokens stand in raster order of their targets, after all 1 + N content slots.
            mask_slot = slots + torch.searchsorted(target_is.nonzero()[:, 0], order[context:])
            keys = torch.cat([order[:context], mask_slot, order[context:]])
            content = ours[: method.dense_rows + targets]
            torch.testing.assert_close(data["content_sees"][index][keys][:, keys], content)
            query_rows = torch.searchsorted(target_is.nonzero()[:, 0], order[context:])
            torch.testing.assert_close(
                data["query_sees"][index][query_rows][:, keys], ours[method.dense_rows + targets :]
            )

    def test_fine_tuning_tokens(self, data: dict[str, Any]) -> None:
        method = self.build()
        method.load_reference(part(data, "weight/"))
        trunk = method.trunk
        tokens = trunk._pos_embed(trunk.patch_embed(data["images"]))
        for block in trunk.blocks:
            tokens = block(tokens)
        close(tokens, data["vit_tokens_before_norm"])

    def test_cutting_point_counts_the_class_token(self, data: dict[str, Any]) -> None:
        method = self.build()
        assert isinstance(method, PermutedPrediction)
        assert method.targets == data["logits_permuted"].shape[1] == 48


class TestBEiT:
    def build(self, name: str = "beit") -> Method:
        trunk = TrunkSpec(image_size=32, patch_size=8, width=24, depth=3, heads=3)
        own = {"mask_count": 7} | ({"min_block": 2} if name == "beit" else {})
        return build_method(name, trunk=trunk, codebook_size=11, seed=0, **own).eval()

    @pytest.mark.parametrize("name", ["beit", "mim"])
    def test_logits_loss_and_every_gradient(self, golden: Golden, name: str) -> None:
        data = golden("beit_pretrain_tiny_abspos")
        method = self.build(name)
        method.load_reference(part(data, "w."))
        out = method(data["in.images"], data["in.token_ids"], data["in.mask"])
        close(out["logits"], data["out.logits_masked"])
        close(out["loss"], data["out.loss"])
        out["loss"].backward()
        gradients = RecordedGradients(method, lambda: self.build(name))
        gradients.has_no_key_bias = True
        assert gradients.compare(part(data, "g.")) == len(list(method.parameters()))

    def test_mean_of_per_image_means_would_differ(self, golden: Golden) -> None:
        data = golden("beit_pretrain_tiny_abspos")
        method = self.build()
        method.load_reference(part(data, "w."))
        both = method(data["in.images"], data["in.token_ids"], data["in.mask"])["loss"]
        single = [
            method(data["in.images"][i : i + 1], data["in.token_ids"][i : i + 1], data["in.mask"][i : i + 1])
            for i in range(2)
        ]
        assert abs(torch.stack([out["loss"] for out in single]).mean() - both) > 1e-3

    def test_relative_position_bias_is_refused(self, golden: Golden) -> None:
        weights = part(golden("beit_pretrain_tiny_sharedrelpos"), "w.")
        with pytest.raises(ValueError, match=r"rel_pos_bias\.relative_position_bias_table"):
            self.build().load_reference(weights)


class TestCAE:
    def build(self, width: int) -> Method:
        trunk = TrunkSpec(image_size=32, patch_size=8, width=24, depth=2, heads=3)
        return build_method(
            "cae", trunk=trunk, codebook_size=11, mask_count=8, min_block=2, regressor_depth=2, seed=0,
            decoder_depth=2, decoder_width=width, decoder_heads=3 if width == 24 else 2, alignment_weight=2.0,
        ).eval()  # fmt: skip

    @pytest.mark.parametrize(("name", "width"), [("cae_tiny_samedim", 24), ("cae_tiny_projdim", 16)])
    def test_first_step(self, golden: Golden, name: str, width: int) -> None:
        data = golden(name)
        method = self.build(width)
        method.load_reference(part(data, "w."))
        out = method(data["in.images"], data["in.token_ids"], data["in.mask"])
        close(out["logits"], data["s1.logits"])
        close(out["loss_tokens"], data["s1.loss_ce"])
        close(out["loss_alignment"], data["s1.loss_align_x2_if_target_had_no_lag"])
        close(out["loss"], data["s1.loss_total"])

    @pytest.mark.parametrize(("name", "width"), [("cae_tiny_samedim", 24), ("cae_tiny_projdim", 16)])
    def test_gradients_and_the_target_without_lag(self, golden: Golden, name: str, width: int) -> None:
        """After one SGD step of 0.5 the target comes from the stepped encoder."""
        data = golden(name)
        method = self.build(width)
        method.load_reference(part(data, "w."))
        method(data["in.images"], data["in.token_ids"], data["in.mask"])["loss"].backward()
        gradients = RecordedGradients(method, lambda: self.build(width))
        gradients.has_no_key_bias = True
        expected = part(data, "g.") | {"encoder.pos_embed": data["w.encoder.pos_embed"]}
        compared = gradients.compare(expected, skip=("trunk.pos_embed",))
        assert compared == len(list(method.parameters())) - 1
        with torch.no_grad():
            for key, parameter in method.named_parameters():
                assert parameter.grad is not None
                if key.endswith("attn.qkv.bias"):  # the reference has no k bias to step
                    parameter.grad.chunk(3)[1].zero_()
                if key != "trunk.pos_embed":  # nor does it step its fixed positions
                    parameter -= 0.5 * parameter.grad
        out = method(data["in.images"], data["in.token_ids"], data["in.mask"])
        close(out["logits"], data["s2.logits"])
        close(out["loss_tokens"], data["s2.loss_ce"])
        close(out["loss_alignment"], data["s2.loss_align_x2_if_target_had_no_lag"])

    def test_position_tables(self, golden: Golden) -> None:
        data = golden("cae_tiny_projdim")
        close(sin_cos_positions(4, 24), data["pos.sincos_encoder_dim"][:, 1:])
        close(sin_cos_positions(4, 16), data["pos.sincos_decoder_dim"][:, 1:])

    def test_half_a_teacher_is_refused(self, golden: Golden) -> None:
        weights = part(golden("cae_tiny_samedim"), "w.")
        without = {key: value for key, value in weights.items() if not key.startswith("teacher.")}
        self.build(24).load_reference(without)
        del weights["teacher.norm.weight"]
        with pytest.raises(ValueError, match=r"unexpected teacher\.norm\.bias"):
            self.build(24).load_reference(weights)

    def test_wrong_counts_are_refused(self) -> None:
        method = self.build(24)
        assert isinstance(method, ContextAutoencoder)
        images, tokens = torch.zeros(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.int64)
        with pytest.raises(ValueError, match="predicts nothing"):
            method(images, tokens, torch.zeros(1, 16, dtype=torch.bool))
        with pytest.raises(ValueError, match="exactly 8"):
            method(images, tokens, torch.ones(1, 16, dtype=torch.bool))


@pytest.mark.parametrize("mistake", ["missing", "unexpected", "shape"])
@pytest.mark.parametrize("name", ["mapet", "beit", "cae"])
def test_references_load_strictly(golden: Golden, name: str, mistake: str) -> None:
    data, prefix, method = {
        "mapet": lambda: (golden("mapet_tiny"), "weight/", TestMaPeT().build()),
        "beit": lambda: (golden("beit_pretrain_tiny_abspos"), "w.", TestBEiT().build()),
        "cae": lambda: (golden("cae_tiny_samedim"), "w.", TestCAE().build(24)),
    }[name]()
    weights = part(data, prefix)
    key = next(key for key in weights if key.endswith("blocks.1.attn.proj.weight"))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    if mistake == "missing":
        del weights[key]
    elif mistake == "unexpected":
        key = "blocks.7.surprise"
        weights[key] = torch.zeros(1)
    else:
        weights[key] = weights[key][:-1]
    with pytest.raises(ValueError, match=key):
        method.load_reference(weights)
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} changed although loading failed"


@pytest.mark.parametrize(
    ("family", "target", "exact"),
    [("beit1_num75_min16_python_random_seed", 75, False), ("cae_num98_min16_python_random_seed", 98, True)],
)
def test_block_masks_of_the_reference(family: str, target: int, exact: bool) -> None:
    expected = json.loads((GOLDEN / "mask_blockwise.json").read_text())
    for seed, rows in expected[family].items():
        mask = patterns.block_mask(random.Random(int(seed)), 14, target, 16, exact)
        assert ["".join("01"[int(cell)] for cell in row) for row in mask] == rows


def test_block_mask_statistics() -> None:
    """Ten thousand keyed masks against the statistics of the reference's (standard errors under 1 %)."""
    expected = json.loads((GOLDEN / "mask_stats_10000.json").read_text())["beit1_75_min16"]
    drawn = patterns.block_masks(
        torch.arange(10_000), grid=14, target=75, min_block=16, exact=False, epoch=0, seed=0
    )
    counts = drawn.sum(dim=1).double().numpy()
    share = drawn.double().mean(dim=0).reshape(14, 14).numpy()
    assert counts.max() == 75
    assert abs(counts.mean() - expected["mean"]) < 0.04
    assert abs(counts.std() - expected["std"]) < 0.05
    assert 0.655 < np.mean(counts == 75) < 0.685
    assert abs(share[0, 0] - expected["marg_corner"]) < 0.01
    assert abs(share[13, 13] - expected["marg_br"]) < 0.01
    assert abs(share[6:8, 6:8].mean() - expected["marg_center"]) < 0.015


def test_pim_takes_mapets_names(golden: Golden) -> None:
    data = golden("mapet_tiny")
    trunk = TrunkSpec(image_size=32, patch_size=4, width=24, depth=3, heads=3)
    pim = build_method("pim", trunk=trunk, codebook_size=50, cutting_point=17, seed=0).eval()
    mapet = TestMaPeT().build()
    for method in (pim, mapet):
        method.load_reference(part(data, "weight/"))
    assert pim.state_dict().keys() == mapet.state_dict().keys()
    assert all(torch.equal(value, mapet.state_dict()[name]) for name, value in pim.state_dict().items())
    # Same weights, another objective: the first prediction lacks the later positions.
    difference = pim(data["images"], data["tokens"], data["order"])["logits"] - data["logits_permuted"]
    assert difference.abs().max() > 1e-2


def test_parts_whose_sum_alone_fits_are_refused(golden: Golden) -> None:
    weights = part(golden("mapet_tiny"), "weight/")
    query, key_value = weights["blocks.0.attn.q.weight"], weights["blocks.0.attn.kv.weight"]
    weights["blocks.0.attn.q.weight"] = query[:-1]
    weights["blocks.0.attn.kv.weight"] = torch.cat([query[-1:], key_value])
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.q\.weight has shape \(23, 24\), not \(24, 24\)"):
        TestMaPeT().build().load_reference(weights)
