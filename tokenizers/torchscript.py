"""The tensors of a TorchScript archive, such as OpenAI's CLIP files, without running what it says.

Such an archive is a zip of a program (code/), its object tree (data.pkl) and the tensors' bytes (data/).
torch.jit.load would compile the program. Here the tree alone is unpickled, by a reader that knows five
callables: three that build tensors and plain containers, and placeholders for modules and storage types.
Any other name is refused. The program is never looked at.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


class RefusedName(Exception):
    """The object tree names something that is no part of one."""


def is_torchscript(path: Path) -> bool:
    """True for a zip archive that torch.jit.save wrote. False also for one that cannot be listed."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[1:] == [_CONSTANTS] for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by their dotted names. Raises RefusedName, HarnessError, or as zipfile and
    pickle do for damaged files."""
    with zipfile.ZipFile(path) as archive:
        (listed,) = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        with archive.open(listed) as stream:
            tree = _TreeReader(stream, archive, folder=listed.removesuffix("data.pkl") + "data/").load()
    if not isinstance(tree, ScriptModule):
        raise HarnessError(f"{path}: holds {type(tree).__name__}, not a module; fetch the published file")
    return _tensors_of(path, tree)


class _TreeReader(pickle.Unpickler):
    """`find_class` is the only way by which a pickle gets at anything that can be called."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, *, folder: str) -> None:
        super().__init__(stream)
        self._archive, self._folder = archive, folder
        self._read: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        # Bound methods, not functions: a pickle may set attributes on what it is given.
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("collections", "OrderedDict"): self._nothing,
        }
        if module.partition(".")[0] == "__torch__":
            return ScriptModule
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch.jit._pickle" and re.fullmatch(r"build_\w*list|restore_type_tag", name):
            return self._first
        if (module, name) in known:
            return known[module, name]
        raise RefusedName(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """('storage', dtype, key, device, count) -> the bytes under that key as a flat tensor, on the CPU."""
        kind, dtype, key, _device, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not re.fullmatch(r"\w+", key):
            raise ValueError(f"{pid} names no tensor's bytes")
        if key not in self._read:
            info = self._archive.getinfo(self._folder + key)
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
                raise ValueError(f"{info.filename} has {info.file_size} bytes, not {count} of {dtype}")
            content = bytearray(self._archive.read(info))
            self._read[key] = (
                torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
        if self._read[key].dtype != dtype:
            raise ValueError(f"{key} is of two types")
        return self._read[key]

    def _tensor(
        self, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
    ) -> Tensor:
        if not isinstance(storage, Tensor):
            raise TypeError("a tensor without bytes")
        # torch refuses a view that reaches beyond the bytes.
        return torch.as_strided(storage, size, stride, offset)

    def _parameter(self, tensor: Tensor, *_: Any) -> Tensor:
        return tensor

    def _nothing(self) -> dict[str, Any]:
        return {}

    def _first(self, value: Any, *_: Any) -> Any:
        return value


def _tensors_of(path: Path, tree: ScriptModule) -> dict[str, Tensor]:
    """The tensors of a module and of those inside it; other attributes (flags, numbers, text) are left."""
    tensors: dict[str, Tensor] = {}
    waiting, seen = [("", tree)], {id(tree)}
    while waiting:
        prefix, module = waiting.pop()
        if not isinstance(module.state, dict):
            raise HarnessError(f"{path}: {prefix or 'its object'} is no module; fetch the published file")
        for name, value in module.state.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, ScriptModule):
                # A module in two places could also contain itself, or multiply without end.
                if id(value) in seen:
                    raise HarnessError(
                        f"{path}: {prefix}{name} stands in two places; fetch the published file"
                    )
                seen.add(id(value))
                waiting.append((f"{prefix}{name}.", value))
    return tensors
