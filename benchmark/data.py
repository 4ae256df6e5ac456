"""Data sets by name: the embedded ones, which are files of the repository, and those that users bring.

Loads no torch, but for the sets that torchvision reads and for the labels of ImageNet's archives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmark import data_sets
from benchmark.data_sets import DataSetSpec, registered_data_sets
from benchmark.image_files import FilePart, class_folders, class_names
from benchmark.image_part import ArrayPart, ImagePart
from benchmark.image_tars import open_tar, tar_class_names
from benchmark.inputs import (
    CLASS_FOLDERS,
    EMBEDDED_SETS,
    EXTERNAL_SETS,
    ExternalSet,
    external_set,
    known_data_sets,
)
from benchmark.plugin_reader import read_split
from benchmark.torchvision_sets import ARRAY_SETS, FILE_SETS, Arrays, array_split, file_split
from protocols.errors import HarnessError, unknown
from protocols.schema import Part

EMBEDDED = Path(__file__).parent / "embedded"
FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


class _EmbeddedSet(NamedTuple):
    """A file of the repository with its classes; `white` is the value of its brightest grey level.

    `sha256` is the file's as it was embedded: a damaged checkout must not pass for another data set.
    """

    file: str
    sha256: str
    classes: tuple[str, ...]
    white: int


_EMBEDDED_FILES = {
    "fashion-mnist-12k": _EmbeddedSet(
        "fashion_mnist_12k.npz",
        "19a87c492c6adb55d4769374aafcde8f95831875480b216c56b8b552ea39c85a",
        FASHION_CLASSES,
        white=255,
    ),
    "digits": _EmbeddedSet(
        "digits.npz",
        "f9195fd87a500718dde5dca864469f11ad3ad65c27850db73d2835b7cde654ae",
        tuple(map(str, range(10))),
        white=16,
    ),
}
MOST_NAMED = 10


def register_data_set(spec: DataSetSpec) -> None:
    """Make a plug-in's data set known. HarnessError, with both origins, if its name is taken."""
    data_sets.register_data_set(spec, built_in=(*EMBEDDED_SETS, *EXTERNAL_SETS))


def open_part(data_set: str, name: str, part: Part, *, data_root: Path | None = None) -> ImagePart:
    """The images of `part` of the data set called `data_set`, which lies under `data_root` unless embedded.

    Raises HarnessError if there are fewer, the data set is not known, not there or damaged, or train and
    test are not of the same classes.
    """
    whole = open_split(data_set, part.split, name=name, data_root=data_root)
    stop = part.start + part.count
    if stop > len(whole):
        where = f" in {len(whole.classes)} classes" if data_set not in EMBEDDED_SETS else ""
        raise HarnessError(
            f"data set {data_set}: {name} wants images {part.start} to {stop} of "
            f"{part.split}, which has {len(whole)}{where}"
        )
    check_same_classes(data_set, part.split, whole.classes, data_root)
    return whole.cut(part.start, stop)


def open_split(
    data_set: str, split: str, *, name: str | None = None, data_root: Path | None = None
) -> ImagePart:
    """All images of `split`, train or test, as a part called `name`, or as the split if not given.

    Raises HarnessError if the data set is not known, not there or damaged.
    """
    name = name or split
    if data_set in READERS:
        return _in_memory(READERS[data_set](split), data_set, name, split)
    external, root = _external(data_set, data_root)
    folder = root / external.folder
    lacking = external.lacking(root, split)
    if lacking is not None:
        raise HarnessError(f"data set {data_set}: {lacking}; {external.remedy(root)}")
    if data_set in registered_data_sets():
        read = read_split(registered_data_sets()[data_set], folder, split, name=name)
        return read if isinstance(read, FilePart) else _in_memory(read, data_set, name, split)
    if data_set in ARRAY_SETS:
        with _with_remedy(external, root):
            return _in_memory(array_split(data_set, folder, split), data_set, name, split)
    if data_set in FILE_SETS:
        with _with_remedy(external, root):
            return file_split(data_set, folder, split, name=name)
    where, is_tar = _layout(external, root, split)
    if not is_tar:
        return class_folders(folder, where, data_set=data_set, name=name)
    with _with_remedy(external, root):
        return open_tar(folder, where, data_set=data_set, name=name)


def open_images(data_set: str, image_ids: Sequence[str], *, data_root: Path | None = None) -> ImagePart:
    """The images of these ids, without labels (-1): for who looks at images of a token store.

    Raises HarnessError for an id that the data set does not have, or that leads out of its folder.
    """
    labels = np.full(len(image_ids), -1, dtype=np.int64)
    ids = np.arange(len(image_ids), dtype=np.int64)
    if data_set in registered_data_sets():
        chosen = _found_in_a_split(data_set, image_ids, data_root)
        return replace(chosen, labels=labels, sample_ids=ids)
    if data_set in READERS or data_set in ARRAY_SETS:
        return _found_in_memory(data_set, image_ids, data_root)
    external, root = _external(data_set, data_root)
    folder = root / external.folder
    for image_id in image_ids:
        if ".." in Path(image_id).parts or Path(image_id).is_absolute():
            raise HarnessError(f"data set {data_set}: {image_id!r} leads out of {folder}")
    if data_set not in FILE_SETS and image_ids:
        split = "train" if image_ids[0].startswith("train/") else "test"
        if _layout(external, root, split)[1]:
            whole = open_split(data_set, split, data_root=data_root)
            positions = {image_id: position for position, image_id in enumerate(whole.image_ids)}
            if absent := [image_id for image_id in image_ids if image_id not in positions]:
                raise HarnessError(
                    f"data set {data_set} has no image {absent[0]!r} in its archive of {split}"
                )
            chosen = whole.take(np.array([positions[image_id] for image_id in image_ids]))
            return replace(chosen, labels=labels, sample_ids=ids)
    return FilePart(data_set, "sample", (), ids, tuple(image_ids), labels, folder, np.zeros_like(ids))


