"""A split of a plug-in's data set: its reader is asked once in a process, and what it gives is checked."""

from __future__ import annotations

import inspect
import traceback
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data_sets import DataSetSpec
from benchmark.image_files import FilePart, listed_files
from benchmark.torchvision_sets import Arrays
from protocols.errors import HarnessError
from protocols.files import shown_path


def read_split(spec: DataSetSpec, folder: Path, split: str, *, name: str) -> Arrays | FilePart:
    """All images of `split`, which lies in `folder`, in memory or as files of a part called `name`.

    Raises HarnessError, with the reader's line, for what it raises, and for what it gives that is none.
    """
    found = _asked(spec, folder, split)
    where = f"data set {spec.name}, {split}: its reader ({_place(spec)})"
    if isinstance(found, list):
        labelled = _labelled(found, where)
        _check_labels(np.array([label for _, label in labelled]), spec, where)
        return listed_files(folder, labelled, data_set=spec.name, name=name, classes=spec.classes)
    if not isinstance(found, tuple) or len(found) != 2:
        raise HarnessError(
            f"{where} must return (images, labels), or a list of (path, label); got a {type(found).__name__}"
        )
    images, labels = (np.asarray(one) for one in found)
    is_image = images.ndim in (3, 4) and (images.ndim == 3 or images.shape[3] == 3)
    if images.dtype != np.uint8 or not is_image or not len(images):
        raise HarnessError(
            f"{where} must return images as uint8 (n, H, W) or (n, H, W, 3), got {images.dtype} "
            f"{images.shape}"
        )
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise HarnessError(
            f"{where} must return a whole number for each of {len(images)} images as label, got "
            f"{labels.dtype} {labels.shape}"
        )
    _check_labels(labels, spec, where)
    return Arrays(np.ascontiguousarray(images), labels, spec.classes)


@cache
def _asked(spec: DataSetSpec, folder: Path, split: str) -> Any:
    try:
        return spec.read(folder, split)
    except HarnessError:
        raise
    except (Exception, SystemExit) as error:
        file = inspect.getsourcefile(spec.read) or ""
        lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if one.filename == file]
        line = f"{shown_path(file)}:{lines[-1]}" if lines else shown_path(file)
        raise HarnessError(
            f"data set {spec.name}, {split}: {line}: its reader failed on {folder}: "
            f"{type(error).__name__}: {error}; {spec.remedy.format(root=folder.parent)}"
        ) from error


def _labelled(found: list[Any], where: str) -> list[tuple[str, int]]:
    for one in found:
        is_pair = isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str)
        if not is_pair or not isinstance(one[1], int | np.integer):
            raise HarnessError(f"{where} must list (path, label), got {one!r:.80}")
    if not found:
        raise HarnessError(f"{where} lists no image")
    return [(path, int(label)) for path, label in found]


def _check_labels(labels: Any, spec: DataSetSpec, where: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(spec.classes):
        raise HarnessError(f"{where} gives labels from {low} to {high}; it has {len(spec.classes)} classes")


def _place(spec: DataSetSpec) -> str:
    try:
        file, (_, line) = inspect.getsourcefile(spec.read), inspect.getsourcelines(spec.read)
        return f"{shown_path(file or '')}:{line}"
    except (OSError, TypeError):
        return spec.origin
