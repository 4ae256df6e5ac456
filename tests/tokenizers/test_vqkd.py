"""vq-kd against the reference's numbers, and which state dicts it takes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from protocols.errors import HarnessError
from tests.tokenizers.reference_weights import GOLDEN, build, golden
from tokenizers import build_tokenizer
from tokenizers.network import NetworkTokenizer
from tokenizers.vqkd import VQKD, nearest_rows

NUMBERS, WEIGHTS = golden("vqkd_tiny_e2e.npz")
IMAGES = NUMBERS["in.images_0_1"]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.fixture
def tokenizer() -> VQKD:
    built = build("vq-kd")
    built.load_reference(WEIGHTS)
    assert isinstance(built, VQKD)
    return built


def test_features_codes_and_ids_are_the_references(tokenizer: VQKD) -> None:
    close(tokenizer.network.features(IMAGES), NUMBERS["mid.encoder_patch_tokens"])
    close(tokenizer.network.codes(IMAGES), NUMBERS["mid.pre_quant"])
    ids = tokenizer.encode(IMAGES)
    assert torch.equal(ids, NUMBERS["out.ids"])
    rows_BgGC = WEIGHTS["quantize.embedding.weight"][ids].reshape(2, 4, 4, 4)
    close(rows_BgGC.permute(0, 3, 1, 2), NUMBERS["out.quant_bchw"])


def test_the_quantiser_alone_is_the_references() -> None:
    numbers, weights = golden("vqkd_quantizer_tiny.npz")
    codes_NC = numbers["in.z_bchw"].permute(0, 2, 3, 1).reshape(-1, 4)
    ids = nearest_rows(codes_NC, weights["codebook"])
    assert torch.equal(ids, numbers["eval.idx_flat"])
    assert torch.equal(nearest_rows(1000 * codes_NC, weights["codebook"]), ids), "codes are normalised"


def test_equal_rows_give_the_lowest_id() -> None:
    rows = torch.eye(3)[[0, 1, 2, 1, 1]]
    assert nearest_rows(torch.tensor([[[0.1, 5.0, 0.2]]]), rows).tolist() == [[1]]


def test_statistics_of_a_data_set_are_a_mistake_that_shows(tokenizer: VQKD) -> None:
    """As would be no scaling at all: what reaches the encoder is 2x - 1."""
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).reshape(2, 3, 1, 1)
    for wrong in ((IMAGES - mean) / std, IMAGES):
        # The tokenizer scales what it is given, so it is given what it would scale to the wrong pixels.
        seen = tokenizer.network.features((wrong + 1) / 2)
        assert (seen - NUMBERS["mid.encoder_patch_tokens"]).abs().max() > 0.05
        assert (tokenizer.encode((wrong + 1) / 2) != NUMBERS["out.ids"]).any()


@pytest.mark.parametrize(
    "part", ["encoder.fc_norm.weight", "encoder.blocks.1.attn.v_bias", "encoder.cls_token"]
)
def test_every_part_acts(tokenizer: VQKD, part: str) -> None:
    tokenizer.load_reference(WEIGHTS | {part: WEIGHTS[part] * 0.5})
    assert (tokenizer.network.features(IMAGES) - NUMBERS["mid.encoder_patch_tokens"]).abs().max() > 1e-3


def test_keys_have_no_bias(tokenizer: VQKD) -> None:
    query, key, value = tokenizer.weights()["encoder.blocks.0.attn.qkv.bias"].split(24)
    assert torch.equal(query, WEIGHTS["encoder.blocks.0.attn.q_bias"])
    assert not key.any()
    assert torch.equal(value, WEIGHTS["encoder.blocks.0.attn.v_bias"])


def test_the_released_file_has_these_keys_and_shapes() -> None:
    released = json.loads((GOLDEN / "vqkd_3x768x12_clip_state_dict_keys.json").read_text())
    tokenizer = build_tokenizer("vq-kd")
    assert isinstance(tokenizer, NetworkTokenizer)
    assert not tokenizer.is_fitted
    assert {tensor.device.type for tensor in tokenizer.network.state_dict().values()} == {"meta"}
    used = {name: list(shape) for name, shape in tokenizer.reference_shapes().items()}
    assert used.items() <= released.items()
    unused = set(released) - set(used)
    assert (len(released), len(unused)) == (220, 53)
    prefixes = ("decoder.", "decode_task_layer.", "quantize.")
    assert all(name.startswith(prefixes) for name in unused)
    assert "quantize.embedding.weight" in used
    # The small one's golden weights hold all kinds of them, and load.
    kinds = {name.split(".")[0] for name in released}
    assert {name.split(".")[0] for name in WEIGHTS} == kinds


def test_what_only_training_used_is_dropped(tokenizer: VQKD) -> None:
    more = {name: torch.zeros(3) for name in ("loss.weight", "teacher_model.x", "scaling_layer.shift")}
    digest = tokenizer.digest
    tokenizer.load_reference(WEIGHTS | more)
    assert tokenizer.digest == digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.norm.weight": torch.ones(24)}, r"encoder\.norm\.weight is no part of this network"),
        ({"encoder.blocks.0.gamma_1": torch.ones(24)}, r"encoder\.blocks\.0\.gamma_1 is no part"),
        ({"quantize.other": torch.ones(1)}, r"quantize\.other is no part"),
        ({"encoder.fc_norm.weight": None}, r"encoder\.fc_norm\.weight \(24,\) is missing"),
        ({"encoder.blocks.1.attn.v_bias": None}, r"blocks\.1\.attn\.v_bias \(24,\) is missing"),
        ({"quantize.embedding.weight": None}, r"quantize\.embedding\.weight \(16, 4\) is missing"),
        ({"encoder.pos_embed": torch.zeros(1, 16, 24)}, r"pos_embed has shape \(1, 16, 24\).*\(1, 17, 24\)"),
        ({"encoder.cls_token": torch.full((1, 1, 24), torch.nan)}, "cls_token .* other than finite floats"),
        ({"encoder.cls_token": torch.zeros(1, 1, 24).long()}, "cls_token .*int64.* other than finite floats"),
    ],
)
def test_other_state_dicts_are_refused_by_key(change: dict[str, Tensor | None], message: str) -> None:
    changed = {name: tensor for name, tensor in (WEIGHTS | change).items() if tensor is not None}
    tokenizer = build("vq-kd")
    with pytest.raises(HarnessError, match=rf"tokenizer vq-kd, weights: .*{message}"):
        tokenizer.load_reference(changed)
    assert not tokenizer.is_fitted


def test_weights_of_other_precision_become_float32(tokenizer: VQKD) -> None:
    ids = tokenizer.encode(IMAGES)
    tokenizer.load_reference({name: tensor.double() for name, tensor in WEIGHTS.items()})
    assert {tensor.dtype for tensor in tokenizer.weights().values()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.encode(IMAGES), ids)


def test_the_callers_tensors_are_not_shared(tokenizer: VQKD) -> None:
    given = {name: tensor.clone() for name, tensor in WEIGHTS.items()}
    tokenizer.load_reference(given)
    for tensor in given.values():
        tensor.zero_()
    assert torch.equal(tokenizer.encode(IMAGES), NUMBERS["out.ids"])


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(HarnessError, match="image_size 30 is not a multiple of patch_size 8"):
        build("vq-kd", image_size=30)
    with pytest.raises(HarnessError, match="width 24 is not a multiple of heads 5"):
        build("vq-kd", heads=5)