def _found_in_memory(data_set: str, image_ids: Sequence[str], data_root: Path | None) -> ImagePart:
    splits: dict[str, ImagePart] = {}
    found = []
    for image_id in image_ids:
        split, _, number = image_id.partition("/")
        if split in ("train", "test") and split not in splits:
            splits[split] = open_split(data_set, split, data_root=data_root)
        if split not in splits or not number.isdecimal() or int(number) >= len(splits[split]):
            raise HarnessError(f"data set {data_set} has no image {image_id!r}")
        found.append(np.asarray(splits[split].image(int(number))))
    return ArrayPart(
        data_set=data_set,
        name="sample",
        classes=(),
        sample_ids=np.arange(len(found), dtype=np.int64),
        image_ids=tuple(image_ids),
        labels=np.full(len(found), -1, dtype=np.int64),
        arrays=np.stack(found),
    )


def _found_in_a_split(data_set: str, image_ids: Sequence[str], data_root: Path | None) -> ImagePart:
    absent: list[str] = []
    for split in ("train", "test"):
        whole = open_split(data_set, split, data_root=data_root)
        positions = {image_id: position for position, image_id in enumerate(whole.image_ids)}
        absent = [image_id for image_id in image_ids if image_id not in positions]
        if not absent:
            return whole.take(np.array([positions[image_id] for image_id in image_ids], dtype=np.int64))
    raise HarnessError(f"data set {data_set} has no image {absent[0]!r} beside the others asked for")


def _in_memory(arrays: Arrays, data_set: str, name: str, split: str) -> ArrayPart:
    return ArrayPart(
        data_set=data_set,
        name=name,
        classes=arrays.classes,
        sample_ids=np.arange(len(arrays.labels), dtype=np.int64),
        image_ids=tuple(f"{split}/{position:07d}" for position in range(len(arrays.labels))),
        labels=arrays.labels.astype(np.int64),
        arrays=arrays.images,
    )


def _external(data_set: str, data_root: Path | None) -> tuple[ExternalSet, Path]:
    external = external_set(data_set)
    if external is None:
        raise unknown("data set", data_set, known_data_sets())
    if data_root is None:
        raise HarnessError(f"data set {data_set} lies under the data root; give --data-root DIR")
    return external, data_root


def _layout(external: ExternalSet, root: Path, split: str) -> tuple[str, bool]:
    """The folder of a split's classes, and whether its images lie in an archive, as if extracted there."""
    way = external.way(root, split)
    is_tar = way is not None and not way[0].endswith(CLASS_FOLDERS)
    path = external.ways[split][0][0] if way is None or is_tar else way[0]
    return path.removesuffix(CLASS_FOLDERS), is_tar


def check_same_classes(data_set: str, split: str, classes: tuple[str, ...], data_root: Path | None) -> None:
    """HarnessError unless the other split, if it is there, has these classes: labels are their numbers."""
    if any(data_set in one for one in (READERS, ARRAY_SETS, FILE_SETS, registered_data_sets())):
        return  # their own lists number the classes
    external, root = _external(data_set, data_root)
    other = "test" if split == "train" else "train"
    if external.way(root, other) is None:
        return
    where, is_tar = _layout(external, root, other)
    folder = root / external.folder
    others = tar_class_names(folder, where) if is_tar else class_names(folder, where, data_set=data_set)
    if others == classes:
        return
    only = {split: set(classes) - set(others), other: set(others) - set(classes)}
    said = [f"{len(names)} only in {one} ({_named(names)})" for one, names in only.items() if names]
    raise HarnessError(
        f"data set {data_set} in {folder}: train and test are not of the same classes: {'; '.join(said)}; "
        "provide or move away what differs"
    )


def _named(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")


@contextmanager
def _with_remedy(external: ExternalSet, root: Path) -> Iterator[None]:
    """What is wrong with files that were published comes with the command that provides them."""
    try:
        yield
    except HarnessError as error:
        raise HarnessError(f"{error}: {external.remedy(root)}") from error


@cache
def _embedded_file(path: Path, sha256: str) -> dict[str, npt.NDArray[np.uint8]]:
    remedy = f"restore it with git checkout benchmark/embedded/{path.name}"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise HarnessError(f"{path.name} is missing from the checkout; {remedy}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise HarnessError(f"{path.name} is not the embedded file (SHA-256 differs); {remedy}")
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _embedded_split(embedded: _EmbeddedSet, split: str) -> Arrays:
    arrays = _embedded_file(EMBEDDED / embedded.file, embedded.sha256)
    images = arrays[f"{split}_images"]
    if embedded.white != 255:  # to 0..255, rounded to the nearest
        scaled = (images.astype(np.int64) * 255 + embedded.white // 2) // embedded.white
        images = scaled.astype(np.uint8)
    return Arrays(images, arrays[f"{split}_labels"], embedded.classes)


READERS: dict[str, Callable[[str], Arrays]] = {
    name: partial(_embedded_split, embedded) for name, embedded in _EMBEDDED_FILES.items()
}
