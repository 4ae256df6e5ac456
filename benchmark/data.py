"""Data sets by name: the embedded one, which is a file of the repository, and folders of images.

Loads no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmark.image_files import FilePart, open_class_folders
from benchmark.image_part import ArrayPart, ImagePart
from benchmark.inputs import EXTERNAL_SETS
from protocols.errors import HarnessError, unknown
from protocols.schema import Part

EMBEDDED = Path(__file__).parent / "embedded"
_IN_CHECKOUT = "benchmark/embedded/fashion_mnist_12k.npz"
FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
# SHA-256 of the file as it was embedded: a damaged checkout must not pass for another data set.
FASHION_SHA256 = "19a87c492c6adb55d4769374aafcde8f95831875480b216c56b8b552ea39c85a"


def open_part(data_set: str, name: str, part: Part, *, data_root: Path | None = None) -> ImagePart:
    """The images of `part` of the data set called `data_set`, which lies under `data_root` unless embedded.

    Raises HarnessError if there are fewer, or the data set is not known or not there.
    """
    external = EXTERNAL_SETS.get(data_set)
    if external is not None and external.splits is not None:
        if data_root is None:
            raise HarnessError(f"data set {data_set} lies under the data root; give --data-root DIR")
        return open_class_folders(
            data_root / external.folder, data_set=data_set, name=name, part=part, splits=external.splits
        )
    if data_set not in READERS:
        raise unknown("data set", data_set, READERS)
    arrays, labels, classes = READERS[data_set](part.split)
    stop = part.start + part.count
    if stop > len(labels):
        raise HarnessError(
            f"data set {data_set}: {name} wants images {part.start} to {stop} of "
            f"{part.split}, which has {len(labels)}"
        )
    positions: Sequence[int] = range(part.start, stop)
    return ArrayPart(
        data_set=data_set,
        name=name,
        classes=classes,
        sample_ids=np.arange(part.start, stop, dtype=np.int64),
        image_ids=tuple(f"{part.split}/{position:07d}" for position in positions),
        labels=labels[part.start : stop].astype(np.int64),
        arrays=arrays[part.start : stop],
    )


def open_images(data_set: str, image_ids: Sequence[str], *, data_root: Path | None = None) -> ImagePart:
    """The images of these ids, without labels (-1): for who looks at images of a token store.

    Raises HarnessError for an id that the data set does not have, or that leads out of its folder.
    """
    labels = np.full(len(image_ids), -1, dtype=np.int64)
    ids = np.arange(len(image_ids), dtype=np.int64)
    if data_set in EXTERNAL_SETS:
        if data_root is None:
            raise HarnessError(f"data set {data_set} lies under the data root; give --data-root DIR")
        folder = data_root / EXTERNAL_SETS[data_set].folder
        for image_id in image_ids:
            if ".." in Path(image_id).parts or Path(image_id).is_absolute():
                raise HarnessError(f"data set {data_set}: {image_id!r} leads out of {folder}")
        return FilePart(data_set, "sample", (), ids, tuple(image_ids), labels, folder, np.zeros_like(ids))
    if data_set not in READERS:
        raise unknown("data set", data_set, READERS)
    found = []
    for image_id in image_ids:
        split, _, number = image_id.partition("/")
        arrays = READERS[data_set](split)[0] if split in ("train", "test") else ()
        if not number.isdecimal() or int(number) >= len(arrays):
            raise HarnessError(f"data set {data_set} has no image {image_id!r}")
        found.append(arrays[int(number)])
    return ArrayPart(data_set, "sample", (), ids, tuple(image_ids), labels, np.stack(found))


@cache
def _fashion_file() -> dict[str, npt.NDArray[np.uint8]]:
    path = EMBEDDED / "fashion_mnist_12k.npz"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise HarnessError(
            f"{path.name} is missing from the checkout; restore it with git checkout {_IN_CHECKOUT}"
        ) from None
    if hashlib.sha256(content).hexdigest() != FASHION_SHA256:
        raise HarnessError(
            f"{path.name} is not the embedded file (SHA-256 differs); restore it with "
            f"git checkout {_IN_CHECKOUT}"
        )
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _fashion_mnist(
    split: str,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], tuple[str, ...]]:
    arrays = _fashion_file()
    return arrays[f"{split}_images"], arrays[f"{split}_labels"], FASHION_CLASSES


READERS = {"fashion-mnist-12k": _fashion_mnist}
