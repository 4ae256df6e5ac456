"""Files of published weights: the three forms, which bytes are trusted, and that nothing in them runs."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from protocols.errors import HarnessError
from tests.tokenizers.reference_weights import build, golden
from tokenizers import tokenizer_spec
from tokenizers.network import NetworkTokenizer
from tokenizers.published import read_published
from tokenizers.weights_files import find_file, wanted_file

VQKD_NUMBERS, VQKD_WEIGHTS = golden("vqkd_tiny_e2e.npz")
DALLE_NUMBERS, DALLE_WEIGHTS = golden("dalle_encoder_tiny.npz")


def read(path: Path) -> dict[str, Tensor]:
    return read_published(path, sha256=None, accept_unknown=True)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert not any(tensor.requires_grad for tensor in found.values())


# The dVAE as its authors pickled it: a module of classes that are not installed here -------------------


@pytest.fixture
def dalle_module() -> Iterator[nn.Module]:
    """The golden weights as a module of dall_e's classes, which exist for the length of the test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("dall_e", "dall_e.encoder", "dall_e.utils"):
            patch.setitem(sys.modules, name, ModuleType(name))
        made = {}
        for module, name in (("encoder", "Encoder"), ("encoder", "EncoderBlock"), ("utils", "Conv2d")):
            made[name] = type(name, (nn.Module,), {"__module__": f"dall_e.{module}"})
            setattr(sys.modules[f"dall_e.{module}"], name, made[name])
        yield _as_module(DALLE_WEIGHTS, made)


def _as_module(weights: dict[str, Tensor], classes: dict[str, type[nn.Module]]) -> nn.Module:
    root = classes["Encoder"]()
    for path in (name.removesuffix(".w") for name in weights if name.endswith(".w")):
        *parents, last = path.split(".")
        at = root
        for part in parents:
            if part not in dict(at.named_children()):
                at.add_module(part, classes["EncoderBlock"]() if "block_" in part else nn.Sequential())
            at = at.get_submodule(part)
        conv = classes["Conv2d"]()
        conv.w, conv.b = nn.Parameter(weights[f"{path}.w"]), nn.Parameter(weights[f"{path}.b"])
        conv.use_float16, conv.device = True, torch.device("cpu")
        at.add_module(last, conv)
    for name, layer in {"pool": nn.MaxPool2d(2), "relu": nn.ReLU(), "id_path": nn.Identity()}.items():
        root.get_submodule("blocks").add_module(name, layer)
    return root


# What is read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_a_checkpoints_tensors_are_found(tmp_path: Path, key: str | None) -> None:
    path = tmp_path / "weights.pth"
    around = {"args": argparse.Namespace(lr=0.1, parts=["a"]), "epoch": 99, "optimizer": {"state": {}}}
    torch.save(VQKD_WEIGHTS if key is None else {key: VQKD_WEIGHTS, **around}, path)
    same(read(path), VQKD_WEIGHTS)
    if key == "model":
        torch.save({"state_dict": {}, key: VQKD_WEIGHTS}, path)
        same(read(path), VQKD_WEIGHTS)


def test_safetensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(VQKD_WEIGHTS, path)
    same(read(path), VQKD_WEIGHTS)


