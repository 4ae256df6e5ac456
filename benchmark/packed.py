"""Packed images: the square crops of a part, decoded once and kept as raw pixels. Loads no torch.

    WORK_DIR/packed/DATA_SET-DIGEST-SIZE/
        pixels.npy      uint8 (n, S, S, 3): row i is the image at position i of the part
        sums.npy        uint64 (n,): the sum of each row, which every reading of the row is held against
        manifest.json   of which images, made with what, and the SHA-256 of every shard of rows; written last

A pack holds what `square_pixels` gives for the stored images, to the bit: whoever reads it and whoever
reads the files trains on the same numbers. That holds for one version of the decoders alone, so a pack of
others is not used. benchmark/packing.py makes packs. Shapes: B images of (3, S, S).
"""

from __future__ import annotations

import hashlib
import io
import os
import weakref
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import PIL
from PIL import features
from pydantic import Field, ValidationError

from benchmark.disk_trouble import reading
from benchmark.image_part import ImagePart
from protocols.errors import HarnessError
from protocols.frozen import Frozen, PositiveInt, digest_of

PACKED_NAME = "packed"  # in the work dir: packs serve every protocol and method
PIXELS_NAME = "pixels.npy"
SUMS_NAME = "sums.npy"
MANIFEST_NAME = "manifest.json"
DIGEST_CHARACTERS = 12
REMADE = "give the command pack with --verify, or read the files with --images files"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class MissingPack(HarnessError):
    """There is no whole pack of these images."""


class UnusablePack(HarnessError):
    """There is a pack of these images, and it is damaged, or was made with other decoders."""


class PackManifest(Frozen):
    """What a pack holds. `data_digest` and `listing_digest` are the part's; `digest` is of all the rest.

    `sums` is the SHA-256 of the rows' sums, empty in a pack from before there were any.
    """

    schema_version: Literal[1] = 1
    data_set: str
    data_digest: Sha256
    listing_digest: Sha256
    images: PositiveInt
    image_size: PositiveInt
    bytes: PositiveInt
    decoders: dict[str, str]
    images_per_shard: PositiveInt
    shards: Annotated[tuple[Sha256, ...], Field(strict=False)]
    sums: Sha256 | Literal[""] = ""
    digest: str = ""

    def sealed(self) -> Self:
        """With its digest."""
        return self.model_copy(update={"digest": self.content_digest()})

    def content_digest(self) -> str:
        """SHA-256 over every field but `digest`, and `sums` where there are none."""
        left_out = {"digest"} if self.sums else {"digest", "sums"}
        return digest_of(self.model_dump(mode="json", exclude=left_out))


