"""Image files in one folder per class, as ImageNet and torchvision's ImageFolder have them. Loads no torch.

The order is that of the class folders' names, then of the file names, by Unicode code points: it depends
on no file system. Hidden files are passed over; any other file that is no image by its ending is an error.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmark.image_part import ImagePart
from protocols.errors import HarnessError
from protocols.schema import Part

# What torchvision's ImageFolder takes; a file's content decides how it is decoded.
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class DamagedImage(HarnessError):
    """An image file that cannot be decoded; `image_id` names it, `reason` says why."""

    def __init__(self, image_id: str, error: Exception) -> None:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        super().__init__(f"{image_id} cannot be read as an image ({first}); fetch the file again")
        self.image_id, self.reason = image_id, first


@dataclass(frozen=True)
class FilePart(ImagePart):
    """Image files under `folder`; an image id is its path from there. Their digest covers sizes in bytes.

    Pixels are as decoded, 8 bits a channel: an orientation noted in EXIF is not applied, as in
    torchvision's loader.
    """

    folder: Path
    bytes_of_files: npt.NDArray[np.int64]

    def _content(self) -> npt.NDArray[np.int64]:
        return self.bytes_of_files

    def image(self, position: int) -> Image.Image:
        """The file at `position`, decoded whole, whatever its name says that it is."""
        image_id = self.image_ids[position]
        try:
            with Image.open(self.folder / image_id) as opened:
                opened.load()
                if opened.mode.startswith(("I", "F")):
                    raise ValueError(f"mode {opened.mode}: only images of 8 bits a channel are read")
                return opened
        # Pillow raises these on bytes that are cut, altered or no image at all.
        except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
                raise  # the disk's fault, not the file's
            raise DamagedImage(image_id, error) from None


def open_class_folders(
    folder: Path, *, data_set: str, name: str, part: Part, splits: Mapping[str, str]
) -> FilePart:
    """The images of `part` in `folder`/SPLIT/CLASS/FILE; `splits` maps a part's split to its folder.

    Raises HarnessError if there are fewer, or files of a class folder are no images by their endings.
    """
    split = splits[part.split]
    if not (folder / split).is_dir():
        raise HarnessError(f"data set {data_set}: no folder {folder / split}; lay it out as SPLIT/CLASS/FILE")
    entries = list(_visible(folder / split))
    for entry in entries:
        if not entry.is_dir():
            raise HarnessError(
                f"{entry.path}: no class folder; nothing is passed over silently: move it away"
            )
    classes = tuple(sorted(_text(entry) for entry in entries))
    files = [
        (f"{split}/{class_name}/{file_name}", label, size)
        for label, class_name in enumerate(classes)
        for file_name, size in _images_of(folder / split / class_name)
    ]
    stop = part.start + part.count
    if stop > len(files):
        raise HarnessError(
            f"data set {data_set}: {name} wants images {part.start} to {stop} of {part.split}; "
            f"{folder / split} has {len(files)} in {len(classes)} class folders"
        )
    chosen = files[part.start : stop]
    return FilePart(
        data_set=data_set,
        name=name,
        classes=classes,
        sample_ids=np.arange(part.start, stop, dtype=np.int64),
        image_ids=tuple(image_id for image_id, _, _ in chosen),
        labels=np.array([label for _, label, _ in chosen], dtype=np.int64),
        folder=folder,
        bytes_of_files=np.array([size for _, _, size in chosen], dtype=np.int64),
    )


def _images_of(folder: Path) -> list[tuple[str, int]]:
    """Name and size in bytes of every image of one class, by name."""
    found = []
    for entry in _visible(folder):
        if not entry.name.lower().endswith(ENDINGS) or not entry.is_file():
            raise HarnessError(
                f"{entry.path}: no image by its ending ({', '.join(ENDINGS)}); nothing is passed over "
                "silently: move it away"
            )
        found.append((_text(entry), entry.stat().st_size))
    return sorted(found)


def _text(entry: os.DirEntry[str]) -> str:
    """The entry's name, which has to be text, for it becomes a part of image ids."""
    if not entry.name.isprintable():
        raise HarnessError(f"{os.fsencode(entry.path)!r}: its name is no printable UTF-8 text; rename it")
    return entry.name


def _visible(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))