def test_a_pickled_module_is_walked_without_its_classes(tmp_path: Path, dalle_module: nn.Module) -> None:
    path = tmp_path / "encoder.pkl"
    torch.save(dalle_module, path)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith("dall_e")]:
            patch.delitem(sys.modules, name)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
        with pytest.raises(ModuleNotFoundError):
            torch.load(path, weights_only=False)
        same(read(path), DALLE_WEIGHTS)
        tokenizer = build("dall-e")
        tokenizer.load_published(path, accept_unknown=True)
    ids = tokenizer.encode(DALLE_NUMBERS["in.image_0_1"])
    assert torch.equal(ids, DALLE_NUMBERS["out.ids"].flatten(1))


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_torchs_old_format_is_refused_with_a_way_out(tmp_path: Path, dalle_module: nn.Module) -> None:
    path = tmp_path / "encoder.pkl"
    torch.save(dalle_module, path, _use_new_zipfile_serialization=False)
    with pytest.raises(HarnessError, match=r"not a zip archive.*runs what it says.*python -c") as caught:
        read(path)
    # The way out works, where the classes are.
    program = str(caught.value).split('python -c "')[1].split('" ')[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", str(path), str(tmp_path / "encoder.safetensors")])
        exec(program, {})
    same(read(tmp_path / "encoder.safetensors"), DALLE_WEIGHTS)


# What is not run ---------------------------------------------------------------------------------------


class Malicious:
    """Pickles as a call; `seen` is what that call would leave behind."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("place", ["args", "model", "beside the tensors", "all of it"])
@pytest.mark.parametrize("call", ["eval", "open", "os.system"])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, call: str, place: str) -> None:
    seen = tmp_path / "seen"
    program = f"__import__('pathlib').Path({str(seen)!r}).touch()"
    evil = {
        "eval": Malicious(eval, program),
        "open": Malicious(open, str(seen), "w"),
        "os.system": Malicious(os.system, f"touch {seen}"),
    }[call]
    content = {
        "args": {"model": VQKD_WEIGHTS, "args": evil},
        "model": {"model": evil},
        "beside the tensors": {"model": {**VQKD_WEIGHTS, "x": evil}},
        "all of it": evil,
    }[place]
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    refusals = {"eval": "builtins.eval", "open": "io.open", "os.system": "posix.system"}
    with pytest.raises(HarnessError, match=rf"names {refusals[call]}, .*nothing of it was run"):
        read(path)
    assert not seen.exists()
    # It would have run: the file is what it claims to be.
    loaded = torch.load(path, weights_only=False)
    if call == "open":
        (loaded["args"] if place == "args" else _handle(loaded)).close()
    assert seen.exists()


def _handle(loaded: Any) -> Any:
    inner = loaded["model"] if isinstance(loaded, dict) else loaded
    return inner["x"] if isinstance(inner, dict) else inner


def test_a_placeholder_has_no_behaviour(tmp_path: Path) -> None:
    """Names that are let through become objects that do nothing, whatever the file makes of them."""
    path = tmp_path / "weights.pth"
    torch.save({"model": VQKD_WEIGHTS, "args": Malicious(argparse.Namespace, 1)}, path)
    with pytest.raises(HarnessError, match="cannot be read as weights"):
        read(path)
    torch.save({"model": Malicious(argparse.Namespace)}, path)
    with pytest.raises(HarnessError, match="holds _Inert, not named tensors"):
        read(path)


def test_modules_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.pkl"
    for state, message in (
        ({"_parameters": {}, "_buffers": {}}, "its object is no pickled module"),
        ({"_parameters": [], "_buffers": {}, "_modules": {}}, "its object is no pickled module"),
        ({"_parameters": {}, "_buffers": {}, "_modules": {"a": 1}}, "a is no module of its own"),
        ({"_parameters": {"w": 1}, "_buffers": {}, "_modules": {}}, "w is int, not a plain tensor"),
        ({"_parameters": {"w": None}, "_buffers": {}, "_modules": {}}, "w is NoneType, not a plain"),
    ):
        module = nn.Identity()
        module.__dict__.clear()
        module.__dict__.update(state)
        torch.save(module, path)
        with pytest.raises(HarnessError, match=message):
            read(path)
    twice = nn.Sequential(nn.Identity())
    twice.add_module("again", twice)
    torch.save(twice, path)
    with pytest.raises(HarnessError, match="again is no module of its own"):
        read(path)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_damaged_and_unsuitable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"absent\.pth: no such file"):
        read(tmp_path / "absent.pth")
    path = tmp_path / "weights.pth"
    torch.save({"model": VQKD_WEIGHTS}, path)
    content = path.read_bytes()
    for damaged in (
        content[:-300],
        content[: len(content) // 2],
        content[:4],
        content[:2000] + content[3000:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(HarnessError, match=r"weights\.pth: cannot be read as weights"):
            read(path)
    for content_of, message in (
        ([1, 2], "holds list, not named tensors"),
        ({"model": 3}, "holds int, not named tensors"),
        ({"epoch": 3, "weights": {}}, "epoch is int, not a plain tensor"),
        ({"model": {1: torch.zeros(1)}}, "1 is Tensor, not a plain tensor"),
        ({"w": torch.zeros(2, device="meta")}, "w is Tensor, not a plain tensor"),
        ({"w": torch.zeros(2, 2).to_sparse()}, "w is Tensor, not a plain tensor"),
    ):
        torch.save(content_of, path)
        with pytest.raises(HarnessError, match=message):
            read(path)
    (tmp_path / "a.safetensors").write_bytes(b"?" * 40)
    with pytest.raises(HarnessError, match=r"a\.safetensors: cannot be read as safetensors"):
        read(tmp_path / "a.safetensors")


def test_archives_that_would_swell_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save compresses nothing, so an archive takes no more memory than its size."""
    plain, path = tmp_path / "plain.pth", tmp_path / "weights.pth"
    torch.save({"model": {"w": torch.zeros(2**20)}}, plain)
    with zipfile.ZipFile(plain) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    for packed in ({"plain/data.pkl"}, {"plain/data/0"}, set()):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content, zipfile.ZIP_DEFLATED if name in packed else None)
        if packed:
            with pytest.raises(HarnessError, match=rf"cannot be read as weights \({packed.pop()} is compr"):
                read(path)
        else:
            assert torch.equal(read(path)["w"], torch.zeros(2**20))

    # One member's bytes under many names.
    with zipfile.ZipFile(path, "a") as archive:
        (large,) = [info for info in archive.infolist() if info.filename.endswith("data/0")]
        archive.filelist.extend([large] * 3)
        archive.writestr("plain/x", b"")
    with pytest.raises(HarnessError, match="its members are larger than the file"):
        read(path)

    def without_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(torch, "load", without_memory)
    with pytest.raises(HarnessError, match=r"plain\.pth: cannot be read as weights \(MemoryError\)"):
        read(plain)


