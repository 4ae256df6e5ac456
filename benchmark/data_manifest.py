"""The manifest of a data set: every image by split, class and id with its size in bytes. No torch.

A gzipped text file: one line of JSON (format, data set, images and classes of each split), then a line
SPLIT, CLASS, ID, BYTES for each image, tabs between them, in the order of these fields by code points. It is
written when every image was decoded once, and read as a stream beside a listing: a million images take no
more memory than the largest class.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from protocols.errors import HarnessError
from protocols.files import write_atomically
from protocols.frozen import Frozen, Named, PositiveInt

MANIFEST_NAME = "fair-mim-manifest.tsv.gz"
FORMAT, VERSION = "fair-mim-manifest", 1
MOST_LINE_BYTES = 4096
MOST_BYTES = 8 * 2**30  # unpacked: a hundred million images
MOST_IMAGE_BYTES = 2**40
# What gzip raises on bytes that are cut, altered or not its own.
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)


class Entry(NamedTuple):
    """One image: its split (train or test), class, id and size in bytes."""

    split: str
    class_name: str
    image_id: str
    bytes: int


class SplitCount(Frozen):
    """Images and classes of one split."""

    images: PositiveInt
    classes: PositiveInt


class _Header(Frozen):
    format: str
    version: int
    data_set: str
    splits: Named[SplitCount]


@dataclass(frozen=True)
class Manifest:
    """A manifest whose first line was read; `entries` reads the others."""

    path: Path
    data_set: str
    splits: Mapping[str, SplitCount]

    def entries(self) -> Iterator[Entry]:
        """Every image, in order. HarnessError, at the latest at the end, if the file is not whole."""
        counted: dict[str, list[int]] = {split: [0, 0] for split in self.splits}
        last: tuple[str, str, str] = ("", "", "")
        with closing(_lines(self.path)) as lines:
            next(lines)
            for number, line in enumerate(lines, start=2):
                entry = _entry(self.path, number, line)
                key = entry[:3]
                if key[0] not in counted:
                    raise _damaged(self.path, f"line {number} names split {key[0]!r}")
                if key <= last:
                    raise _damaged(self.path, f"line {number} is out of order, or stands there twice")
                images = counted[key[0]]
                images[0] += 1
                images[1] += key[:2] != last[:2]
                last = key
                yield entry
        for split, stated in self.splits.items():
            listed, classes = counted[split]
            if (listed, classes) != (stated.images, stated.classes):
                raise _damaged(
                    self.path,
                    f"it lists {listed:,} images in {classes:,} classes of {split} and states "
                    f"{stated.images:,} in {stated.classes:,}",
                )


def open_manifest(path: Path, data_set: str | None = None) -> Manifest:
    """The manifest in `path`, of `data_set` if one is named.

    HarnessError if it is none, is damaged, or belongs to another data set.
    """
    with closing(_lines(path)) as lines:
        first = next(lines, "")
    try:
        header = _Header.model_validate(json.loads(first))
    except (ValueError, RecursionError):
        raise _damaged(path, "its first line is no manifest's") from None
    if (header.format, header.version) != (FORMAT, VERSION):
        raise HarnessError(
            f"manifest {path} has format {header.format} {header.version}; this version of the harness reads "
            f"{FORMAT} {VERSION}: write it anew (see data --help)"
        )
    if data_set is not None and header.data_set != data_set:
        raise HarnessError(
            f"manifest {path} is that of data set {header.data_set}, not of {data_set}; give {data_set}'s own"
        )
    return Manifest(path, header.data_set, header.splits)


def write_manifest(path: Path, data_set: str, entries: Iterable[Entry]) -> Manifest:
    """Write the manifest of `entries`, whatever their order; the bytes depend on nothing else."""
    ordered = sorted(entries)
    splits = {
        split: {"images": len(images), "classes": len({image.class_name for image in images})}
        for split, images in (
            (split, list(group)) for split, group in groupby(ordered, lambda one: one.split)
        )
    }
    header = {"format": FORMAT, "version": VERSION, "data_set": data_set, "splits": splits}
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0, compresslevel=6) as stream:
        stream.write(json.dumps(header).encode() + b"\n")
        for split, name, image_id, size in ordered:
            if not (name.isprintable() and image_id.isprintable()):
                raise HarnessError(f"{image_id!r}: a name in a manifest is printable text; rename it")
            stream.write(f"{split}\t{name}\t{image_id}\t{size}\n".encode())
    write_atomically(path, buffer.getvalue())
    return open_manifest(path, data_set)


@dataclass
class Differences:
    """How a listing differs from a manifest. `missing` and `extra` leave out whole classes.

    `classes_missing` and `classes_extra` are split, class and the number of its images. `resized` are
    images with the size that the manifest states.
    """

    classes_missing: list[tuple[str, str, int]] = field(default_factory=list)
    classes_extra: list[tuple[str, str, int]] = field(default_factory=list)
    missing: list[Entry] = field(default_factory=list)
    extra: list[Entry] = field(default_factory=list)
    resized: list[tuple[Entry, int]] = field(default_factory=list)


def compare(found: Iterable[Entry], manifest: Manifest, *, splits: Iterable[str]) -> Differences:
    """Hold the images that were `found`, in a manifest's order, against it, for these splits alone."""
    asked = set(splits)
    differences = Differences()
    expected = (entry for entry in manifest.entries() if entry.split in asked)
    for (split, name), here, there in _side_by_side(found, expected):
        if not here:
            differences.classes_missing.append((split, name, len(there)))
        elif not there:
            differences.classes_extra.append((split, name, len(here)))
        else:
            stated = {entry.image_id: entry for entry in there}
            for entry in here:
                known = stated.pop(entry.image_id, None)
                if known is None:
                    differences.extra.append(entry)
                elif known.bytes != entry.bytes:
                    differences.resized.append((entry, known.bytes))
            differences.missing += stated.values()
    return differences


