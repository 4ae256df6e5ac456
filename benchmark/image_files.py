"""Image files in one folder per class, as ImageNet and torchvision's ImageFolder have them. Loads no torch.

The order is that of the class folders' names, then of the file names, by Unicode code points: it depends
on no file system. Hidden files are passed over; any other file that is no image by its ending is an error.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmark.disk_trouble import reading
from benchmark.image_part import ImagePart
from protocols.errors import HarnessError

# What torchvision's ImageFolder takes; a file's content decides how it is decoded.
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Others that Pillow knows run programs (EPS calls Ghostscript), ask a server, or are no photographs.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "MPO")
# A file of some bytes can state any size. From here on Pillow warns: 360 MB as it is decoded.
MOST_PIXELS = 89_478_485
# Pillow raises these on bytes that are cut, altered or no image at all.
_UNREADABLE = (
    ArithmeticError, AssertionError, AttributeError, EOFError, Image.DecompressionBombError, LookupError,
    MemoryError, OSError, RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
MOST_NAMED = 10
# Folders and lists are gone through side by side: on a network's file system the time goes into waiting.
LISTING_THREADS = 16
PATHS_AT_ONCE = 500  # of a list, by one thread


class DamagedImage(HarnessError):
    """An image file that cannot be decoded; `image_id` names it, `reason` says why."""

    def __init__(self, image_id: str, error: Exception | str) -> None:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        super().__init__(f"{image_id} cannot be read as an image ({first}); fetch the file again")
        self.image_id, self.reason = image_id, first

    def __reduce__(self) -> tuple[type[DamagedImage], tuple[str, str]]:
        return type(self), (self.image_id, self.reason)  # it comes from reading processes


@dataclass(frozen=True)
class FilePart(ImagePart):
    """Image files under `folder`; an image id is its path from there. Their digest covers sizes in bytes.

    Pixels are as decoded, 8 bits a channel: an orientation noted in EXIF is not applied, as in
    torchvision's loader.
    """

    of_the_whole: ClassVar[frozenset[str]] = ImagePart.of_the_whole | {"folder"}

    folder: Path
    bytes_of_files: npt.NDArray[np.int64]

    def last_written(self) -> str:
        """SHA-256 over when each file was; 0 for one that is gone."""
        times = _of_each(self.folder, self.image_ids, lambda status: status.st_mtime_ns)
        return hashlib.sha256(np.array([time or 0 for time in times], dtype=np.int64).tobytes()).hexdigest()

    def _content(self) -> npt.NDArray[np.int64]:
        return self.bytes_of_files

    def image(self, position: int) -> Image.Image:
        """The file at `position`, decoded whole, whatever its name says that it is."""
        image_id = self.image_ids[position]
        return decoded(self.folder / image_id, image_id=image_id)


def decoded(source: Path | IO[bytes], *, image_id: str) -> Image.Image:
    """The image in `source`, decoded whole. DamagedImage, under the name `image_id`, if that cannot be."""
    try:
        with reading(image_id), _opened(source) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} are more than {MOST_PIXELS:,} pixels")
            opened.load()
            if opened.mode.startswith(("I", "F")):
                raise ValueError(f"mode {opened.mode}: only images of 8 bits a channel are read")
            return opened
    except HarnessError:
        raise
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.EINVAL):
            raise  # the disk's fault, not the file's
        raise DamagedImage(image_id, error) from None


def _opened(source: Path | IO[bytes]) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MOST_PIXELS is an error
        return Image.open(source, formats=FORMATS)


def class_folders(folder: Path, split_folder: str, *, data_set: str, name: str) -> FilePart:
    """All images of `folder`/`split_folder`/CLASS/FILE, as a part called `name`.

    Raises HarnessError if files of a class folder are no images by their endings.
    """
    classes = class_names(folder, split_folder, data_set=data_set)
    with ThreadPoolExecutor(LISTING_THREADS) as threads:
        files = list(threads.map(_images_of, [folder / split_folder / one for one in classes]))
    counts = [len(of_class) for of_class in files]
    return FilePart(
        data_set=data_set,
        name=name,
        classes=classes,
        sample_ids=np.arange(sum(counts), dtype=np.int64),
        image_ids=tuple(
            f"{split_folder}/{class_name}/{file_name}"
            for class_name, of_class in zip(classes, files, strict=True)
            for file_name, _ in of_class
        ),
        labels=np.repeat(np.arange(len(classes), dtype=np.int64), counts),
        folder=folder,
        bytes_of_files=np.array([size for of_class in files for _, size in of_class], dtype=np.int64),
    )


def class_names(folder: Path, split_folder: str, *, data_set: str) -> tuple[str, ...]:
    """The names of the class folders of a split, in order. HarnessError for what is no folder there."""
    if not (folder / split_folder).is_dir():
        raise HarnessError(
            f"data set {data_set}: no folder {folder / split_folder}; lay it out as SPLIT/CLASS/FILE"
        )
    entries = list(_visible(folder / split_folder))
    for entry in entries:
        if not entry.is_dir():
            raise HarnessError(
                f"{entry.path}: no class folder; nothing is passed over silently: move it away"
            )
    return tuple(sorted(_text(entry) for entry in entries))


def listed_files(
    folder: Path,
    files: Sequence[tuple[str, int]],
    *,
    data_set: str,
    name: str,
    classes: tuple[str, ...],
) -> FilePart:
    """The files under `folder` that a data set's own lists name: (path from there, label), in that order.

    Raises HarnessError, which names them, if some are not there.
    """
    paths = [path for path, _ in files]
    for path in paths:
        if ".." in Path(path).parts or Path(path).is_absolute() or not path.isprintable():
            raise HarnessError(f"data set {data_set}: its lists name {path!r}, which is no file of {folder}")
    sizes = _of_each(folder, paths, lambda status: status.st_size)
    if gone := [path for path, size in zip(paths, sizes, strict=True) if size is None]:
        more = f" and {len(gone) - MOST_NAMED} more" if len(gone) > MOST_NAMED else ""
        raise HarnessError(
            f"data set {data_set}: {len(gone)} of {len(files)} files that its lists name are not in "
            f"{folder}: {', '.join(gone[:MOST_NAMED])}{more}; fetch it again"
        )
    return FilePart(
        data_set=data_set,
        name=name,
        classes=classes,
        sample_ids=np.arange(len(files), dtype=np.int64),
        image_ids=tuple(paths),
        labels=np.array([label for _, label in files], dtype=np.int64),
        folder=folder,
        bytes_of_files=np.array(sizes, dtype=np.int64),
    )


def is_image_name(name: str) -> bool:
    """True if it ends as an image file's name does."""
    return name.lower().endswith(ENDINGS)


