"""Files of fine-tuned classifiers: every published form, what does not fit, and that nothing in them runs."""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmark.classifier_evaluation import Classifier, check_classes, load_classifier
from benchmark.classifier_file import read_classifier
from benchmark.data import open_part
from benchmark.validation import Pooling
from protocols import load_protocol
from protocols.errors import HarnessError
from tests.benchmark.made_classifiers import TINY, as_reference, small_vit

WEIGHTS = {name: tensor.clone() for name, tensor in small_vit().state_dict().items()}
IMAGES = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(3))


def read_as_tiny(path: Path, *, key: str | None = None, pooling: Pooling = "patch-mean") -> Classifier:
    return load_classifier(
        path, protocol=load_protocol(str(TINY)), trunk="vit-tiny-test", pooling=pooling, key=key
    )


def loaded(path: Path, **how: Any) -> nn.Module:
    return read_as_tiny(path, **how).model.eval()


@torch.inference_mode()
def same_logits(found: nn.Module, expected: nn.Module) -> None:
    torch.testing.assert_close(found(IMAGES), expected(IMAGES), rtol=0, atol=1e-5)


# What is read ------------------------------------------------------------------------------------------


def wrapped(weights: dict[str, Tensor], before: str) -> dict[str, Tensor]:
    return {f"{before}{name}": tensor for name, tensor in weights.items()}


BESIDES = {
    "args": argparse.Namespace(lr=0.1, output=pathlib.Path("a/b"), mean=[0.5], model=None),
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]},
    "metric": np.float64(75.5),
    "history": np.arange(3.0),
    "epoch": 299,
}
FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "state_dict": ({"state_dict": WEIGHTS}, "state_dict"),
    "timm's moving average": ({"state_dict_ema": WEIGHTS, "state_dict": None}, "state_dict_ema"),
    "model": ({"model": WEIGHTS, **BESIDES}, "model"),
    "model_ema": ({"model_ema": WEIGHTS, "model": {}}, "model_ema"),
    "nothing around": (WEIGHTS, ""),
    "the reference's names": ({"state_dict": as_reference(WEIGHTS), **BESIDES}, "state_dict"),
    "module.": ({"state_dict": wrapped(as_reference(WEIGHTS), "module.")}, "state_dict"),
    "compiled": (wrapped(WEIGHTS, "_orig_mod.module."), ""),
}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_timms_logits(tmp_path: Path, form: str, is_zip: bool) -> None:
    content, key = FORMS[form]
    path = tmp_path / "weights.tar"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    read = read_classifier(path)
    assert read.key == key
    assert read.tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in read.tensors.items())
    same_logits(loaded(path), small_vit())


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(as_reference(WEIGHTS), path)
    read = read_classifier(path)
    assert read.changes == ("attn.q and attn.kv joined to timm's attn.qkv",)
    same_logits(loaded(path), small_vit())
    with pytest.raises(HarnessError, match="one set of weights; leave --key model away"):
        read_classifier(path, key="model")


