"""A file with a fine-tuned classifier -> its weights under timm's names, without running what it says.

Read are safetensors and what torch.save writes, today as a zip archive and before version 1.6 as pickles
one after another; a pickle is read with `weights_only`. Beside the weights, checkpoints of training scripts
hold arguments, optimiser states and scores: what is named for those below becomes a placeholder that can
do nothing, and any other class or function is refused. The reader of tokenizers' weights
(tokenizers/published.py) is stricter; its bytes are part of every token store's identity.

Reference checkpoints of MaPeT have separate `attn.q` and `attn.kv` where timm has one `attn.qkv`.
Shapes: D width, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.pickled_file import UNREADABLE, ZIP_START, RefusedPickle, check_members, check_pickles
from protocols.errors import HarnessError
from tokenizers.published import read_published

# Entries of a checkpoint that hold weights: timm's scripts write the first two, DeiT's and MAE's the others.
KEYS = ("state_dict", "state_dict_ema", "model", "model_ema")
# What DistributedDataParallel and torch.compile put before every name.
_WRAPPINGS = ("module.", "_orig_mod.")
# What training scripts keep beside the weights: arguments, and scores as numpy numbers and arrays.
_BESIDES = (
    "argparse.Namespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
_TAR_MARK, _TAR_MARK_AT = b"ustar", 257
JOINED = "attn.q and attn.kv joined to timm's attn.qkv"


class _Beside:
    """Stands for what lies beside the weights: takes anything, keeps nothing, does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class ClassifierFile:
    """Named weights. `key` is the entry that held them, empty where the file is nothing else.

    `changes` says what was done to names and tensors.
    """

    tensors: dict[str, Tensor]
    key: str
    changes: tuple[str, ...]


def read_classifier(path: Path, *, key: str | None = None) -> ClassifierFile:
    """The classifier in the file `path`, under timm's names, on the CPU; `key` as for `read_weights`.

    Raises HarnessError as that does, and for q and kv that do not belong together.
    """
    read = read_weights(path, key=key, wanted="a fine-tuned classifier")
    joined = joined_attention(path, read.tensors)
    changes = [*read.changes]
    if joined.keys() != read.tensors.keys():
        changes.append(JOINED)
    return ClassifierFile(tensors=joined, key=read.key, changes=tuple(changes))


def read_weights(
    path: Path, *, key: str | None = None, wanted: str, choice: str = "choose it with --key"
) -> ClassifierFile:
    """The weights in the file `path`, on the CPU; `key` names the entry where there are several.

    `wanted` says what kind of file would do, `choice` how one of several entries is chosen. Raises
    HarnessError for a file that is missing, damaged or names code, and for one whose weights `key` or its
    absence does not tell.
    """
    if not path.is_file():
        raise HarnessError(f"{path}: no such file; give the file of {wanted}")
    if path.suffix == ".safetensors":
        if key:
            raise HarnessError(f"{path}: safetensors hold one set of weights; leave --key {key} away")
        named, chosen = dict(read_published(path, sha256=None, accept_unknown=True)), ""
    else:
        named, chosen = _state_dict(path, _unpickled(path, wanted), key, choice)
    tensors = {name: _plain(path, name, value, choice) for name, value in named.items()}
    tensors, wrapping = _unwrapped(tensors)
    changes = (f"{wrapping!r} before every name taken away",) if wrapping else ()
    return ClassifierFile(tensors=tensors, key=chosen, changes=changes)


def _unpickled(path: Path, wanted: str) -> Any:
    """Containers, numbers, text, tensors and placeholders. HarnessError for all that cannot be read."""
    with path.open("rb") as stream:
        start = stream.read(_TAR_MARK_AT + len(_TAR_MARK))
    if start[_TAR_MARK_AT:] == _TAR_MARK:
        raise HarnessError(
            f"{path}: a tar archive of files; torch.save writes none, whatever its files are called: unpack "
            "it, and give the file of weights in it"
        )
    if start[8:9] == b"{":  # after the length of a header in JSON
        raise HarnessError(
            f"{path}: is safetensors by its content, which are known by their ending; call it "
            f"{path.stem}.safetensors"
        )
    is_zip = start.startswith(ZIP_START)
    try:
        if is_zip:
            with path.open("rb") as stream:
                check_members(stream)
        with torch.serialization.safe_globals([(_Beside, name) for name in _BESIDES]):
            # Asked first where torch can tell, so that all the names are listed.
            refused = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) if is_zip else []
            if refused:
                raise _names_code(path, ", ".join(refused))
            with path.open("rb") as stream:
                check_pickles(stream, placeholders=_BESIDES)
            return torch.load(path, map_location="cpu", weights_only=True)
    except HarnessError:
        raise
    except UNREADABLE as error:
        if isinstance(error, RefusedPickle) and error.names:
            raise _names_code(path, error.names) from None
        refusal = re.search(r"nsupported (?:global: )?GLOBAL ([\w.]+)", str(error))
        if refusal is not None:
            raise _names_code(path, refusal[1]) from None
        said = _said(error)
        raise HarnessError(
            f"{path}: is no file of weights that torch or safetensors write, or it is damaged"
            f"{f' ({said})' if said else ''}; fetch it again, or give the file of {wanted}"
        ) from None


