"""ImageNet-1k straight from its official archives, without extracting them.

ILSVRC2012_img_train.tar is a tar of one tar per class, ILSVRC2012_img_val.tar a flat tar whose labels stand
in ILSVRC2012_devkit_t12.tar.gz. Members are listed once, from their headers, and read at their offsets. Ids,
labels, sizes and their order, and so the digest, are those of the same images in class folders. torch is
loaded for the labels of val alone.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmark.disk_trouble import reading
from benchmark.image_files import DamagedImage, decoded, is_image_name
from benchmark.image_part import ImagePart
from protocols.errors import HarnessError
from protocols.files import write_atomically

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
INDEX_ENDING = ".index"
_INDEX_VERSION = 2
_DIGEST_BYTES = 32  # SHA-256 of all that follows begins an index
_BLOCK = 512  # bytes: what tar's headers and the end of an archive are made of
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileState:
    """Which file it was: `path`, with its size in bytes and when it was last written."""

    path: Path
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """As it is now. HarnessError if there is none."""
        try:
            status = path.stat()
        except FileNotFoundError:
            raise HarnessError(f"no file {path}; fetch it from https://image-net.org") from None
        return cls(path, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class TarPart(ImagePart):
    """Image files inside one tar, each at its offset. Their digest covers sizes in bytes, as FilePart's."""

    of_the_whole: ClassVar[frozenset[str]] = ImagePart.of_the_whole | {"archive"}

    archive: FileState
    offsets: npt.NDArray[np.int64]
    bytes_of_files: npt.NDArray[np.int64]

    def last_written(self) -> str:
        """When the archive was."""
        return str(self.archive.modified_ns)

    def _content(self) -> npt.NDArray[np.int64]:
        return self.bytes_of_files

    def image(self, position: int) -> Image.Image:
        """The member at `position`, decoded whole."""
        image_id, size = self.image_ids[position], int(self.bytes_of_files[position])
        # One descriptor serves a process and those forked from it: reading at an offset moves nothing.
        with reading(f"{self.archive.path}: {image_id}"):
            content = os.pread(_descriptor(self.archive), size, int(self.offsets[position]))
        if len(content) != size:
            raise DamagedImage(image_id, f"{self.archive.path} ends before it does")
        return decoded(io.BytesIO(content), image_id=image_id)


@dataclass(frozen=True)
class Members:
    """The files of a tar: their names, CLASS/FILE if it is a tar of class tars, and where their bytes are."""

    names: tuple[str, ...]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


def open_tar(folder: Path, split_folder: str, *, data_set: str, name: str) -> TarPart:
    """All images of `split_folder` (train or val) in the archive in `folder`, as a part called `name`.

    Raises HarnessError if an archive is missing, damaged, or holds what is no image.
    """
    if split_folder == "train":
        archive = FileState.of(folder / TRAIN_TAR)
        members = _members(archive, True)
        named = list(members.names)
    else:
        archive = FileState.of(folder / VAL_TAR)
        members = _members(archive, False)
        named = _under_their_classes(members.names, archive.path, folder / DEVKIT)
    order = sorted(range(len(named)), key=lambda row: tuple(named[row].split("/")))
    image_ids = tuple(f"{split_folder}/{named[row]}" for row in order)
    of_images = [image_id.split("/")[1] for image_id in image_ids]
    classes = tar_class_names(folder, split_folder)
    number = {class_name: label for label, class_name in enumerate(classes)}
    return TarPart(
        data_set=data_set,
        name=name,
        classes=classes,
        sample_ids=np.arange(len(order), dtype=np.int64),
        image_ids=image_ids,
        labels=np.array([number[one] for one in of_images], dtype=np.int64),
        archive=archive,
        offsets=members.offsets[order],
        bytes_of_files=members.sizes[order],
    )


def tar_class_names(folder: Path, split_folder: str) -> tuple[str, ...]:
    """The classes of a split, in order; of train the headers of the class tars alone are read."""
    if split_folder == "val":
        return tuple(sorted(set(_validation_classes(FileState.of(folder / DEVKIT)))))
    return _train_classes(FileState.of(folder / TRAIN_TAR))


def _under_their_classes(names: tuple[str, ...], archive: Path, devkit: Path) -> list[str]:
    """CLASS/FILE of every validation image: the development kit lists the classes by the images' names."""
    classes = _validation_classes(FileState.of(devkit))
    if len(classes) != len(names):
        raise HarnessError(
            f"{archive} holds {len(names)} images, {devkit} has labels for {len(classes)}; fetch both again"
        )
    class_of = dict(zip(sorted(names), classes, strict=True))
    return [f"{class_of[name]}/{name}" for name in names]


@cache
def _validation_classes(devkit: FileState) -> tuple[str, ...]:
    """The class of each validation image, by torchvision's reader, which holds the file to its MD5."""
    from torchvision.datasets import imagenet  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as temporary:  # where the archive lies may be read-only
        try:
            imagenet.parse_devkit_archive(temporary, file=str(devkit.path.absolute()))
        except RuntimeError:
            raise HarnessError(
                f"{devkit.path} is not the published file (MD5 differs); fetch it again from "
                "https://image-net.org"
            ) from None
        return tuple(map(str, imagenet.load_meta_file(temporary)[1]))


