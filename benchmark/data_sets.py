"""Data sets of plug-ins: what one declares of itself, and which are known. No torch.

A data set of class folders needs no plug-in: name it `folder-NAME`. One that lies otherwise needs a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocols.errors import HarnessError

# uint8 images (n, H, W) or (n, H, W, 3) with labels (n,), or a list of (file's path in the folder, label).
Split = tuple[Any, Any] | Sequence[tuple[str, int]]


@dataclass(frozen=True, kw_only=True)
class DataSetSpec:
    """A data set that a plug-in reads; it lies in a folder of its own under the data root.

    name      lower case, as a protocol's `data.name` has it
    summary   what it is, in one line
    licence   under which licence, and from where
    classes   their names: label k is the k-th
    needs     paths in the folder that have to be there, files or folders, before anything is read
    remedy    how a user gets them there; {root} stands for the data root
    read      (the folder, "train" or "test") -> the split, always in the same order. Either images in
              memory with their labels, (uint8 (n, H, W) or (n, H, W, 3), integers (n,)), or, where they are
              too many, a list of (path in the folder, label), an image file each
    folder    its name, where it is not the data set's
    origin    who brings it; the loader sets it

    A reader crops nothing and resizes nothing: geometry is the protocol's. What it returns is digested,
    pixels or files' names and sizes, with ids and labels, as of every data set, and the records keep that.
    """

    name: str
    summary: str
    licence: str
    classes: tuple[str, ...]
    needs: tuple[str, ...]
    remedy: str
    read: Callable[[Path, str], Split]
    folder: str = ""
    origin: str = ""

    @property
    def place(self) -> str:
        """The folder under the data root."""
        return self.folder or self.name


_BY_NAME: dict[str, DataSetSpec] = {}
_BROKEN: dict[str, str] = {}


def register_data_set(spec: DataSetSpec, *, built_in: Sequence[str] = ()) -> None:
    """Make a plug-in's data set known. HarnessError, with both origins, if its name is taken.

    `built_in` are the names of those that need no plug-in.
    """
    other = "built in" if spec.name in built_in or spec.name.startswith("folder-") else None
    if spec.name in _BY_NAME:
        other = _BY_NAME[spec.name].origin
    if other is not None:
        raise HarnessError(
            f"data set {spec.name!r} comes from two places: {other}, and {spec.origin}; rename one of them, "
            "or leave one out"
        )
    _BROKEN.pop(spec.name, None)
    _BY_NAME[spec.name] = spec


def unregister_data_set(name: str) -> None:
    """Forget a plug-in's data set."""
    _BY_NAME.pop(name, None)


def registered_data_sets() -> dict[str, DataSetSpec]:
    """The data sets of plug-ins, by name."""
    return dict(_BY_NAME)


def register_broken_data_set(name: str, reason: str) -> None:
    """Whoever asks for the data set `name` is told `reason`; all others are spared it."""
    _BROKEN[name] = reason


def broken_data_sets() -> dict[str, str]:
    """Names of data sets that installed packages promise and cannot give, with the reasons."""
    return dict(_BROKEN)