def _said(error: BaseException) -> str:
    """What was wrong with the file in its text, if any, without torch's advice to allow everything."""
    text = str(error).strip()
    if isinstance(error, LookupError):
        return ""  # its text is a bare key
    if "weights_only" in text:
        at_end = re.search(r"WeightsUnpickler error:\s*(.+)", text)
        text = at_end[1].strip() if at_end is not None else ""
    return (text.splitlines() or [""])[0]


def _names_code(path: Path, names: str) -> HarnessError:
    return HarnessError(
        f"{path}: names {names}, which is no part of a file of weights; nothing of it was run; fetch the "
        "published file, or save its state dict alone, as safetensors"
    )


def _state_dict(path: Path, content: Any, key: str | None, choice: str) -> tuple[dict[Any, Any], str]:
    """The entry called `key`, or the only one of KEYS, or all of the file where it has none of them."""
    if not isinstance(content, Mapping):
        raise HarnessError(f"{path}: holds {_kind(content)}, not named tensors; fetch the published file")
    entries = [name for name, value in content.items() if isinstance(value, Mapping) and value]
    if key is not None:
        if key not in entries:
            known = ", ".join(str(name) for name in entries) or "none"
            raise HarnessError(
                f"{path}: --key {key} names no entry with weights; entries that could be: {known}"
            )
        return dict(content[key]), key
    held = [name for name in KEYS if name in entries]
    if len(held) > 1:
        raise HarnessError(
            f"{path}: holds several sets of weights, {', '.join(held)}; which one is meant would be a "
            f"guess: {choice}, such as --key {held[0]}"
        )
    return (dict(content[held[0]]), held[0]) if held else (dict(content), "")


def _plain(path: Path, name: Any, value: Any, choice: str) -> Tensor:
    is_plain = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
    if not isinstance(name, str) or not is_plain or value.is_quantized:
        raise HarnessError(
            f"{path}: {name} is {_kind(value)}, not a plain tensor; the weights may lie in an entry of their "
            "own: " + choice
        )
    # A view may repeat what is there once, and a pickle may ask for more bytes than it brings.
    if max(value.nbytes, value.untyped_storage().nbytes()) > path.stat().st_size:
        raise HarnessError(
            f"{path}: {name} {tuple(value.shape)} is larger than the whole file; fetch the published file"
        )
    tensor: Tensor = value.detach()
    return tensor


def _kind(value: Any) -> str:
    return "an object of another class" if isinstance(value, _Beside) else type(value).__name__


def _unwrapped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors without what stands before every name, and what that was."""
    taken = ""
    named = dict(tensors)
    while named:
        found = [one for one in _WRAPPINGS if all(name.startswith(one) for name in named)]
        if not found:
            break
        taken += found[0]
        named = {name.removeprefix(found[0]): tensor for name, tensor in named.items()}
    return named, taken


def joined_attention(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """q (D, ...) and kv (2D, ...) -> timm's qkv (3D, ...), rows in that order; weights and biases alike."""
    joined: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        at = re.fullmatch(r"(.+\.attn\.)(q|kv)(\.weight|\.bias)", name)
        if at is None:
            joined[name] = tensor
            continue
        before, part, kind = at.groups()
        whole, partner = f"{before}qkv{kind}", f"{before}{'kv' if part == 'q' else 'q'}{kind}"
        if whole in tensors:
            raise HarnessError(f"{path}: {whole} stands beside {name}, which says the same; fetch it again")
        if partner not in tensors:
            raise HarnessError(f"{path}: {name} stands without {partner}; fetch the published file")
        if part == "kv":
            continue
        other = tensors[partner]
        if tensor.ndim == 0 or other.shape != (2 * tensor.shape[0], *tensor.shape[1:]):
            raise HarnessError(
                f"{path}: {name} {tuple(tensor.shape)} and {partner} {tuple(other.shape)} do not belong "
                "together: kv has twice the rows of q; fetch the published file"
            )
        joined[whole] = torch.cat([tensor, other])
    return joined