# Which bytes are trusted -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.save({"model": VQKD_WEIGHTS}, tmp_path / "vqkd_encoder_base_decoder_3x768x12_clip.pth")
    torch.save(DALLE_WEIGHTS, tmp_path / "dall-e-encoder.pkl")
    return tmp_path


def test_other_bytes_than_the_published_ones_need_a_word(folder: Path) -> None:
    path = folder / "vqkd_encoder_base_decoder_3x768x12_clip.pth"
    tokenizer = build("vq-kd")
    with pytest.raises(
        HarnessError, match=r"its SHA-256 is .* begins d5036aa7; .* weights to vqkd_"
    ) as caught:
        tokenizer.load_published(path)
    assert f"{path.stem}@{sha256(path)}" in str(caught.value)
    assert not tokenizer.is_fitted
    tokenizer.load_published(path, accept_unknown=True)
    assert torch.equal(tokenizer.encode(VQKD_NUMBERS["in.images_0_1"]), VQKD_NUMBERS["out.ids"])


def test_bytes_that_nobody_vouches_for_need_a_word(folder: Path) -> None:
    with pytest.raises(HarnessError, match=r"none is known of these weights; .* to dall-e-encoder@"):
        build("dall-e").load_published(folder)


@pytest.mark.parametrize("name", ["vq-kd", "dall-e"])
def test_the_configuration_can_name_the_bytes(folder: Path, name: str) -> None:
    published = tokenizer_spec(name).published
    assert published is not None
    digest = sha256(folder / f"{published.weights}{published.ending}")
    tokenizer = build(name, weights=f"{published.weights}@{digest.upper()}")
    tokenizer.load_published(folder)
    assert tokenizer.is_fitted
    other = build(name, weights=f"{published.weights}@{'0' * 64}")
    with pytest.raises(HarnessError, match=f"is {digest}, but that of these weights is 0000"):
        other.load_published(folder)


