"""TorchScript archives, as OpenAI published CLIP: their tensors come out, and nothing of them runs."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from protocols.errors import HarnessError
from tests.tokenizers.small_networks import (
    SMALL_CLIP,
    SMALL_RESNET,
    clip_network,
    golden_clip,
    register_small_networks,
)
from tokenizers import build_tokenizer, torchscript
from tokenizers.published import read_published
from tokenizers.torchscript import ScriptModule

# torch.jit is on its way out, but the published files are of its making.
pytestmark = pytest.mark.filterwarnings("ignore")
NUMBERS, WEIGHTS = golden_clip()


class Clip(nn.Module):
    """The golden tower with its pooling, beside what else a published archive holds."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = clip_network(SMALL_RESNET).visual
        own = {name.removeprefix("visual."): tensor for name, tensor in WEIGHTS.items()}
        self.visual.load_state_dict(self.visual.state_dict() | own)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("input_resolution", torch.tensor(64))

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.visual(images) * self.logit_scale
        return pooled


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive as torch.jit.trace and save make it, in half precision as OpenAI's."""
    path = tmp_path_factory.mktemp("published") / "small.pt"
    with torch.no_grad():
        torch.jit.trace(Clip().eval(), NUMBERS["in.images"]).half().save(str(path))
    return path


def read(path: Path) -> dict[str, Tensor]:
    return read_published(path, sha256=None, accept_unknown=True)


def rewritten(source: Path, target: Path, changes: dict[str, bytes | None], compression: int = 0) -> Path:
    """The archive with members replaced or dropped (None), by their names below its folder."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        folder = old.namelist()[0].split("/")[0]
        members = {name.partition("/")[2]: old.read(name) for name in old.namelist()} | changes
        for name, content in members.items():
            if content is not None:
                new.writestr(f"{folder}/{name}", content)
    return target


def test_tensors_are_those_that_torch_would_load(published: Path) -> None:
    found, expected = read(published), torch.jit.load(str(published)).state_dict()
    assert found.keys() == expected.keys() > {"logit_scale", "visual.layer2.1.bn3.running_var"}
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert {tensor.dtype for tensor in found.values()} == {torch.float16, torch.int64}
    with pytest.raises(RuntimeError, match="TorchScript"):
        torch.load(published, weights_only=True)


def test_scripted_modules_and_views_are_read_too(tmp_path: Path) -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
            self.turned = nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
            self.part = nn.Parameter(torch.arange(6.0)[2:4])
            self.sizes = [1, 2]

        def forward(self, values: Tensor) -> Tensor:
            out: Tensor = self.layer(values) @ self.turned.t() + self.part.sum() + self.sizes[0]
            return out

    path = tmp_path / "layers.pt"
    scripted = torch.jit.script(Layers())
    scripted.save(str(path))
    found, expected = read(path), scripted.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_k_clip_takes_such_an_archive(published: Path) -> None:
    register_small_networks()
    tokenizer = build_tokenizer("k-clip", **(SMALL_CLIP | {"weights": f"small@{'0' * 64}"}))
    tokenizer.load_published(published, accept_unknown=True)
    found = tokenizer.extractor.features(NUMBERS["in.images"])  # type: ignore[attr-defined]
    assert found.shape == (2, 4, 256)
    assert not tokenizer.needs_weights
    assert {tensor.dtype for tensor in tokenizer.extractor._network.state_dict().values()} == {  # type: ignore[attr-defined]
        torch.float32,
        torch.int64,
    }


# What is not run ---------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("place", ["all of it", "a parameter", "beside the parameters"])
def test_code_in_the_tree_does_not_run(published: Path, tmp_path: Path, place: str) -> None:
    seen = tmp_path / "seen"
    evil = Call(eval, f"__import__('pathlib').Path({str(seen)!r}).touch()")
    content = {"all of it": evil, "a parameter": {"weight": evil}, "beside the parameters": [1, evil]}[place]
    tree = pickle.dumps(content, protocol=2)
    path = rewritten(published, tmp_path / "evil.pt", {"data.pkl": tree})
    with pytest.raises(HarnessError, match=r"names (__builtin__|builtins)\.eval, .*nothing of it was run"):
        read(path)
    assert not seen.exists()
    pickle.loads(tree)
    assert seen.exists(), "it would have run: the tree is what it claims to be"


@pytest.mark.parametrize(
    "name",
    [
        "os system", "builtins getattr", "torch load", "torch._utils _rebuild_tensor", "torch.jit._pickle os",
        "torch._utils _rebuild_tensor_v2.__globals__", "torch nn", "collections OrderedDict.fromkeys",
        "torch.storage _load_from_bytes", "__torch__x Module", "copyreg _reconstructor",
    ],
)  # fmt: skip
def test_any_other_name_is_refused(published: Path, tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    tree = f"c{module}\n{attribute}\n.".encode()
    path = rewritten(published, tmp_path / "names.pt", {"data.pkl": tree})
    with pytest.raises(HarnessError, match=rf"names {module}\.{attribute}, which is no part of published"):
        read(path)


def test_the_program_is_never_read(published: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(published) as archive:
        programs = {name.partition("/")[2]: b"import os" for name in archive.namelist() if "/code/" in name}
    assert programs
    path = rewritten(published, tmp_path / "other.pt", programs)
    assert read(path).keys() == read(published).keys()


def test_what_a_pickle_is_given_keeps_its_behaviour(published: Path, tmp_path: Path) -> None:
    """A pickle may set attributes of what it names; that must not outlive it, nor reach a class."""
    for given in (b"c__torch__\nX\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"):
        state = b"}U\x0c__setstate__NsU\x04loadNs"
        path = rewritten(published, tmp_path / "set.pt", {"data.pkl": given + b"N" + state + b"\x86b."})
        with pytest.raises(HarnessError):
            read(path)
    assert callable(ScriptModule.__setstate__)
    assert OrderedDict(a=1)["a"] == 1
    assert read(published)["logit_scale"] == 2


# Damage ------------------------------------------------------------------------------------------------


def test_damaged_archives_are_refused(published: Path, tmp_path: Path) -> None:
    content = published.read_bytes()
    path = tmp_path / "cut.pt"
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (content[:-300], content[:middle], content[:4], flipped):
        path.write_bytes(damaged)
        with pytest.raises(HarnessError, match=r"cut\.pt: cannot be read as weights"):
            read(path)


def _storage(*pid: Any, view: tuple[Any, ...] = (0, (4,), (1,)), then: bytes = b"") -> bytes:
    """A tree that is a module with one tensor: `view` of the bytes that `pid` names. `then` alters it."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, given: Any) -> Any:
            return given[1:] if isinstance(given, tuple) and given[:1] == ("bytes",) else None

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump((("bytes", *pid), *view))
    opened = stream.getvalue().replace(b"ctorch.storage\n", b"ctorch\n")
    assert any(code.name == "BINPERSID" for code, *_ in pickletools.genops(opened))
    # c__torch__ M () NEWOBJ, its state {"w": REDUCE of the view, `then`}, BUILD
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + opened[2:-1] + b"R" + then
    return b"\x80\x02c__torch__\nM\n)\x81}U\x01w" + tensor + b"sb."