@cache
def _train_classes(archive: FileState) -> tuple[str, ...]:
    with _opened(archive.path) as outer:
        return tuple(sorted(_class_of(archive.path, member) for member in _files_of(outer, archive.path)))


@cache
def _members(archive: FileState, is_nested: bool) -> Members:
    """The archive's files; the list is kept beside it where that may be written, for other processes."""
    index = archive.path.with_name(archive.path.name + INDEX_ENDING)
    known = _read_index(index, archive)
    if known is not None:
        return known
    members = _listed(archive.path, is_nested=is_nested)
    if FileState.of(archive.path) != archive:
        raise HarnessError(f"{archive.path} changed while it was read; give the command again")
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        made_from=np.array([_INDEX_VERSION, archive.size, archive.modified_ns]),
        names=np.frombuffer("\n".join(members.names).encode(), dtype=np.uint8),
        offsets=members.offsets,
        sizes=members.sizes,
    )
    try:
        content = buffer.getvalue()
        write_atomically(index, hashlib.sha256(content).digest() + content)
    except OSError as error:
        _log.info("%s is not kept (%s): each process lists the archive", index, error.strerror)
    return members


def _read_index(index: Path, archive: FileState) -> Members | None:
    """The kept list, if there is one as it was written and it is this archive's."""
    try:
        content = index.read_bytes()
    except (FileNotFoundError, PermissionError):
        return None
    stated, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != stated:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as kept:
        if kept["made_from"].tolist() != [_INDEX_VERSION, archive.size, archive.modified_ns]:
            return None
        names = tuple(kept["names"].tobytes().decode().split("\n"))
        return Members(names, kept["offsets"], kept["sizes"])


def _listed(archive: Path, *, is_nested: bool) -> Members:
    found: list[tuple[str, int, int]] = []
    with _opened(archive) as outer:
        for member in _files_of(outer, archive):
            if not is_nested:
                found.append((_image_name(archive, member), member.offset_data, member.size))
                continue
            class_name = _class_of(archive, member)
            stream = outer.extractfile(member)
            assert stream is not None  # it is a file
            with _opened(archive, stream, inside=member.name) as inner:
                found += [
                    (
                        f"{class_name}/{_image_name(archive, file)}",
                        member.offset_data + file.offset_data,
                        file.size,
                    )
                    for file in _files_of(inner, archive)
                ]
    names = tuple(name for name, _, _ in found)
    if len(set(names)) != len(names):
        twice = next(name for row, name in enumerate(sorted(names)[1:]) if name == sorted(names)[row])
        raise HarnessError(f"{archive} holds {twice} twice; fetch it again")
    return Members(
        names=names,
        offsets=np.array([offset for _, offset, _ in found], dtype=np.int64),
        sizes=np.array([size for _, _, size in found], dtype=np.int64),
    )


def _opened(archive: Path, stream: IO[bytes] | None = None, *, inside: str = "") -> tarfile.TarFile:
    """A tar, or the one called `inside` in it. HarnessError if it is none."""
    try:
        if stream is None:
            return tarfile.open(archive, "r:")
        return tarfile.open(fileobj=stream, mode="r:")
    except (tarfile.TarError, EOFError) as error:
        raise _damaged(archive, f"{inside}: {error}" if inside else str(error)) from None


def _files_of(opened: tarfile.TarFile, archive: Path) -> Iterator[tarfile.TarInfo]:
    """The files of a tar, hidden ones left out. HarnessError if it is cut short or a header is damaged."""
    try:
        for member in opened:
            if member.isdir() or member.name.rpartition("/")[2].startswith("."):
                continue
            if not member.isreg() or member.issparse():
                raise HarnessError(f"{archive}: {member.name!r} is no plain file; fetch the archive again")
            yield member
        # tarfile takes a header that it cannot read for the end: the true one is a block of zeros.
        assert opened.fileobj is not None
        opened.fileobj.seek(opened.offset)
        if opened.fileobj.read(_BLOCK) != bytes(_BLOCK):
            raise _damaged(archive, f"no header and no end of the archive at byte {opened.offset}")
    except (tarfile.TarError, EOFError) as error:
        raise _damaged(archive, str(error)) from None


def _class_of(archive: Path, member: tarfile.TarInfo) -> str:
    name = member.name.removeprefix("./")
    if not name.endswith(".tar") or "/" in name or not name.isprintable():
        raise HarnessError(f"{archive}: {member.name!r} is no tar of a class; fetch the archive again")
    return name.removesuffix(".tar")


def _image_name(archive: Path, member: tarfile.TarInfo) -> str:
    name = member.name.removeprefix("./")
    if not is_image_name(name) or "/" in name or not name.isprintable():
        raise HarnessError(f"{archive}: {member.name!r} is no image by its name; fetch the archive again")
    return name


def _damaged(archive: Path, why: str) -> HarnessError:
    return HarnessError(f"{archive} is cut short or damaged ({why}); fetch it again")


@cache
def _descriptor(archive: FileState) -> int:
    """The archive, open for reading as long as the process lives."""
    descriptor = os.open(archive.path, os.O_RDONLY | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if (status.st_size, status.st_mtime_ns) != (archive.size, archive.modified_ns):
        os.close(descriptor)
        raise HarnessError(f"{archive.path} changed since it was listed; give the command again")
    return descriptor
