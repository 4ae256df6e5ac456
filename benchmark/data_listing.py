"""What lies in a data set's folder, faults included, without opening an image. No torch.

The readers (`benchmark.data`) stop at the first thing that is wrong; this lists what is there, so that all of
it can be named at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmark.data_manifest import Entry, SplitCount
from benchmark.image_files import FilePart, is_image_name
from benchmark.image_part import ImagePart

# Class folders are listed side by side: on a network's file system the time goes into waiting.
LISTING_THREADS = 16


def _published(train: int, test: int, classes: int) -> dict[str, SplitCount]:
    counts = {"train": train, "test": test}
    return {split: SplitCount(images=images, classes=classes) for split, images in counts.items()}


# Images of each split and classes, as the data sets' authors state them.
PUBLISHED: Mapping[str, Mapping[str, SplitCount]] = {
    "imagenet-1k": _published(
        1_281_167, 50_000, 1000
    ),  # ILSVRC 2012; its validation images are the test ones
    "cifar-10": _published(50_000, 10_000, 10),
    "cifar-100": _published(50_000, 10_000, 100),
    "fashion-mnist": _published(60_000, 10_000, 10),
    "stanford-cars": _published(8_144, 8_041, 196),
    "food-101": _published(75_750, 25_250, 101),
    "fgvc-aircraft": _published(6_667, 3_333, 100),  # variants; training and validation images together
}


@dataclass(frozen=True)
class SplitListing:
    """The image files of one split, by class and name. `bytes` int64 (n,), `labels` int64 (n,).

    `classes` are the folders, empty ones included. `odd` are paths of what has no place there.
    """

    split: str
    classes: tuple[str, ...]
    image_ids: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    odd: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def entries(self) -> Iterator[Entry]:
        """The images in a manifest's order."""
        rows = zip(self.labels.tolist(), self.image_ids, self.bytes.tolist(), strict=True)
        return (Entry(self.split, self.classes[label], image_id, size) for label, image_id, size in rows)

    def empty_files(self) -> list[str]:
        """Ids of the files without a byte."""
        return [self.image_ids[row] for row in np.flatnonzero(self.bytes == 0)]

    def as_part(self, folder: Path, *, data_set: str) -> FilePart:
        """As `class_folders` of benchmark.image_files gives it, without listing anything again."""
        return FilePart(
            data_set=data_set,
            name=self.split,
            classes=self.classes,
            sample_ids=np.arange(len(self), dtype=np.int64),
            image_ids=self.image_ids,
            labels=self.labels,
            folder=folder,
            bytes_of_files=self.bytes,
        )


def list_class_folders(folder: Path, *, split: str, name: str) -> SplitListing:
    """The files in `folder`/`name`/CLASS/FILE, which are the images of `split`. Hidden ones are no images."""
    found, odd = [], []
    for entry in _visible(folder / name):
        if entry.is_dir() and entry.name.isprintable():
            found.append(entry.name)
        else:
            odd.append(_shown(entry))
    classes = tuple(sorted(found))
    with ThreadPoolExecutor(LISTING_THREADS) as threads:
        listed = list(threads.map(_list_files, [folder / name / one for one in classes]))
    image_ids = [
        f"{name}/{class_name}/{file_name}"
        for class_name, (files, _) in zip(classes, listed, strict=True)
        for file_name, _ in files
    ]
    return SplitListing(
        split=split,
        classes=classes,
        image_ids=tuple(image_ids),
        labels=np.repeat(np.arange(len(classes)), [len(files) for files, _ in listed]),
        bytes=np.array([size for files, _ in listed for _, size in files], dtype=np.int64),
        odd=tuple(odd + [path for _, others in listed for path in others]),
    )


def listing_of(part: ImagePart, split: str, sizes: npt.NDArray[np.int64]) -> SplitListing:
    """The listing of a part that a reader opened, in a manifest's order; `sizes` in bytes, as the part's."""
    labels = part.labels.tolist()
    order = sorted(range(len(part)), key=lambda row: (part.classes[labels[row]], part.image_ids[row]))
    return SplitListing(
        split=split,
        classes=part.classes,
        image_ids=tuple(part.image_ids[row] for row in order),
        labels=part.labels[order],
        bytes=sizes[order],
    )


def _list_files(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """Name and size of every image of one class, by name, and what else is there."""
    files, odd = [], []
    for entry in _visible(folder):
        if is_image_name(entry.name) and entry.name.isprintable() and entry.is_file():
            files.append((entry.name, entry.stat().st_size))
        else:
            odd.append(_shown(entry))
    return sorted(files), sorted(odd)


def _visible(folder: Path) -> Sequence[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _shown(entry: os.DirEntry[str]) -> str:
    return entry.path if entry.name.isprintable() else ascii(entry.path)