class PackedImages:
    """An open pack. It may be read in forked processes, too: every read names its own place in the file.

    Rows are read, not mapped: a shuffled row is then one request of its whole length, also of a network's
    file system, and a disk's error is an exception instead of a signal that ends the process.
    """

    def __init__(self, folder: Path, manifest: PackManifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._sums = _read_sums(folder, manifest)
        self._file = os.open(folder / PIXELS_NAME, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self.manifest.images

    def read(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Pixels (B, 3, S, S) of the images at these positions, their channels last in memory."""
        size = self.manifest.image_size
        rows = np.empty((len(positions), size, size, 3), dtype=np.uint8)
        for row, position in zip(rows, positions.tolist(), strict=True):
            if not 0 <= position < self.manifest.images:
                raise IndexError(f"position {position} of {self.manifest.images} packed images")
            with reading(self.folder / PIXELS_NAME):
                found = os.preadv(self._file, [row.data], place_of(position, self.manifest.images, size))
            if found != row.nbytes:
                raise UnusablePack(f"{self.folder / PIXELS_NAME}: cut short while it was in use; {REMADE}")
            if self._sums is not None and row_sum(row) != self._sums[position]:
                raise UnusablePack(
                    f"{self.folder / PIXELS_NAME}: damaged: the image at position {position} is not as it "
                    f"was written; {REMADE}"
                )
        return rows.transpose(0, 3, 1, 2)

    def __reduce__(self) -> tuple[Any, ...]:
        return (PackedImages, (self.folder, self.manifest))


def open_pack(images: ImagePart, *, size: int, work_dir: Path) -> PackedImages:
    """The pack of `images` at `size` x `size`; its manifest and its size in bytes are looked at, no pixel.

    Raises MissingPack where there is no whole one, and UnusablePack where it is damaged or other decoders
    made it; `pack --verify` reads every byte.
    """
    folder = pack_folder(images, size=size, work_dir=work_dir)
    manifest = read_manifest(folder)
    if manifest is None:
        raise MissingPack(f"there is no whole pack {folder}")
    check_decoders(folder, manifest.decoders)
    stated = (manifest.data_digest, manifest.images, manifest.image_size, manifest.bytes)
    if stated != (images.digest, len(images), size, file_bytes(len(images), size)):
        raise UnusablePack(f"{folder}: its manifest is of other images than its name says; {REMADE}")
    pixels = folder / PIXELS_NAME
    found = pixels.stat().st_size if pixels.is_file() else 0
    if found != manifest.bytes:
        raise UnusablePack(f"{pixels}: damaged: it has {found} bytes instead of {manifest.bytes}; {REMADE}")
    return PackedImages(folder, manifest)


def pack_folder(images: ImagePart, *, size: int, work_dir: Path) -> Path:
    """Where the whole pack of these very images is, or would be."""
    return work_dir / PACKED_NAME / f"{images.data_set}-{images.digest[:DIGEST_CHARACTERS]}-{size}"


def read_manifest(folder: Path) -> PackManifest | None:
    """The manifest of the pack in `folder`, None without one. UnusablePack if it is not as it was written."""
    path = folder / MANIFEST_NAME
    try:
        manifest = PackManifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, ValidationError, RecursionError, IsADirectoryError):
        raise UnusablePack(f"{path}: damaged: no manifest of a pack can be read from it; {REMADE}") from None
    if manifest.digest != manifest.content_digest():
        raise UnusablePack(f"{path}: damaged: its digest is not that of its content; {REMADE}")
    return manifest


def row_sum(row: npt.NDArray[np.uint8]) -> int:
    """The sum of an image's bytes, taken as words of 64 bits, modulo 2**64: any one changed bit changes it.

    A digest would take longer than all else that reading a row takes.
    """
    flat = row.reshape(-1)
    whole = flat.size // 8 * 8
    words = int(flat[:whole].view("<u8").sum(dtype=np.uint64))
    return (words + int.from_bytes(flat[whole:].tobytes(), "little")) % 2**64


def sums_content(sums: npt.ArrayLike) -> bytes:
    """The file of the rows' sums, (n,)."""
    stream = io.BytesIO()
    np.save(stream, np.asarray(sums, dtype="<u8"), allow_pickle=False)
    return stream.getvalue()


def _read_sums(folder: Path, manifest: PackManifest) -> npt.NDArray[np.uint64] | None:
    """The rows' sums, None where the pack has none. UnusablePack if they are not as they were written."""
    if not manifest.sums:
        return None
    path = folder / SUMS_NAME
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != manifest.sums:
        raise UnusablePack(f"{path}: damaged: it is not as it was written; {REMADE}")
    sums: npt.NDArray[np.uint64] = np.load(io.BytesIO(content), allow_pickle=False)
    return sums


def check_decoders(folder: Path, made_with: dict[str, str]) -> None:
    """UnusablePack unless the decoders of this environment are those that the pack was made with."""
    here = decoders()
    if made_with != here:
        differing = [name for name in here | made_with if made_with.get(name) != here.get(name)]
        named = "; ".join(
            f"{name} {made_with.get(name, 'unknown')} then, {here.get(name, 'unknown')} now"
            for name in differing
        )
        raise UnusablePack(
            f"{folder} was made with other decoders ({named}), whose pixels may differ from what the files "
            "give now: read the files with --images files, install those versions, or delete the folder and "
            "give the command pack again"
        )


@cache
def decoders() -> dict[str, str]:
    """The versions that decide which pixels come out of a file."""
    jpeg = features.version("libjpeg_turbo")
    return {
        "Pillow": PIL.__version__,
        "libjpeg": f"turbo {jpeg}" if jpeg else str(features.version("jpg")),
        "libwebp": str(features.version("webp")),
    }


@cache
def header_of(images: int, size: int) -> bytes:
    """The beginning of the .npy file of that many images."""
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (images, size, size, 3)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def place_of(position: int, images: int, size: int) -> int:
    """Where the row of `position` begins in the file, in bytes."""
    return len(header_of(images, size)) + position * size * size * 3


def file_bytes(images: int, size: int) -> int:
    """Size of the whole file."""
    return place_of(images, images, size)
