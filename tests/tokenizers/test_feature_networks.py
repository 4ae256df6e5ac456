"""k-feature with networks of timm's and open_clip's: which map is read, from which file, by which teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from protocols.errors import HarnessError
from tests.tokenizers.small_networks import (
    SMALL_RESNET,
    SMALL_VIT,
    clip_network,
    register_small_networks,
    timm_network,
    write,
)
from tokenizers import build_tokenizer, tokenizer_spec
from tokenizers.kfeature import FeatureKMeans

TEACHER = "DINO (images without labels)"
SMALL = {"codebook_size": 8, "iterations": 3, "max_points_per_centroid": 40}
NONE_PINNED = f"a@{'0' * 64}"
DIFFERING = "timm/vit_small_patch16_224"
NETWORKS = [
    ("timm/test_vit", 160), ("timm/test_vit", 32), ("timm/test_resnet", 64), ("timm/test_convnext", 64),
    (f"open_clip/{SMALL_VIT}", 32), (f"open_clip/{SMALL_RESNET}", 64),
]  # fmt: skip


@pytest.fixture(autouse=True)
def small_networks() -> None:
    register_small_networks()


def build(model: str, image_size: int, weights: str = NONE_PINNED, **config: Any) -> FeatureKMeans:
    given = (
        SMALL | {"model": model, "image_size": image_size, "weights": weights, "teacher": TEACHER} | config
    )
    tokenizer = build_tokenizer("k-feature", **given)
    assert isinstance(tokenizer, FeatureKMeans)
    return tokenizer


def network_of(model: str, image_size: int) -> Any:
    library, _, name = model.partition("/")
    if library == "open_clip":
        return clip_network(name)
    return timm_network(name, **({"dynamic_img_size": True} if "vit" in name else {}))


def loaded(model: str, image_size: int, folder: Path, **config: Any) -> tuple[FeatureKMeans, Any]:
    network = network_of(model, image_size)
    tokenizer = build(model, image_size, write(folder, "own", network.state_dict()), **config)
    tokenizer.load_published(folder)
    return tokenizer, network


def images_for(tokenizer: FeatureKMeans, count: int = 20) -> Tensor:
    side = tokenizer.image_size
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def expected_features(model: str, network: Any, images: Tensor) -> Tensor:
    """(B, N, D) from the whole network, by another way than `forward_intermediates`."""
    if model.startswith("timm/"):
        mean, std = (torch.tensor(network.pretrained_cfg[key]) for key in ("mean", "std"))
        normalised = (images - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
        found: Tensor = network.forward_features(normalised)
        return found[:, network.num_prefix_tokens :] if "vit" in model else found.flatten(2).mT
    tower, seen = network.visual, list[Tensor]()
    part = tower.ln_post if SMALL_VIT in model else tower.layer4
    part.register_forward_hook(lambda _module, _inputs, output: seen.append(output.clone()))
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).reshape(3, 1, 1)
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711)).reshape(3, 1, 1)
    tower((images - mean) / std)
    return seen[0][:, 1:] if SMALL_VIT in model else seen[0].flatten(2).mT


@pytest.mark.parametrize(("model", "image_size"), NETWORKS)
def test_features_are_the_last_map_of_the_whole_network(model: str, image_size: int, tmp_path: Path) -> None:
    tokenizer, network = loaded(model, image_size, tmp_path)
    images = images_for(tokenizer)
    found = tokenizer.extract(images)
    with torch.no_grad():
        expected = expected_features(model, network, images)
    assert found.shape == (20, tokenizer.grid**2, tokenizer.extractor.width) == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert found.std() > 0.05
    parts = torch.cat([tokenizer.extract(part) for part in images.split(3)])
    assert torch.equal(parts, found), "an image's bytes depend on no other image"


@pytest.mark.parametrize(("model", "image_size"), [NETWORKS[1], NETWORKS[4]])
def test_the_tokenizer_works_end_to_end(model: str, image_size: int, tmp_path: Path) -> None:
    tokenizer, _ = loaded(model, image_size, tmp_path)
    images = images_for(tokenizer, 40)
    tokenizer.fit(images.split(16))
    tokens = tokenizer.encode(images)
    assert len(tokens.unique()) > 3
    tokenizer.save(tmp_path / "fitted")
    again = build(model, image_size, tokenizer.config["weights"])
    again.load(tmp_path / "fitted")
    again.load_published(tmp_path)
    assert again.digest == tokenizer.digest
    assert torch.equal(again.encode(images), tokens)
    assert tokenizer.frozen_weights_digest() == tokenizer.config["weights"].split("@")[1]


def test_the_teacher_is_what_the_user_says() -> None:
    assert build("timm/test_vit", 160).teacher == TEACHER
    assert build("timm/test_vit", 160, teacher=f" {TEACHER}\n").teacher == TEACHER
    assert build_tokenizer("k-feature").teacher == tokenizer_spec("k-feature").teacher
    assert "supervised" in tokenizer_spec("k-feature").teacher


def test_an_earlier_map_is_taken_by_its_stride(tmp_path: Path) -> None:
    tokenizer, network = loaded("timm/test_resnet", 64, tmp_path, stride=16)
    images = images_for(tokenizer)
    stages = [info["reduction"] for info in network.feature_info]
    index = max(place for place, stride in enumerate(stages) if stride == 16)
    mean, std = (torch.tensor(network.pretrained_cfg[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        maps = network.forward_intermediates((images - mean) / std, intermediates_only=True)
    assert (tokenizer.grid, tokenizer.extractor.width) == (4, network.feature_info[index]["num_chs"])
    torch.testing.assert_close(tokenizer.extract(images), maps[index].flatten(2).mT, atol=1e-5, rtol=1e-4)


def test_how_many_features_are_kept_on_disk_is_the_users(tmp_path: Path) -> None:
    assert build_tokenizer("k-feature").sampled_features is None  # type: ignore[attr-defined]
    assert build("timm/test_vit", 32, sampled_features=30).sampled_features == 30


def test_defaults_are_what_they_were() -> None:
    assert set(tokenizer_spec("k-feature").resolve({})) == {
        "image_size", "model", "codebook_size", "iterations", "restarts", "max_points_per_centroid", "seed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"weights": NONE_PINNED}, r"tf_efficientnet_lite0 comes with its weights, so weights cannot be set"),
        ({"teacher": "x", "stride": 8}, r"so teacher and stride cannot be set"),
        ({"model": "timm/test_vit"}, "weights must be set too"),
        ({"model": "timm/test_vit", "weights": NONE_PINNED}, "teacher must be set too: how the network"),
        ({"model": "timm/test_vit", "weights": NONE_PINNED, "teacher": " \n"}, "teacher must be set too"),
        ({"model": "timm/test_vit", "weights": " ", "teacher": "x"}, "weights must be set too"),
        ({"model": "timm/test_vit", "weights": "../a", "teacher": "x"}, "neither a file's name"),
    ],
)
def test_what_belongs_together_is_asked_for(config: dict[str, Any], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        build_tokenizer("k-feature", **config)
    spec = tokenizer_spec("k-feature")
    with pytest.raises(HarnessError, match=message):
        spec.wanted_file(spec.resolve(config))


@pytest.mark.parametrize(
    ("model", "image_size", "config", "message"),
    [
        ("timm/test_vitt", 160, {}, "unknown timm network 'test_vitt'; did you mean 'test_vit'"),
        ("timm/test_vit.bogus", 160, {}, "unknown pretrained tag of timm network test_vit 'bogus'.*r160"),
        (DIFFERING, 224, {}, rf"differ in mean or standard.*: give {DIFFERING}\.TAG with one of .*dino"),
        (f"{DIFFERING}.", 224, {}, "differ in mean or standard deviation"),
        ("hub/x", 160, {}, "known are timm/NAME, open_clip/NAME"),
        ("open_clip/x", 160, {}, "unknown open_clip network 'x'"),
        ("open_clip/RN50/nobody", 224, {}, "unknown pretrained tag of open_clip network RN50 'nobody'"),
        ("open_clip/ViT-B-32", 224, {}, r"differ in statistics or activation: .*open_clip/ViT-B-32/TAG"),
        ("open_clip/ViT-B-16-SigLIP", 224, {}, "is timm's vit_base_patch16_siglip_224: give timm/NAME"),
        (f"open_clip/{SMALL_VIT}", 48, {}, "positions for images of size 32, not 48"),
        (f"open_clip/{SMALL_RESNET}", 64, {"stride": 16}, "has one map, so stride cannot be set"),
        ("timm/test_resnet", 64, {"stride": 7}, "no map of stride 7; its strides are 2, 4, 8, 16, 32"),
        ("timm/test_resnet", 100, {}, "image_size 100 is not a multiple of the stride 32"),
        ("timm/test_byobnet", 64, {}, "takes images of size 160 only, not 64"),
    ],
)
def test_networks_that_cannot_be_used_are_refused(
    model: str, image_size: int, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(HarnessError, match=message):
        build(model, image_size, **config)


@pytest.mark.parametrize(("tag", "mean"), [("dino", 0.485), ("augreg_in1k", 0.5)])
def test_the_statistics_are_those_of_the_named_weights(tag: str, mean: float) -> None:
    extractor = build(f"{DIFFERING}.{tag}", 224).extractor
    assert extractor._mean.flatten()[0].item() == pytest.approx(mean)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["hf-hub:x/y", "local-dir:x"])
def test_no_other_place_is_asked_for_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(open_clip, "get_model_config", asked.append)
    with pytest.raises(HarnessError, match=f"unknown open_clip network '{name.split('/')[0]}'"):
        build(f"open_clip/{name}", 224)
    with pytest.raises(HarnessError, match=f"unknown open_clip network '{name.split('/')[0]}'"):
        build_tokenizer("k-clip", model=name, weights=NONE_PINNED)
    assert not asked


def test_the_activation_is_that_of_the_named_weights() -> None:
    """OpenAI's ViTs have another GELU than those trained later under the same name."""
    kinds = []
    for tag in ("openai", "laion2b_s34b_b79k"):
        extractor = build(f"open_clip/ViT-B-32/{tag}", 224).extractor
        block = extractor._network.transformer.resblocks[0]  # type: ignore[attr-defined]
        kinds.append(type(block.mlp[1]).__name__)
    assert kinds == ["QuickGELU", "GELU"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    network = timm_network("test_vit", dynamic_img_size=True)
    whole = network.state_dict()
    for change, message in (
        ({"blocks.0.norm1.weight": None}, r"blocks\.0\.norm1\.weight \(64,\) is missing"),
        ({"blocks.99.norm1.weight": torch.ones(64)}, r"blocks\.99\.norm1\.weight is no part of this network"),
        ({"norm.bias": torch.full((64,), torch.nan)}, "norm.bias .* other than finite floats"),
    ):
        tensors = {name: tensor for name, tensor in (whole | change).items() if tensor is not None}
        tokenizer = build("timm/test_vit", 32, write(tmp_path, "other", tensors))
        with pytest.raises(HarnessError, match=rf"tokenizer k-feature: .*other\.safetensors: .*{message}"):
            tokenizer.load_published(tmp_path)
    with pytest.raises(HarnessError, match=r"no file a \(.*put it there under that name"):
        build("timm/test_vit", 32).load_published(tmp_path)
    with pytest.raises(HarnessError, match=r"takes no file of weights|no file of weights belongs"):
        build_tokenizer("k-pixel").load_published(tmp_path)


def test_building_leaves_the_random_stream_alone() -> None:
    before = torch.random.get_rng_state()
    build("timm/test_vit", 32)
    build(f"open_clip/{SMALL_VIT}", 32)
    assert torch.equal(before, torch.random.get_rng_state())