def _side_by_side(
    found: Iterable[Entry], expected: Iterable[Entry]
) -> Iterator[tuple[tuple[str, str], list[Entry], list[Entry]]]:
    """Split and class, and what is found and what is expected of it, of every class of either."""
    left, right = (
        ((key, list(group)) for key, group in groupby(entries, lambda one: (one.split, one.class_name)))
        for entries in (found, expected)
    )
    here, there = next(left, None), next(right, None)
    while here is not None or there is not None:
        key = min(one[0] for one in (here, there) if one is not None)
        yield (
            key,
            here[1] if here is not None and here[0] == key else [],
            there[1] if there is not None and there[0] == key else [],
        )
        here = next(left, None) if here is not None and here[0] == key else here
        there = next(right, None) if there is not None and there[0] == key else there


def _lines(path: Path) -> Generator[str, None, None]:
    read = 0
    try:
        with gzip.open(path, "rb") as stream:
            while line := stream.readline(MOST_LINE_BYTES + 1):
                read += len(line)
                if len(line) > MOST_LINE_BYTES or read > MOST_BYTES:
                    raise _damaged(
                        path, f"a line, or the whole, is longer than any manifest's ({read:,} bytes)"
                    )
                if not line.endswith(b"\n"):
                    raise _damaged(path, "its last line is cut short")
                yield line[:-1].decode()
    except FileNotFoundError:
        raise HarnessError(
            f"manifest {path}: no such file; `data NAME --write-manifest` writes one"
        ) from None
    except UnicodeDecodeError:
        raise _damaged(path, "it is not UTF-8 text") from None
    except _DAMAGE as error:
        raise _damaged(path, str(error)) from None


def _entry(path: Path, number: int, line: str) -> Entry:
    words = line.split("\t")
    if len(words) != 4 or not (words[3].isascii() and words[3].isdecimal()):
        raise _damaged(path, f"line {number} is not SPLIT, CLASS, ID and BYTES")
    # Numbers of a thousand digits are no sizes, and slow to read.
    size = int(words[3]) if len(words[3]) < 20 else MOST_IMAGE_BYTES + 1
    if not 0 < size <= MOST_IMAGE_BYTES:
        raise _damaged(path, f"line {number} gives {words[2]} {words[3][:20]} bytes, which no image has")
    if words[2].startswith("/") or ".." in words[2].split("/"):
        raise _damaged(path, f"line {number}: {words[2]!r} leads out of the data set's folder")
    return Entry(words[0], words[1], words[2], size)


def _damaged(path: Path, why: str) -> HarnessError:
    return HarnessError(
        f"manifest {path} is damaged: {why}; fetch it again, or write it anew (see data --help)"
    )