def test_a_file_that_begins_as_published_is_taken(folder: Path) -> None:
    path = folder / "dall-e-encoder.pkl"
    digest = sha256(path)
    assert read_published(path, sha256=digest[:8]).keys() == DALLE_WEIGHTS.keys()
    assert read_published(path, sha256=digest).keys() == DALLE_WEIGHTS.keys()
    with pytest.raises(HarnessError, match="begins"):
        read_published(path, sha256=digest[1:9])
    other = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    with pytest.raises(HarnessError, match=f"that of these weights is {other}"):
        read_published(path, sha256=other)


def test_the_file_is_found_by_its_name_alone(folder: Path) -> None:
    tokenizer = build("vq-kd", weights="other")
    with pytest.raises(HarnessError, match=r"no file other \(.*\.pth, \.pkl\) in .*put it there under that"):
        tokenizer.load_published(folder)
    with pytest.raises(HarnessError, match=r"no file vqkd_\w+ .*curl -L .*clip\.pth https://github\.com"):
        build("vq-kd").load_published(folder / "..")
    assert find_file(folder, "dall-e-encoder") == folder / "dall-e-encoder.pkl"
    save_file(DALLE_WEIGHTS, folder / "dall-e-encoder.safetensors")
    with pytest.raises(HarnessError, match=r"encoder\.safetensors and dall-e-encoder\.pkl could both be"):
        find_file(folder, "dall-e-encoder")


@pytest.mark.parametrize(
    "weights", ["", "../x", "a/b", "a@", "a@d5036aa7", f"a@{'g' * 64}", ".hidden", "a b"]
)
def test_other_forms_of_weights_are_refused(weights: str) -> None:
    published = tokenizer_spec("vq-kd").published
    assert published is not None
    with pytest.raises(HarnessError, match=r"neither a file's name .* nor NAME@SHA256"):
        wanted_file(weights, published)
    with pytest.raises(HarnessError, match="neither a file's name"):
        build("vq-kd", weights=weights)


def test_keys_of_another_file_are_named_with_it(folder: Path) -> None:
    with pytest.raises(HarnessError, match=r"dall-e-encoder\.pkl: tokenizer vq-kd, weights: .* is missing"):
        build("vq-kd").load_published(folder / "dall-e-encoder.pkl", accept_unknown=True)


# Every hyperparameter acts -----------------------------------------------------------------------------

OTHER_VALUES: dict[str, dict[str, Any]] = {
    "vq-kd": {"image_size": 40, "patch_size": 16, "width": 48, "depth": 1, "heads": 4, "codebook_size": 8,
              "code_width": 8, "weights": "another"},
    "dall-e": {"image_size": 40, "width": 32, "codebook_size": 64, "weights": "another"},
}  # fmt: skip


def outcome(name: str, folder: Path, **change: Any) -> Any:
    """The tokens of the golden weights in a tokenizer with one value changed, or the refusal."""
    weights = f"{tokenizer_spec(name).resolve({})['weights']}"
    path = folder / f"{weights}{'.pth' if name == 'vq-kd' else '.pkl'}"
    try:
        tokenizer: NetworkTokenizer = build(name, **({"weights": f"{weights}@{sha256(path)}"} | change))
        tokenizer.load_published(folder)
    except HarnessError as refusal:
        return str(refusal)
    side = tokenizer.image_size
    images = torch.rand(24, 3, side, side, generator=torch.Generator().manual_seed(0))
    return tokenizer.encode(images).tolist()


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, fields in OTHER_VALUES.items() for field in fields]
)
def test_a_changed_value_is_refused_or_changes_the_tokens(folder: Path, name: str, field: str) -> None:
    assert set(OTHER_VALUES[name]) == set(tokenizer_spec(name).resolve({}))
    unchanged = outcome(name, folder)
    assert isinstance(unchanged, list)
    assert outcome(name, folder, **{field: OTHER_VALUES[name][field]}) != unchanged
