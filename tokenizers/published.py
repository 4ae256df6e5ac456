"""Files of published weights -> named tensors, without ever running what a file says.

Read are safetensors, what torch.save writes as a zip archive (a checkpoint's dictionary or a pickled
module), and what torch.jit.save writes (torchscript.py). Pickles are read with `weights_only`: tensors come
through, classes only where they are listed below, and those become placeholders that can do nothing. Any
other name is refused unread.
"""

from __future__ import annotations

import logging
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from protocols.errors import HarnessError
from protocols.files import sha256_of_file
from tokenizers.torchscript import RefusedName, is_program, is_torchscript, read_torchscript
from tokenizers.weights_files import ENDINGS, WantedFile

log = logging.getLogger(__name__)

_ZIP_START = b"PK\x03\x04"
# What published files name besides tensors: a training script's arguments, the dVAE's classes.
_PLACEHOLDERS = (
    "argparse.Namespace",
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
)
# All that torch raises on archives that are cut, altered or made up.
_UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)


class _Inert:
    """Stands for an object of any class: keeps its state as it was stored, and has no behaviour."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_published(path: Path, *, sha256: str | None, accept_unknown: bool = False) -> dict[str, Tensor]:
    """The named tensors in the weights file `path`, on the CPU.

    `sha256` is how the file's SHA-256 has to begin, None if nothing is known of it. `accept_unknown`
    takes a file that this does not confirm. Raises HarnessError for a file that is missing, not
    confirmed, damaged, in torch's old format, or that holds more than named tensors.
    """
    if not path.is_file():
        raise HarnessError(f"{path}: no such file of weights")
    if not accept_unknown:
        _confirm(path, sha256)
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise HarnessError(f"{path}: cannot be read as safetensors ({error}); fetch it again") from None
    content = _unpickled(path)
    if is_torchscript(path):
        return {name: _dense(path, name, value) for name, value in content.items()}
    named = _tensors_of_module(path, content) if isinstance(content, _Inert) else _state_dict(path, content)
    return {name: _dense(path, name, value) for name, value in named.items()}


class ReadFile(NamedTuple):
    """A file of weights, its SHA-256 and its named tensors."""

    path: Path
    sha256: str
    tensors: dict[str, Tensor]


def read_wanted(owner: str, source: Path, wanted: WantedFile, *, accept_unknown: bool = False) -> ReadFile:
    """The file `wanted` of the folder `source`, or the file `source` itself.

    `owner` opens messages and log lines. HarnessError if there is none, and as `read_published`.
    """
    is_file = source.suffix in ENDINGS and not source.is_dir()
    path = source if is_file or source.is_file() else wanted.find(source)
    if path is None:
        raise HarnessError(
            f"{owner}: no file {wanted.name} ({', '.join(ENDINGS)}) in {source}; {wanted.remedy(str(source))}"
        )
    tensors = read_published(path, sha256=wanted.sha256, accept_unknown=accept_unknown)
    sha256 = sha256_of_file(path)
    log.info("%s: weights of %s, SHA-256 %s", owner, path.name, sha256)
    return ReadFile(path, sha256, tensors)


def check_tensors(owner: str, given: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    """HarnessError naming the first tensor that is missing, misshapen, not finite floats, or unexpected."""
    for name, shape in expected.items():
        if name not in given:
            raise HarnessError(f"{owner}: {name} {tuple(shape)} is missing; {_SIZES}")
        tensor = given[name]
        if tensor.shape != shape:
            raise HarnessError(
                f"{owner}: {name} has shape {tuple(tensor.shape)}, this configuration needs "
                f"{tuple(shape)}; {_SIZES}"
            )
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise HarnessError(f"{owner}: {name} ({tensor.dtype}) holds other than finite floats; {_SIZES}")
    for name in given:
        if name not in expected:
            raise HarnessError(f"{owner}: {name} is no part of this network; {_SIZES}")


def _confirm(path: Path, sha256: str | None) -> None:
    found = sha256_of_file(path)
    if sha256 is not None and found.startswith(sha256):
        return
    states = "is" if sha256 is not None and len(sha256) == 64 else "begins"
    known = "none is known of these weights" if sha256 is None else f"that of these weights {states} {sha256}"
    raise HarnessError(
        f"{path}: its SHA-256 is {found}, but {known}; {_REMEDY}, or, to use this one and have the record "
        f"say so, set the tokenizer's weights to {path.stem}@{found}"
    )


def _unpickled(path: Path) -> Any:
    with path.open("rb") as stream:
        if stream.read(4) != _ZIP_START:
            raise HarnessError(
                f"{path}: not a zip archive, so damaged or in torch's format before 1.6, which is not read "
                "here; if you trust it (this runs what it says), convert it where its own package is "
                'installed: python -c "import sys, torch; from safetensors.torch import save_file; m = '
                "torch.load(sys.argv[1], map_location='cpu', weights_only=False); save_file({k: v.detach()"
                ".contiguous() for k, v in (m if isinstance(m, dict) else m.state_dict()).items()}, "
                f'sys.argv[2])" {path.name} {path.stem}.safetensors'
            )
    try:
        scripted = is_torchscript(path)
        _check_members(path, scripted=scripted)
        if scripted:
            return read_torchscript(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in _PLACEHOLDERS]):
            refused = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
            if refused:
                raise _names_code(path, ", ".join(refused))
            return torch.load(path, map_location="cpu", weights_only=True)
    except HarnessError:
        raise
    except RefusedName as name:
        raise _names_code(path, str(name)) from None
    except _UNREADABLE as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HarnessError(f"{path}: cannot be read as weights ({first}); fetch it again") from None


def _check_members(path: Path, *, scripted: bool) -> None:
    """BadZipFile for members that would take more memory than the file's size, as torch writes none."""
    with zipfile.ZipFile(path) as archive:
        read = [info for info in archive.infolist() if not (scripted and is_program(info.filename))]
    for info in read:
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise zipfile.BadZipFile(f"{info.filename} is compressed")
    # Members that overlap each other could be many times the file.
    if sum(info.file_size for info in read) > path.stat().st_size:
        raise zipfile.BadZipFile("its members are larger than the file")


