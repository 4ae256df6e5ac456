"""The tensors of a TorchScript archive, such as OpenAI's CLIP files, without running what it says.

Such an archive is a zip of a program (code/), its object tree (data.pkl) and the tensors' bytes (data/).
torch.jit.load would compile the program. Here the tree alone is unpickled, into records that the pickle
can neither call, alter nor fill: placeholders for modules, and notes of which bytes make up a tensor. Any
other name is refused. Only when the pickle has ended are the noted tensors checked and made. The program
is never looked at.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protocols.errors import HarnessError

_CONSTANTS = "constants.pkl"  # only TorchScript archives have this member
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class ScriptModule:
    """Stands for a module of any class: keeps its attributes as stored, and has no behaviour."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


# A pickle may set attributes of any object it holds, and calls a tensor's own __setstate__, which resizes
# its bytes. Named tuples have no __setstate__, no __dict__ and no field that can be set.


class _Callable(NamedTuple):
    """What a pickle may call."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _StorageType(NamedTuple):
    dtype: torch.dtype


class _Bytes(NamedTuple):
    """`count` numbers under `key`, as the pickle says: nothing of it is checked yet."""

    key: Any
    kind: Any
    count: Any


class _View(NamedTuple):
    """A tensor of `storage`, as the pickle says: nothing of it is checked yet."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


class RefusedName(Exception):
    """The object tree names something that is no part of one."""


def is_torchscript(path: Path) -> bool:
    """True for a zip archive that torch.jit.save wrote. False also for one that cannot be listed."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[1:] == [_CONSTANTS] for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def is_program(member: str) -> bool:
    """True for the members of a TorchScript archive that are never read. Only these does torch compress."""
    return member.split("/")[1:2] == ["code"]


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by their dotted names. Raises RefusedName, HarnessError, or as zipfile and
    pickle do for damaged files."""
    with zipfile.ZipFile(path) as archive:
        (listed,) = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        with archive.open(listed) as stream:
            tree = _TreeReader(stream).load()
        if not isinstance(tree, ScriptModule):
            raise HarnessError(f"{path}: holds {type(tree).__name__}, not a module; fetch the published file")
        contents = _Contents(archive, folder=listed.removesuffix("data.pkl") + "data/")
        return {name: contents.tensor(view) for name, view in _views_of(path, tree).items()}


class _TreeReader(pickle.Unpickler):
    """`find_class` is the only way by which a pickle gets at anything that can be called."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return ScriptModule
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if module == "torch.jit._pickle" and re.fullmatch(r"build_\w*list|restore_type_tag", name):
            return _Callable(_first)
        if (module, name) in _FUNCTIONS:
            return _Callable(_FUNCTIONS[module, name])
        raise RefusedName(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Bytes:
        """('storage', its type, key, device, count). The device is of no account: all is read to the CPU."""
        what, kind, key, _device, count = pid
        if what != "storage":
            raise ValueError("a reference to something other than a tensor's bytes")
        return _Bytes(key, kind, count)


def _view(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _View:
    return _View(storage, offset, size, stride)


def _nothing() -> dict[str, Any]:
    return {}


def _first(value: Any, *_: Any) -> Any:
    return value


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("collections", "OrderedDict"): _nothing,
}


class _Contents:
    """The archive's bytes as tensors. Those that share bytes in the archive share them here."""

    def __init__(self, archive: zipfile.ZipFile, *, folder: str) -> None:
        self._archive, self._folder = archive, folder
        self._read: dict[str, Tensor] = {}

    def tensor(self, view: _View) -> Tensor:
        """Raises ValueError for a view that is none, or that reaches beyond its bytes."""
        size, stride = view.size, view.stride
        if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
            raise ValueError("a tensor without a shape")
        if not all(type(number) is int and number >= 0 for number in (view.offset, *size, *stride)):
            raise ValueError("a tensor whose shape holds other than whole numbers from 0")
        flat = self._flat(view.storage)
        reach = sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if view.offset + (0 if 0 in size else reach + 1) > len(flat):
            raise ValueError(f"a tensor reaches beyond its {len(flat)} numbers")
        return torch.as_strided(flat, size, stride, view.offset)

    def _flat(self, stored: Any) -> Tensor:
        """All numbers under a key."""
        if not isinstance(stored, _Bytes) or not isinstance(stored.kind, _StorageType):
            raise ValueError("a tensor without bytes")
        key, dtype, count = stored.key, stored.kind.dtype, stored.count
        if type(key) is not str or not re.fullmatch(r"\w+", key) or type(count) is not int:
            raise ValueError("a tensor without bytes")
        if key not in self._read:
            self._read[key] = self._numbers(self._archive.getinfo(self._folder + key), dtype)
        flat = self._read[key]
        if flat.dtype != dtype or len(flat) != count:
            raise ValueError(f"data/{key} has {len(flat)} of {flat.dtype}, not {count} of {dtype}")
        return flat

    def _numbers(self, info: zipfile.ZipInfo, dtype: torch.dtype) -> Tensor:
        content = bytearray(self._archive.read(info))
        if len(content) % dtype.itemsize:
            raise ValueError(f"{info.filename} has {len(content)} bytes, which are no {dtype}")
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _views_of(path: Path, tree: ScriptModule) -> dict[str, _View]:
    """The tensors of a module and of those inside it; other attributes (flags, numbers, text) are left."""
    views: dict[str, _View] = {}
    waiting, seen = [("", tree)], {id(tree)}
    while waiting:
        prefix, module = waiting.pop()
        if not isinstance(module.state, dict):
            raise HarnessError(f"{path}: {prefix or 'its object'} is no module; fetch the published file")
        for name, value in module.state.items():
            if isinstance(value, _View):
                views[f"{prefix}{name}"] = value
            elif isinstance(value, ScriptModule):
                # A module in two places could also contain itself, or multiply without end.
                if id(value) in seen:
                    raise HarnessError(
                        f"{path}: {prefix}{name} stands in two places; fetch the published file"
                    )
                seen.add(id(value))
                waiting.append((f"{prefix}{name}.", value))
    return views