def _images_of(folder: Path) -> list[tuple[str, int]]:
    """Name and size in bytes of every image of one class, by name."""
    found = []
    for entry in _visible(folder):
        if not is_image_name(entry.name) or not entry.is_file():
            raise HarnessError(
                f"{entry.path}: no image by its ending ({', '.join(ENDINGS)}); nothing is passed over "
                "silently: move it away"
            )
        found.append((_text(entry), entry.stat().st_size))
    return sorted(found)


def _of_each(folder: Path, paths: Sequence[str], fact: Callable[[os.stat_result], int]) -> list[int | None]:
    """A fact of each file's status, None for one that is not there."""

    def facts(chunk: Sequence[str]) -> list[int | None]:
        return [_of_file(folder / path, fact) for path in chunk]

    chunks = [paths[start : start + PATHS_AT_ONCE] for start in range(0, len(paths), PATHS_AT_ONCE)]
    with ThreadPoolExecutor(LISTING_THREADS) as threads:
        return [one for of_chunk in threads.map(facts, chunks) for one in of_chunk]


def _of_file(path: Path, fact: Callable[[os.stat_result], int]) -> int | None:
    try:
        return fact(path.stat())
    except FileNotFoundError:
        return None


def _text(entry: os.DirEntry[str]) -> str:
    """The entry's name, which has to be text, for it becomes a part of image ids."""
    if not entry.name.isprintable():
        raise HarnessError(f"{os.fsencode(entry.path)!r}: its name is no printable UTF-8 text; rename it")
    return entry.name


def _visible(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))