def _names_code(path: Path, names: str) -> HarnessError:
    return HarnessError(
        f"{path}: names {names}, which is no part of published weights; nothing of it was run; {_REMEDY}"
    )


def _tensors_of_module(path: Path, module: _Inert) -> dict[str, Any]:
    """Parameters and buffers of a pickled module under the names that its state dict would have."""
    tensors: dict[str, Any] = {}
    waiting, seen = [("", module)], {id(module)}
    while waiting:
        prefix, one = waiting.pop()
        state = one.state if isinstance(one.state, dict) else {}
        parts = [state[kind] for kind in _KINDS if isinstance(state.get(kind), dict)]
        if len(parts) != len(_KINDS):
            raise HarnessError(f"{path}: {prefix or 'its object'} is no pickled module; {_REMEDY}")
        parameters, buffers, children = parts
        tensors |= {f"{prefix}{name}": value for name, value in (parameters | buffers).items()}
        for name, child in children.items():
            # A module in two places could also contain itself, or multiply without end.
            if not isinstance(child, _Inert) or id(child) in seen:
                raise HarnessError(f"{path}: {prefix}{name} is no module of its own; {_REMEDY}")
            seen.add(id(child))
            waiting.append((f"{prefix}{name}.", child))
    return tensors


def _state_dict(path: Path, content: Any) -> dict[str, Any]:
    """The checkpoint's `model`, else its `state_dict`, else all of it where it holds tensors alone."""
    chosen = content
    if isinstance(content, Mapping):
        chosen = content.get("model", content.get("state_dict", content))
    if not isinstance(chosen, Mapping):
        raise HarnessError(f"{path}: holds {type(chosen).__name__}, not named tensors; {_REMEDY}")
    return dict(chosen)


def _dense(path: Path, name: Any, value: Any) -> Tensor:
    is_plain = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
    if not isinstance(name, str) or not is_plain or value.is_quantized:
        raise HarnessError(f"{path}: {name} is {type(value).__name__}, not a plain tensor; {_REMEDY}")
    tensor: Tensor = value.detach()
    return tensor


_KINDS = ("_parameters", "_buffers", "_modules")
_REMEDY = "fetch the published file"
_SIZES = "take the published file and the sizes that belong to it"