def _archive(path: Path, tree: bytes, content: bytes = bytes(16), compressed: str = "") -> Path:
    members = {"data.pkl": tree, "constants.pkl": b"\x80\x02).", "data/0": content, "code/M.py": b"0" * 999}
    with zipfile.ZipFile(path, "w") as archive:
        for name, one in members.items():
            method = zipfile.ZIP_DEFLATED if name == compressed else zipfile.ZIP_STORED
            archive.writestr(f"a/{name}", one, method)
    return path


@pytest.mark.parametrize(
    "pid",
    [
        ("storage", torch.FloatStorage, "0", "cpu", 5),
        ("storage", torch.FloatStorage, "999", "cpu", 4),
        ("storage", torch.FloatStorage, "../0", "cpu", 4),
        ("storage", "float", "0", "cpu", 4),
        ("module", torch.FloatStorage, "0", "cpu", 4),
        ("storage",),
    ],
)
def test_bytes_that_do_not_fit_are_refused(tmp_path: Path, pid: tuple[Any, ...]) -> None:
    path = _archive(tmp_path / "a.pt", _storage(*pid))
    with pytest.raises(HarnessError, match=r"a\.pt: cannot be read as weights"):
        read(path)


FLOATS = ("storage", torch.FloatStorage, "0", "cuda:0", 4)


def test_bytes_that_fit_are_read(tmp_path: Path) -> None:
    """So that the refusals around this are not the fault of the archive made here."""
    stored = torch.arange(4.0)
    for view, expected in (
        ((0, (4,), (1,)), stored),
        ((1, (3,), (1,)), stored[1:]),
        ((0, (2, 2), (1, 2)), stored.reshape(2, 2).t()),
        ((3, (), ()), stored[3]),
        ((4, (0, 9), (9, 1)), torch.empty(0, 9)),
    ):
        path = _archive(tmp_path / "a.pt", _storage(*FLOATS, view=view), stored.numpy().tobytes())
        assert torch.equal(read(path)["w"], expected)


