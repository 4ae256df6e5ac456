"""Training checkpoints that a kill at any moment cannot spoil, and weights files without code in them."""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from benchmark.layout import BEGUN_NAME, ENCODING_NAME
from protocols.errors import HarnessError
from protocols.files import sha256_of_file, write_atomically

KEEP = 2
log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Keep `state` as of step `step`, then drop all but the newest two.

    The digest file comes second: a checkpoint without one was not finished and is never read.
    """
    buffer = io.BytesIO()
    torch.save({"step": step, **state}, buffer)
    path = folder / f"step-{step:09d}.pt"
    write_atomically(path, buffer.getvalue())
    write_atomically(path.with_suffix(".sha256"), sha256_of_file(path))
    for old in _checkpoints(folder)[KEEP:]:
        old.with_suffix(".sha256").unlink(missing_ok=True)
        old.unlink()


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint, None where there is none yet.

    A damaged one is reported in the log and the one before it taken. Raises HarnessError if finished
    checkpoints exist and none of them is whole: training again from nothing is the user's choice.
    """
    damaged = []
    for path in _checkpoints(folder):
        digest = path.with_suffix(".sha256")
        if not digest.is_file():
            continue
        if sha256_of_file(path) == digest.read_text().strip():
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        log.warning("%s is damaged (its SHA-256 differs): the one before it is used", path.name)
        damaged.append(path.name)
    if damaged:
        raise HarnessError(
            f"no whole checkpoint in {folder}: {', '.join(damaged)} damaged; restore one, or delete the "
            "folder and run again with --redo-failed to train this cell from its start"
        )
    return None


def clear_checkpoints(folder: Path) -> None:
    """Remove what a finished run no longer needs, and what a kill while saving left behind."""
    for path in _checkpoints(folder):
        path.with_suffix(".sha256").unlink(missing_ok=True)
        path.unlink()
    for leftover in folder.glob(".step-*"):
        leftover.unlink()
    shutil.rmtree(folder / ENCODING_NAME, ignore_errors=True)
    (folder / BEGUN_NAME).unlink(missing_ok=True)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> str:
    """Write a safetensors file atomically, the same bytes for the same weights; returns its SHA-256."""
    content = save({name: weights[name].detach().cpu().contiguous() for name in sorted(weights)})
    write_atomically(path, content)
    return sha256_of_file(path)


def load_weights(path: Path, *, digest: str) -> dict[str, Tensor]:
    """Read a safetensors file whose SHA-256 must be `digest`. Raises HarnessError otherwise."""
    remedy = f"restore it, or delete {path.parent.parent} and run again with --redo-failed"
    try:
        found = sha256_of_file(path)
    except FileNotFoundError:
        raise HarnessError(f"{path} is missing; {remedy}") from None
    if found != digest:
        raise HarnessError(f"{path}: SHA-256 is {found[:12]}, the record says {digest[:12]}; {remedy}")
    return load_file(path)
