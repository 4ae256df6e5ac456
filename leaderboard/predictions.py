"""`predictions.npz`: which class an evaluation predicted for which test image; digest-checked reading."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaderboard.record import PREDICTIONS_NAME, Record
from protocols.errors import HarnessError
from protocols.files import DAMAGED_ARRAY


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Three rows of equal length: `image_ids` unicode and unique, `labels` and `predicted` int64."""

    cell_id: str
    image_ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]


# What a loader may keep of predicted classes: those of 7,000 cells of 1,000 images are 56 MB.
KEPT_BYTES = 128_000_000
ROWS = ("image_ids", "labels", "predicted")
# Those of half a million images with ids of a hundred letters take as much.
MOST_UNPACKED_BYTES = 256 * 1024**2
# An .npy file of version 1: magic, version, and the length of the header in the last two bytes before it.
HEADER_START = 10


@dataclass(kw_only=True, eq=False)
class _Known:
    """What was read before: rows by their bytes, and rows of ids that name no image twice."""

    headers: dict[bytes, tuple[np.dtype[Any], tuple[int, ...]]] = field(default_factory=dict)
    rows: dict[bytes, NDArray[Any]] = field(default_factory=dict)
    unique: dict[int, NDArray[Any]] = field(default_factory=dict)
    predictions: dict[tuple[str, str], Predictions] = field(default_factory=dict)
    kept_bytes: int = 0

    def array(self, content: bytes, name: str) -> NDArray[Any]:
        """The row in the bytes of an .npy file; the same object for the same ids or labels."""
        if name == "predicted":
            return self._parsed(content)
        if content not in self.rows:
            self.rows[content] = self._parsed(content)
        return self.rows[content]

    def _parsed(self, content: bytes) -> NDArray[Any]:
        """An array that nobody may change, as several may hold it."""
        start = HEADER_START + int.from_bytes(content[HEADER_START - 2 : HEADER_START], "little")
        header = content[:start]
        if header in self.headers:
            # numpy reads each header as a Python literal, which takes longer than all the rest.
            dtype, shape = self.headers[header]
            return np.frombuffer(content, dtype=dtype, offset=start).reshape(shape)
        array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        if content[6:8] == b"\x01\x00" and array.flags.c_contiguous and array.dtype.kind in "Ui":
            self.headers[header] = array.dtype, array.shape
        array.flags.writeable = False
        return array


PredictionsLoader = Callable[[Record], Predictions | None]


def predictions_loader(cells: Path) -> PredictionsLoader:
    """A function that reads a record's predictions from its folder in `cells`.

    It keeps what it has read, up to a limit, and holds image ids and labels, which are the same for
    thousands of cells, once.
    """
    known = _Known()

    def load(record: Record) -> Predictions | None:
        key = (record.cell_id, record.artefacts.get(PREDICTIONS_NAME, ""))
        kept = known.predictions.get(key)
        if kept is None:
            kept = read_predictions(cells, record, known=known)
            known.kept_bytes += kept.predicted.nbytes if kept else 0
            if kept and known.kept_bytes <= KEPT_BYTES:
                known.predictions[key] = kept
        return kept

    return load


def read_predictions(cells: Path, record: Record, *, known: _Known | None = None) -> Predictions | None:
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
    except (FileNotFoundError, IsADirectoryError):
        raise HarnessError(f"{path} is missing, but the cell's record names it; {remedy}") from None
    return predictions_of(content, record, path=path, remedy=remedy, known=known)


def predictions_of(
    content: bytes, record: Record, *, path: Path, remedy: str, known: _Known | None = None
) -> Predictions:
    """The predictions of `record` in the bytes of its file, called `path` in errors.

    Raises HarnessError, which ends in `remedy`, as `read_predictions` does.
    """
    expected = record.artefacts[PREDICTIONS_NAME]
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise HarnessError(
            f"{path} is damaged or was replaced: SHA-256 {found}, the record names {expected}; {remedy}"
        )
    known = known or _Known()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(archive.getinfo(f"{name}.npy").file_size for name in ROWS)
            if unpacked > MOST_UNPACKED_BYTES:
                raise ValueError(f"its rows take {unpacked:,} bytes, and may take {MOST_UNPACKED_BYTES:,}")
            rows = {name: known.array(archive.read(f"{name}.npy"), name) for name in ROWS}
    except (*DAMAGED_ARRAY, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise HarnessError(f"{path} cannot be read as predictions ({error!s:.200}); {remedy}") from None
    _check(rows, path, record, remedy, known)
    return Predictions(cell_id=record.cell_id, **rows)


def _check(rows: dict[str, NDArray[Any]], path: Path, record: Record, remedy: str, known: _Known) -> None:
    ids, labels, predicted = rows["image_ids"], rows["labels"], rows["predicted"]
    if ids.dtype.kind != "U" or labels.dtype != np.int64 or predicted.dtype != np.int64:
        kinds = ", ".join(f"{name} {values.dtype}" for name, values in rows.items())
        raise HarnessError(f"{path} holds {kinds}; text, int64 and int64 are expected; {remedy}")
    if ids.ndim != 1 or ids.shape != labels.shape or ids.shape != predicted.shape or not ids.size:
        shapes = ", ".join(f"{name} {values.shape}" for name, values in rows.items())
        raise HarnessError(f"{path}: {shapes} are not three equal, non-empty rows; {remedy}")
    if id(ids) not in known.unique:
        if len(set(ids.tolist())) != ids.size:
            raise HarnessError(f"{path} names an image twice; {remedy}")
        known.unique[id(ids)] = ids
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
    if a.image_ids is b.image_ids and a.labels is b.labels:
        return a.predicted == a.labels, b.predicted == b.labels
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