@pytest.mark.parametrize("member", ["data.pkl", "data/0", "constants.pkl", "code/M.py"])
def test_only_the_program_may_be_compressed(published: Path, tmp_path: Path, member: str) -> None:
    """An unpacked size is only what the archive says of itself; torch compresses no other member."""
    with zipfile.ZipFile(published) as archive:
        packed = {info.filename.split("/")[1] for info in archive.infolist() if info.compress_type}
    assert packed == {"code"}
    path = _archive(tmp_path / "a.pt", _storage(*FLOATS), compressed=member)
    if member.startswith("code/"):
        assert torch.equal(read(path)["w"], torch.zeros(4))
    else:
        with pytest.raises(HarnessError, match=rf"cannot be read as weights \(a/{member} is compressed"):
            read(path)


@pytest.mark.parametrize(
    "view",
    [
        (0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 2), (3, 1)), (5, (0,), (1,)), (0, (3,), (2**63 - 1,)),
        (2**70, (1,), (1,)), (3, (4,), (-1,)), (-1, (4,), (1,)), (0, (-4,), (1,)), (0, (4,), (1, 1)),
        (0, (True,), (1,)), (0, (4.0,), (1,)), (0.0, (4,), (1,)), (0, [4], [1]), (0, 4, 1), (0,),
    ],
)  # fmt: skip
def test_views_beyond_the_bytes_are_refused(tmp_path: Path, view: tuple[Any, ...]) -> None:
    path = _archive(tmp_path / "a.pt", _storage(*FLOATS, view=view))
    with pytest.raises(HarnessError, match=r"a\.pt: cannot be read as weights"):
        read(path)


def _state(*content: Any) -> bytes:
    """BUILD with this state."""
    return pickle.dumps(content, protocol=2)[2:-1] + b"b"


@pytest.mark.parametrize(
    "then",
    [
        # Tensor.__setstate__: (bytes, offset, size, strides) would grow empty bytes to whatever memory holds.
        b"((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x00tQK\x00K@\x85K\x01\x85tb",
        _state(0, (64,), (1,)),
        _state({"size": (64,)}, {}),
        _state(None, {"size": (64,)}),
        b"}U\x04sizeK@\x85sb",
        b"}b",
        b"K@a",  # APPEND
        b"K\x02K@\x85s",  # SETITEM
    ],
)
def test_a_tensor_cannot_be_altered_by_its_pickle(tmp_path: Path, then: bytes) -> None:
    pid = ("storage", torch.FloatStorage, "0", "cpu", 0)
    tree = {text: _storage(*pid, view=(0, (0,), (1,)), then=text) for text in (b"", then)}
    assert read(_archive(tmp_path / "a.pt", tree[b""], b""))["w"].shape == (0,)
    with pytest.raises(HarnessError, match=r"a\.pt: cannot be read as weights"):
        read(_archive(tmp_path / "a.pt", tree[then], b""))


@pytest.mark.parametrize(
    "name", ["torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch.jit._pickle build_intlist"]
)
def test_what_a_pickle_names_cannot_be_altered(tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    named = f"c{module}\n{attribute}\n".encode()
    whole = b"\x80\x02c__torch__\nM\n)\x81}U\x01f" + named + b"%bsb."
    assert read(_archive(tmp_path / "a.pt", whole % b"")) == {}
    for state in ({"seen": 1}, {"function": 1}, {"dtype": 1}):
        for then in (pickle.dumps(state, protocol=2)[2:-1] + b"b", _state(None, state)):
            with pytest.raises(HarnessError, match=r"a\.pt: cannot be read as weights"):
                read(_archive(tmp_path / "a.pt", whole % then))
    assert not any(hasattr(function, "seen") for function in torchscript._FUNCTIONS.values())


def test_trees_that_are_no_modules_are_refused(published: Path, tmp_path: Path) -> None:
    module = b"c__torch__\nM\n)\x81"
    twice = b"\x80\x02" + module + b"}(U\x01a" + module + b"}bq\x00U\x01bh\x00ub."
    for tree, message in (
        (b"].", "holds list, not a module"),
        (module + b".", "its object is no module"),
        (module + b"}U\x01a" + module + b"sb.", "a. is no module"),
        (twice, "stands in two places"),
    ):
        path = rewritten(published, tmp_path / "a.pt", {"data.pkl": tree})
        with pytest.raises(HarnessError, match=message):
            read(path)
