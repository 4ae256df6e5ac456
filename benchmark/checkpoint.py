"""Training checkpoints that a kill at any moment cannot spoil, and weights files without code in them."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from benchmark.layout import BEGUN_NAME, ENCODING_NAME
from benchmark.pickled_file import load_pickled
from protocols.errors import HarnessError
from protocols.files import sha256_of_file, write_atomically

KEEP = 2
log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Keep `state` as of step `step`, then drop all but the newest two.

    The digest file comes second: a checkpoint without one was not finished and is never read. What is there
    of later steps was passed over as damaged, or not finished, when the training went on before them.
    """
    buffer = io.BytesIO()
    torch.save({"step": step, **state}, buffer)
    path = folder / f"step-{step:09d}.pt"
    write_atomically(path, buffer.getvalue())
    write_atomically(path.with_suffix(".sha256"), hashlib.sha256(buffer.getbuffer()).hexdigest())
    finished = [one for one in _checkpoints(folder) if one <= path and one.with_suffix(".sha256").is_file()]
    for other in _checkpoints(folder):
        if other not in finished[:KEEP]:
            _remove(other)


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint, None where there is none yet.

    A damaged one is reported in the log and the one before it taken. Raises HarnessError if finished
    checkpoints exist and none of them is whole: training again from nothing is the user's choice.
    """
    damaged = []
    for path in _checkpoints(folder):
        digest = path.with_suffix(".sha256")
        if not os.path.lexists(digest):
            continue
        try:
            with path.open("rb") as stream:  # what is read is what was looked at, whoever replaces the file
                if hashlib.file_digest(stream, "sha256").hexdigest().encode() == digest.read_bytes().strip():
                    return _state(path, stream)
            why = "its SHA-256 differs"
        except (FileNotFoundError, IsADirectoryError) as error:
            why = error.strerror or "it cannot be read"
        log.warning("%s is damaged (%s): the one before it is used", path.name, why)
        damaged.append(path.name)
    if damaged:
        raise HarnessError(
            f"no whole checkpoint in {folder}: {', '.join(damaged)} damaged; restore one, or delete the "
            "folder and run again with --redo-failed to train this cell from its start"
        )
    return None


def _state(path: Path, stream: IO[bytes]) -> dict[str, Any]:
    """What a checkpoint holds whose bytes are those that were written. A digest is no proof of who wrote."""
    remedy = f"delete it and its .sha256, and run again: {path.name}"
    state = load_pickled(stream, path=path, remedy=remedy)
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise HarnessError(f"{path} is no checkpoint of this harness; {remedy}")
    return state


def clear_checkpoints(folder: Path) -> None:
    """Remove what a finished run no longer needs, and what a kill while saving left behind."""
    for path in _checkpoints(folder):
        _remove(path)
    for leftover in folder.glob(".step-*"):
        leftover.unlink()
    shutil.rmtree(folder / ENCODING_NAME, ignore_errors=True)
    (folder / BEGUN_NAME).unlink(missing_ok=True)


def _remove(checkpoint: Path) -> None:
    """With its digest, which goes first: without one the rest is never read."""
    for path in (checkpoint.with_suffix(".sha256"), checkpoint):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def _checkpoints(folder: Path) -> list[Path]:
    """The newest first; also one of which the digest alone is left."""
    return sorted({path.with_suffix(".pt") for path in folder.glob("step-*")}, reverse=True)


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> str:
    """Write a safetensors file atomically, the same bytes for the same weights; returns its SHA-256."""
    content = save({name: weights[name].detach().cpu().contiguous() for name in sorted(weights)})
    write_atomically(path, content)
    return sha256_of_file(path)


def load_weights(path: Path, *, digest: str) -> dict[str, Tensor]:
    """Read a safetensors file whose SHA-256 must be `digest`. Raises HarnessError otherwise."""
    remedy = f"restore it, or delete {path.parent.parent} and run again with --redo-failed"
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise HarnessError(f"{path} is missing; {remedy}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise HarnessError(f"{path}: SHA-256 is {found[:12]}, the record says {digest[:12]}; {remedy}")
    try:
        return load(content)
    except SafetensorError as error:
        raise HarnessError(f"{path} cannot be read as safetensors ({error}); {remedy}") from None
