"""k-clip: the golden features and what is not them, its weights, and the tokenizer end to end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor
from torch.nn import functional as F

from protocols import load_protocol
from protocols.errors import HarnessError
from tests.tokenizers.small_networks import (
    SMALL_CLIP,
    SMALL_RESNET,
    clip_network,
    golden_clip,
    register_small_networks,
    write,
    write_clip,
)
from tokenizers import build_tokenizer, tokenizer_spec
from tokenizers.base import WEIGHTS_NAME
from tokenizers.kclip import ClipKMeans
from tokenizers.kmeans import KMeans
from tokenizers.weights_files import OPENAI_RESNETS, clip_file

NUMBERS, WEIGHTS = golden_clip()
EXPECTED = NUMBERS["out.layer4_tokens"]


def per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).reshape(1, 3, 1, 1)


MEAN, STD = per_channel(OPENAI_DATASET_MEAN), per_channel(OPENAI_DATASET_STD)
IMAGES = NUMBERS["in.images"] * STD + MEAN  # which the tokenizer's own statistics make the golden's again


@pytest.fixture(autouse=True)
def small_networks() -> None:
    register_small_networks()


def build(weights: str, **config: Any) -> ClipKMeans:
    tokenizer = build_tokenizer("k-clip", **(SMALL_CLIP | {"weights": weights} | config))
    assert isinstance(tokenizer, ClipKMeans)
    return tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> ClipKMeans:
    built = build(write_clip(tmp_path))
    built.load_published(tmp_path)
    return built


def photographs(count: int = 40) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


# Features ----------------------------------------------------------------------------------------------


def test_features_are_the_golden_ones(tokenizer: ClipKMeans) -> None:
    found = tokenizer.extract(IMAGES)
    torch.testing.assert_close(found, EXPECTED, atol=1e-5, rtol=0)
    assert found.min() == 0, "after the last ReLU"
    assert (tokenizer.grid, tokenizer.extractor.width) == (2, 256)


def _before_relu(images: Tensor, network: Any) -> Tensor:
    seen: list[Tensor] = []
    # In place, so what it is given has to be copied before.
    hook = network.layer4[-1].act3.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    network.forward_intermediates((images - MEAN) / STD)
    hook.remove()
    return seen[0].flatten(2).mT


def _attention_pooled(images: Tensor, network: Any) -> Tensor:
    pooled_BE = network((images - MEAN) / STD)
    return F.pad(pooled_BE, (0, 256 - pooled_BE.shape[1]))[:, None].expand(-1, 4, -1)


def _average_pooled(images: Tensor, network: Any) -> Tensor:
    return EXPECTED.mean(1, keepdim=True).expand(-1, 4, -1)


def _imagenet_statistics(images: Tensor, network: Any) -> Tensor:
    mean, std = per_channel((0.485, 0.456, 0.406)), per_channel((0.229, 0.224, 0.225))
    map_BDhw: Tensor = network.forward_intermediates((images - mean) / std)["image_intermediates"][-1]
    return map_BDhw.flatten(2).mT


def _normalised(images: Tensor, network: Any) -> Tensor:
    return F.normalize(EXPECTED, dim=-1)


def _columns_first(images: Tensor, network: Any) -> Tensor:
    return EXPECTED.reshape(2, 2, 2, 256).transpose(1, 2).reshape(2, 4, 256)


@pytest.mark.parametrize(
    "wrong",
    [
        _before_relu, _attention_pooled, _average_pooled, _imagenet_statistics, _normalised, _columns_first,
    ],
)  # fmt: skip
def test_other_features_would_show(tokenizer: ClipKMeans, wrong: Callable[[Tensor, Any], Tensor]) -> None:
    network = clip_network(SMALL_RESNET).visual
    own = {name.removeprefix("visual."): tensor for name, tensor in WEIGHTS.items()}
    network.load_state_dict(network.state_dict() | own)
    with torch.no_grad():
        features = wrong(IMAGES, network)
    assert features.shape == EXPECTED.shape
    assert (features - tokenizer.extract(IMAGES)).abs().max() > 1e-3


def test_the_nearest_centroid_is_by_distance_and_no_angle(tokenizer: ClipKMeans) -> None:
    images = photographs()
    tokenizer.fit(images.split(16))
    features, centroids = tokenizer.extract(images).double(), tokenizer.codebook.centroids.double()
    ids = tokenizer.encode(images)
    assert torch.equal(ids, torch.cdist(features, centroids).argmin(-1))
    # Centroids of other lengths tell the three rules apart.
    scaled = KMeans(tokenizer.codebook.centroids * torch.linspace(0.5, 2, 8)[:, None])
    by_distance = scaled.assign(features)
    by_angle = (features @ F.normalize(scaled.centroids.double(), dim=1).T).argmax(-1)
    by_product = (features @ scaled.centroids.double().T).argmax(-1)
    assert torch.equal(by_distance, torch.cdist(features, scaled.centroids.double()).argmin(-1))
    assert (by_distance != by_angle).any()
    assert (by_distance != by_product).any()


def test_ids_do_not_depend_on_the_batch(tokenizer: ClipKMeans) -> None:
    images = photographs()
    tokenizer.fit(images.split(7))
    together = tokenizer.encode(images)
    assert together.shape == (40, 4)
    assert torch.equal(torch.cat([tokenizer.encode(batch) for batch in images.split(3)]), together)


def test_precision_is_full_whatever_surrounds_it(tokenizer: ClipKMeans) -> None:
    before = torch.get_float32_matmul_precision()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tokenizer.extract(IMAGES)
    torch.testing.assert_close(found, EXPECTED, atol=1e-5, rtol=0)
    assert torch.get_float32_matmul_precision() == before


# The paper's size --------------------------------------------------------------------------------------


def test_the_papers_network_is_built_without_memory_and_has_the_papers_sizes() -> None:
    tokenizer = build_tokenizer("k-clip")
    assert isinstance(tokenizer, ClipKMeans)
    network = tokenizer.extractor._network  # type: ignore[attr-defined]
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}
    assert sum(parameter.numel() for parameter in network.parameters()) == 365_034_176
    assert (tokenizer.grid, tokenizer.extractor.width, tokenizer.codebook_size) == (14, 4096, 8192)
    assert tokenizer.input_transform == "centre square, bicubic to 448 x 448, RGB in [0, 1]"
    assert (tokenizer.needs_weights, tokenizer.is_fitted) == (True, False)
    assert tokenizer.sampled_features == 8192 * 512


def test_fair300_sets_exactly_what_the_tokenizer_takes() -> None:
    given = dict(load_protocol("fair300").tokenizers["k-clip"])
    spec = tokenizer_spec("k-clip")
    assert spec.resolve(given) == given == spec.resolve({})


# Weights -----------------------------------------------------------------------------------------------


def test_openais_files_are_those_of_open_clip() -> None:
    for model, sha256 in OPENAI_RESNETS.items():
        config = open_clip.get_pretrained_cfg(model, "openai")
        wanted = clip_file({"model": model, "weights": "openai"})
        assert wanted.published is not None
        assert (wanted.name, wanted.sha256, wanted.published.url) == (model, sha256, config["url"])
        assert config["url"].split("/")[-2:] == [sha256, f"{model}.pt"]
        assert config["mean"] == OPENAI_DATASET_MEAN
        assert config["std"] == OPENAI_DATASET_STD


def test_absent_weights_name_the_command_that_fetches_them(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(HarnessError, match=r"k-clip: .*no file RN50x64 .* in .*tokenizers; ") as caught:
        build_tokenizer("k-clip").load_published(tmp_path / "tokenizers")
    message = str(caught.value)
    assert f"curl -L --create-dirs -o {tmp_path}/tokenizers/RN50x64.pt https://openaipublic" in message
    # The program is one that open_clip understands, and fetches what is looked for.
    program = message.split('python -c "')[1].split('"')[0]
    fetched: list[Any] = []
    monkeypatch.setattr(
        open_clip, "download_pretrained", lambda config, **options: fetched.append((config, options))
    )
    exec(program, {})
    ((config, options),) = fetched
    assert OPENAI_RESNETS["RN50x64"] in config["url"]
    assert options == {"prefer_hf_hub": False}


def test_weights_are_also_found_where_open_clip_keeps_them(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cache, folder = tmp_path / ".cache" / "clip", tmp_path / "tokenizers"
    wanted = clip_file({"model": "RN50x64", "weights": "openai"})
    assert wanted.find(folder) is None
    for place in (cache, folder):  # the data root's own is preferred
        place.mkdir(parents=True)
        (place / "RN50x64.pt").write_bytes(b"PK")
        assert wanted.find(folder) == place / "RN50x64.pt"
    with pytest.raises(HarnessError, match=r"RN50x64\.pt: its SHA-256 is .*is be1cfb55"):
        build_tokenizer("k-clip").load_published(folder)
    other = clip_file({"model": "RN50x64", "weights": f"mine@{'0' * 64}"})
    (cache / "mine.pt").write_bytes(b"PK")
    assert other.find(folder) is None


def test_weights_of_other_models_have_to_be_named() -> None:
    with pytest.raises(HarnessError, match=r"weights openai are those of RN50, .*not of model small-resnet"):
        build("openai")
    with pytest.raises(HarnessError, match=r"small-vit is none of CLIP's ResNets.*k-feature with open_clip/"):
        build(f"a@{'0' * 64}", model="small-vit", image_size=32)
    with pytest.raises(HarnessError, match="unknown open_clip network 'RN50x65'"):
        build(f"a@{'0' * 64}", model="RN50x65")
    with pytest.raises(HarnessError, match="image_size 100 is not a multiple of the stride 32"):
        build(f"a@{'0' * 64}", image_size=100)


@pytest.mark.parametrize("precision", [torch.float16, torch.float32, torch.float64])
def test_a_whole_clips_state_dict_is_taken_and_becomes_float32(precision: torch.dtype) -> None:
    network = clip_network(SMALL_RESNET)
    whole = {name: tensor.to(precision) if tensor.is_floating_point() else tensor
             for name, tensor in network.state_dict().items()}  # fmt: skip
    assert {name.split(".")[0] for name in whole} > {"visual", "transformer", "logit_scale"}
    tokenizer = build(f"a@{'0' * 64}")
    tokenizer.extractor.load_reference(whole)  # type: ignore[attr-defined]
    found = tokenizer.extract(IMAGES)
    network.float().load_state_dict({name: tensor.float() for name, tensor in whole.items()})
    with torch.no_grad():
        network.visual.attnpool = None
        normalised = (IMAGES - MEAN) / STD
        expected = network.visual.forward_intermediates(normalised, intermediates_only=True)
    torch.testing.assert_close(found, expected["image_intermediates"][-1].flatten(2).mT, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.layer4.0.bn3.weight": None}, r"layer4\.0\.bn3\.weight \(256,\) is missing"),
        ({"visual.layer3.0.downsample.1.running_var": None}, r"running_var \(128,\) is missing"),
        ({"visual.layer5.weight": torch.ones(3)}, r"layer5\.weight is no part of this network"),
        ({"visual.conv1.weight": torch.ones(4, 3, 3, 2)}, r"conv1\.weight has shape \(4, 3, 3, 2\)"),
        ({"visual.bn1.bias": torch.full((4,), torch.inf)}, "bn1.bias .* other than finite floats"),
    ],
)
def test_other_state_dicts_are_refused_by_key(
    tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    changed = {name: tensor for name, tensor in (WEIGHTS | change).items() if tensor is not None}
    tokenizer = build(write(tmp_path, "changed", changed))
    with pytest.raises(HarnessError, match=rf"k-clip: .*changed\.safetensors: .*{message}"):
        tokenizer.load_published(tmp_path)
    assert tokenizer.needs_weights


def test_what_only_training_counts_may_be_missing(tmp_path: Path) -> None:
    fewer = {name: tensor for name, tensor in WEIGHTS.items() if "num_batches" not in name}
    assert len(fewer) < len(WEIGHTS)
    tokenizer = build(write(tmp_path, "fewer", fewer))
    tokenizer.load_published(tmp_path)
    torch.testing.assert_close(tokenizer.extract(IMAGES), EXPECTED, atol=1e-5, rtol=0)


def test_nothing_is_computed_before_weights_are_loaded(tmp_path: Path) -> None:
    tokenizer = build(write_clip(tmp_path))
    for use in (tokenizer.extract, lambda images: tokenizer.fit([images])):
        with pytest.raises(HarnessError, match=r"weights are not loaded.*fitted or encoded"):
            use(photographs(4))
    assert not tokenizer.is_fitted


# Keeping -----------------------------------------------------------------------------------------------


def test_the_codebook_travels_alone_and_knows_its_network(
    tokenizer: ClipKMeans, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = photographs()
    tokenizer.fit(images.split(16))
    tokenizer.save(tmp_path / "fitted")
    assert set(tokenizer.weights()) == {"centroids"}
    assert (tmp_path / "fitted" / WEIGHTS_NAME).stat().st_size < 4 * 8 * 256 + 2000

    loaded = build(tokenizer.config["weights"])
    loaded.load(tmp_path / "fitted")
    assert loaded.digest == tokenizer.digest, "known before the network is loaded"
    assert (loaded.is_fitted, loaded.needs_weights) == (False, True)
    with caplog.at_level(logging.INFO):
        loaded.load_published(tmp_path)
    assert f"SHA-256 {tokenizer.config['weights'].split('@')[1]}" in caplog.text
    assert loaded.is_fitted
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))

    changed = WEIGHTS | {"visual.bn1.bias": WEIGHTS["visual.bn1.bias"] + 1}
    other = build(write(tmp_path, "other", changed))
    with pytest.raises(HarnessError, match="fit this one again"):
        other.load(tmp_path / "fitted")


def test_accepted_bytes_are_the_ones_that_the_digest_names(tmp_path: Path) -> None:
    write_clip(tmp_path)
    tokenizer = build(f"small@{'0' * 64}")
    with pytest.raises(HarnessError, match="is 0000"):
        tokenizer.load_published(tmp_path)
    assert tokenizer.frozen_weights_digest() == "0" * 64
    tokenizer.load_published(tmp_path, accept_unknown=True)
    assert tokenizer.frozen_weights_digest() == write_clip(tmp_path).split("@")[1]


# Every hyperparameter acts -----------------------------------------------------------------------------

OTHER_VALUES: dict[str, Any] = {
    "model": "RN50", "weights": "absent", "image_size": 96, "codebook_size": 7, "sampled_features": 100,
    "iterations": 1, "restarts": 40, "max_points_per_centroid": 3, "seed": 5,
}  # fmt: skip


def outcome(folder: Path, **change: Any) -> Any:
    """Codebook and tokens with one value changed, or the refusal."""
    try:
        tokenizer = build(**({"weights": write_clip(folder), "sampled_features": 400} | change))
        tokenizer.load_published(folder)
    except HarnessError as refusal:
        return str(refusal)
    side, wanted = tokenizer.image_size, tokenizer.sampled_features
    images = torch.rand(150, 3, side, side, generator=torch.Generator().manual_seed(0))
    features = tokenizer.extract(images).reshape(-1, 256)[:wanted]
    tokenizer.fit_features(features.numpy().astype(np.float16))
    return tokenizer.codebook.centroids.tolist(), tokenizer.encode(images[:20]).tolist()


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return outcome(tmp_path_factory.mktemp("unchanged"))


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_a_changed_value_is_refused_or_changes_the_codebook(
    tmp_path: Path, field: str, unchanged: Any
) -> None:
    assert set(OTHER_VALUES) == set(tokenizer_spec("k-clip").resolve({}))
    assert isinstance(unchanged, tuple)
    assert outcome(tmp_path, **{field: OTHER_VALUES[field]}) != unchanged
