"""The files of a token store: written durably, mapped without being read, held to size and SHA-256."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from protocols.errors import HarnessError
from protocols.files import DAMAGED_ARRAY, naming, sha256_of_file
from protocols.frozen import Frozen, PositiveInt

REMEDY = "delete the store and tokenise again"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileOfStore(Frozen):
    """What the manifest states of one other file."""

    bytes: PositiveInt
    sha256: Sha256


@contextmanager
def durable(path: Path) -> Iterator[BinaryIO]:
    """A new file to write, on the disk when the block ends."""
    with naming(path), path.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def write_array(path: Path, array: NDArray[Any]) -> None:
    """One whole array as a durable .npy file."""
    with durable(path) as stream:
        np.save(stream, array, allow_pickle=False)


def describe_files(folder: Path, names: tuple[str, ...]) -> dict[str, FileOfStore]:
    """Size and SHA-256 of each file as it now is."""
    return {
        name: FileOfStore(bytes=(folder / name).stat().st_size, sha256=sha256_of_file(folder / name))
        for name in names
    }


def check_files(folder: Path, files: Mapping[str, FileOfStore], *, verify: bool) -> None:
    """HarnessError unless every file has its size and, if `verify`, every byte that it was written with."""
    for name, stated in files.items():
        path = folder / name
        if not path.is_file():
            raise HarnessError(f"{path}: missing; {REMEDY}")
        size = path.stat().st_size
        if size != stated.bytes:
            raise HarnessError(
                f"{path}: damaged or cut short: it has {size} bytes, the manifest states "
                f"{stated.bytes}; {REMEDY}"
            )
    if verify:
        for name, stated in files.items():
            check_same(folder / name, "SHA-256", found=sha256_of_file(folder / name), stated=stated.sha256)


def check_same(path: Path, what: str, *, found: str, stated: str) -> None:
    """HarnessError that shows both sides unless they are equal."""
    if found != stated:
        raise HarnessError(f"{path}: its {what} is {found}, the manifest states {stated}; {REMEDY}")


def map_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The .npy file as a read-only array of which only the parts asked for are read.

    HarnessError if its header does not say `dtype` and `shape`.
    """
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGED_ARRAY as error:
        raise HarnessError(f"{path}: damaged ({error!s:.200}); {REMEDY}") from None
    if mapped.dtype != dtype or mapped.shape != shape:
        found = f"{mapped.dtype!s:.80} {mapped.shape!s:.80}"
        raise HarnessError(f"{path}: holds {found}, but the manifest says {dtype} {shape}; {REMEDY}")
    # A plain view: numpy's memmap class only adds cost to each look-up.
    return np.asarray(mapped)


def map_bytes(path: Path) -> mmap.mmap:
    """The file as read-only bytes of which only the parts asked for are read."""
    with path.open("rb") as stream:
        try:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError) as error:
            raise HarnessError(f"{path}: damaged ({error}); {REMEDY}") from None
