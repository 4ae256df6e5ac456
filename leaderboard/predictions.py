"""`predictions.npz`: which class an evaluation predicted for which test image; digest-checked reading."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaderboard.record import PREDICTIONS_NAME, Record
from protocols.errors import HarnessError


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Three rows of equal length: `image_ids` unicode and unique, `labels` and `predicted` int64."""

    cell_id: str
    image_ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]


PredictionsLoader = Callable[[Record], Predictions | None]


def predictions_loader(cells: Path) -> PredictionsLoader:
    """A function that reads a record's predictions from its folder in `cells`."""
    return lambda record: read_predictions(cells, record)


def read_predictions(cells: Path, record: Record) -> Predictions | None:
    """The predictions of `record`, a cell under `cells`; None if its record names no such file.

    Raises HarnessError if the file is missing, is not the one that the record names, cannot be read,
    or contradicts the record's top-1.
    """
    expected = record.artefacts.get(PREDICTIONS_NAME)
    if expected is None:
        return None
    # A record may come from someone else's bundle, and its cell id becomes a path here.
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", record.cell_id):
        raise HarnessError(f"{record.cell_id!r} is not a cell id: letters, digits, '_', '.', '-' are allowed")
    path = cells / record.cell_id / PREDICTIONS_NAME
    remedy = f"restore it, or delete the folder {path.parent} and run again"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise HarnessError(f"{path} is missing, but the cell's record names it; {remedy}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise HarnessError(
            f"{path} is damaged or was replaced: SHA-256 {found}, the record names {expected}; {remedy}"
        )
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            rows = {name: archive[name] for name in ("image_ids", "labels", "predicted")}
    except (ValueError, KeyError, EOFError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise HarnessError(f"{path} cannot be read as predictions ({error}); {remedy}") from None
    _check(rows, path, record, remedy)
    return Predictions(cell_id=record.cell_id, **rows)


def _check(rows: dict[str, NDArray[Any]], path: Path, record: Record, remedy: str) -> None:
    ids, labels, predicted = rows["image_ids"], rows["labels"], rows["predicted"]
    if ids.dtype.kind != "U" or labels.dtype != np.int64 or predicted.dtype != np.int64:
        kinds = ", ".join(f"{name} {values.dtype}" for name, values in rows.items())
        raise HarnessError(f"{path} holds {kinds}; text, int64 and int64 are expected; {remedy}")
    if ids.ndim != 1 or ids.shape != labels.shape or ids.shape != predicted.shape or not ids.size:
        shapes = ", ".join(f"{name} {values.shape}" for name, values in rows.items())
        raise HarnessError(f"{path}: {shapes} are not three equal, non-empty rows; {remedy}")
    if np.unique(ids).size != ids.size:
        raise HarnessError(f"{path} names an image twice; {remedy}")
    stated = record.metrics.get("top1_percent")
    if stated is None:
        return
    top1_percent = 100.0 * float(np.mean(labels == predicted))
    # Half an image: a record may round its metric, but may not disagree on how many images were right.
    if stated.n != ids.size or abs(stated.value - top1_percent) > 50.0 / ids.size:
        raise HarnessError(
            f"{path} gives {top1_percent:.4f} % top-1 of {ids.size} images, but the record states "
            f"{stated.value:.4f} % of {stated.n}; {remedy}"
        )


def paired_correct(a: Predictions, b: Predictions) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(images,) booleans, correct in `a` and in `b`, over the same images, matched by id.

    Raises HarnessError if the two were not measured on the same images with the same labels.
    """
    order_a, order_b = np.argsort(a.image_ids, kind="stable"), np.argsort(b.image_ids, kind="stable")
    ids_a, ids_b = a.image_ids[order_a], b.image_ids[order_b]
    cells = f"cells {a.cell_id} and {b.cell_id}"
    if not np.array_equal(ids_a, ids_b):
        shared = np.intersect1d(ids_a, ids_b).size
        raise HarnessError(
            f"{cells} cannot be paired: {ids_a.size} and {ids_b.size} images, {shared} in both; "
            "run the cell again that was measured on other images"
        )
    labels_a, labels_b = a.labels[order_a], b.labels[order_b]
    differing = int(np.sum(labels_a != labels_b))
    if differing:
        raise HarnessError(
            f"{cells} cannot be paired: {differing} of {ids_a.size} images have different labels; "
            "check the data root that each was run with, and run the wrong one again"
        )
    return a.predicted[order_a] == labels_a, b.predicted[order_b] == labels_b