def test_of_several_sets_one_has_to_be_named(tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth.tar"
    other = {name: torch.zeros_like(tensor) for name, tensor in WEIGHTS.items()}
    torch.save({"state_dict": other, "state_dict_ema": WEIGHTS, "teacher": other}, path)
    with pytest.raises(
        HarnessError, match=r"sets of weights, state_dict, state_dict_ema; .*--key state_dict"
    ):
        read_classifier(path)
    assert read_classifier(path, key="teacher").key == "teacher"
    with pytest.raises(
        HarnessError, match=r"--key model names no entry .*: state_dict, state_dict_ema, teacher"
    ):
        read_classifier(path, key="model")
    same_logits(loaded(path, key="state_dict_ema"), small_vit())
    # Of the paper's files it is known.
    published = path.rename(tmp_path / "vit_standard_tiny_patch16_224_VQKD.tar")
    classifier = read_as_tiny(published)
    assert classifier.key == "state_dict"
    assert not any(parameter.any() for parameter in classifier.model.parameters())


def test_other_vits_of_timm(tmp_path: Path) -> None:
    """The class token through `norm`, no layer scale: as timm builds a ViT by default."""
    path = tmp_path / "weights.pth"
    model = small_vit(pool="token", layer_scale=None)
    torch.save(model.state_dict(), path)
    classifier = read_as_tiny(path, pooling="class-token")
    same_logits(classifier.model.eval(), model)
    assert classifier.deviations == (
        "classifies the class token, not the mean of the patch tokens",
        "has no layer scale",
    )
    with pytest.raises(HarnessError, match=r"unexpected: norm\.weight .* say so with --pooling class-token"):
        loaded(path)
    torch.save(WEIGHTS, path)
    with pytest.raises(HarnessError, match=r"missing: norm\.weight .* through fc_norm: leave --pooling away"):
        loaded(path, pooling="class-token")


def test_half_precision_weights_are_computed_in_float32(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({name: tensor.bfloat16() for name, tensor in WEIGHTS.items()}, path)
    classifier = loaded(path)
    assert {parameter.dtype for parameter in classifier.parameters()} == {torch.float32}


# What does not fit -------------------------------------------------------------------------------------


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in WEIGHTS.items() if key != name}


def changed(name: str, value: float) -> dict[str, Tensor]:
    tensor = WEIGHTS[name].clone()
    tensor.view(-1)[-1] = value
    return WEIGHTS | {name: tensor}


REFERENCE = as_reference(WEIGHTS)
Q, KV = "blocks.0.attn.q.bias", "blocks.0.attn.kv.bias"
UNFIT: dict[str, tuple[Any, str]] = {
    "missing": (without("blocks.1.ls2.gamma"), r"trunk: missing: blocks\.1\.ls2\.gamma \(16,\); fetch"),
    "unexpected": (WEIGHTS | {"head_dist.weight": torch.zeros(2)}, r"unexpected: head_dist\.weight \(2,\)"),
    "not a number": (changed("head.bias", float("nan")), r"not finite floats: head\.bias \(torch\.float32\)"),
    "infinite": (changed("pos_embed", float("inf")), r"not finite floats: pos_embed"),
    "whole numbers": (WEIGHTS | {"head.bias": torch.zeros(10).long()}, r"head\.bias \(torch\.int64\)"),
    "positions of a larger image": (
        WEIGHTS | {"pos_embed": torch.zeros(1, 26, 16)},
        r"of another shape: pos_embed \(1, 26, 16\), not \(1, 17, 16\)",
    ),
    "several faults": (
        {
            name: tensor
            for name, tensor in WEIGHTS.items()
            if "blocks.1.mlp" not in name and "fc_norm" not in name
        },
        r"missing: blocks\.1\.mlp\.fc1\.weight \(32, 16\), .*fc_norm\.bias",
    ),
    "another trunk": (
        WEIGHTS | {"patch_embed.proj.weight": torch.zeros(192, 3, 16, 16)},
        r"a ViT with patches of 16, width 192 and 2 blocks, and --trunk vit-tiny-test has patches of 7, "
        r"width 16 and 2 blocks; no trunk of protocol tiny is",
    ),
    "no head": (without("head.weight"), r"holds a trunk without a head \(head\.weight \(C, D\)\)"),
    "a head that is none": (WEIGHTS | {"head.weight": torch.tensor(1.0)}, "holds a trunk without a head"),
    "a head of no class": (WEIGHTS | {"head.weight": torch.zeros(0, 16)}, "holds a trunk without a head"),
    "no ViT": (
        {"conv1.weight": torch.zeros(1)},
        r"holds no ViT under timm's names .* begin with conv1\.weight",
    ),
    "nothing": ({}, "names begin with nothing"),
    "q alone": ({name: one for name, one in REFERENCE.items() if name != KV}, f"{Q} stands without {KV}"),
    "kv alone": ({name: one for name, one in REFERENCE.items() if name != Q}, f"{KV} stands without {Q}"),
    "no biases of q and kv": (
        {name: one for name, one in REFERENCE.items() if name not in (Q, KV)},
        r"missing: blocks\.0\.attn\.qkv\.bias \(48,\)",
    ),
    "q and kv exchanged": (REFERENCE | {Q: REFERENCE[KV], KV: REFERENCE[Q]}, "kv has twice the rows of q"),
    "q beside qkv": (REFERENCE | WEIGHTS, r"blocks\.0\.attn\.qkv\.weight stands beside"),
    "a list": ([1, 2], "holds list, not named tensors"),
    "numbers for weights": ({"state_dict": {"a": 1}}, "a is int, not a plain tensor"),
    "weights one entry deeper": ({"net": WEIGHTS, "epoch": 3}, "net is dict, not a plain tensor.* --key"),
    "names that are none": ({1: torch.zeros(1)}, "1 is Tensor, not a plain tensor"),
    "an object for weights": (argparse.Namespace(a=1), "holds an object of another class, not named"),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_what_does_not_fit_is_named(tmp_path: Path, fault: str) -> None:
    content, message = UNFIT[fault]
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(HarnessError, match=message):
        loaded(path)


def test_the_trunk_that_it_is_is_named(tmp_path: Path) -> None:
    fair300 = load_protocol("fair300")
    path = tmp_path / "weights.pth"
    weights: dict[str, Tensor] = {"patch_embed.proj.weight": torch.zeros(384, 3, 16, 16)}
    weights |= {f"blocks.{index}.norm1.weight": torch.zeros(384) for index in range(12)}
    torch.save(weights, path)
    with pytest.raises(HarnessError, match=r"width 384 and 12 blocks, .*; give --trunk vit-s$"):
        load_classifier(path, protocol=fair300, trunk="vit-t", pooling="patch-mean", key=None)


def test_a_head_of_other_classes_is_said_once_the_images_are_there(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    images = open_part("fashion-mnist-12k", "test", load_protocol(str(TINY)).data.test)
    torch.save(small_vit(classes=100).state_dict(), path)
    with pytest.raises(HarnessError, match=r"its head tells 100 classes apart, .* have 10; give"):
        check_classes(read_as_tiny(path), images)
    torch.save(WEIGHTS, path)
    check_classes(read_as_tiny(path), images)


# What is damaged, and what would run -------------------------------------------------------------------


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before 1.6"])
def test_cut_and_altered_files(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "weights.tar"
    torch.save({"state_dict": WEIGHTS}, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    for content in (
        whole[:-30],
        whole[: len(whole) // 2],
        whole[:100],
        whole[:4],
        b"",
        b"junk",
        b"hello, no weights\n",
        b"<html>not found</html>",
    ):
        path.write_bytes(content)
        with pytest.raises(HarnessError, match=r"weights\.tar: is no file of weights that torch or") as told:
            read_classifier(path)
        assert "weights_only" not in str(told.value), "torch's advice to load it with everything allowed"
        assert not re.search(r"\w(Error|Exception)\b", str(told.value)), "a name of Python's"
    with pytest.raises(HarnessError, match=r"absent\.tar: no such file"):
        read_classifier(tmp_path / "absent.tar")


def test_archives_that_are_something_else(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.pth", tmp_path / "weights.tar"
    torch.save({"state_dict": WEIGHTS}, plain)
    with tarfile.open(path, "w") as archive:
        archive.add(plain, arcname="plain.pth")
    with pytest.raises(HarnessError, match=r"a tar archive of files; .* give the file of weights in it"):
        read_classifier(path)
    with zipfile.ZipFile(plain) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(HarnessError, match="is compressed"):
        read_classifier(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"plain/constants.pkl": b""}).items():
            archive.writestr(name, content)
    with pytest.raises(HarnessError, match="a TorchScript program, not weights"):
        read_classifier(path)


class Malicious:
    """Pickles as a call."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("place", ["args", "state_dict", "beside the tensors", "all of it"])
def test_code_in_a_file_does_not_run(tmp_path: Path, place: str, is_zip: bool) -> None:
    seen = tmp_path / "seen"
    evil = Malicious(os.system, f"touch {seen}")
    content = {
        "args": {"state_dict": WEIGHTS, "args": evil},
        "state_dict": {"state_dict": evil},
        "beside the tensors": {"state_dict": WEIGHTS | {"x": evil}},
        "all of it": evil,
    }[place]
    path = tmp_path / "weights.tar"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(HarnessError, match=r"names posix\.system, .*nothing of it was run"):
        read_classifier(path)
    assert not seen.exists()
    # It would have run: the file is what it claims to be.
    torch.load(path, weights_only=False)
    assert seen.exists()


def test_a_pickled_model_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(small_vit(), path)
    with pytest.raises(HarnessError, match=r"names .*timm\.models\.vision_transformer\.VisionTransformer"):
        read_classifier(path)


def test_what_lies_beside_the_weights_is_dropped_whatever_it_is_called_with(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    odd = Malicious(argparse.Namespace, "rm", "-rf", {"a": [1]})
    torch.save({"state_dict": WEIGHTS, "args": odd}, path)
    assert read_classifier(path).tensors.keys() == WEIGHTS.keys()
    torch.save({"state_dict": WEIGHTS | {"x": Malicious(pathlib.PosixPath, "x")}}, path)
    with pytest.raises(HarnessError, match="x is an object of another class, not a plain tensor"):
        read_classifier(path)
