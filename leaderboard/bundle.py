"""A bundle: what a board of one protocol is made of, in one plain tar file, for another lab to merge.

    manifest.json                       what made it, every cell, and size and SHA-256 of every file below
    protocol.json                       the protocol's slices, every value resolved
    cells/<cell id>/record.json
    cells/<cell id>/predictions.npz     of evaluations
    cells/<cell id>/metrics.jsonl       of cells that have one
    cells/<cell id>/card.md             of pre-trainings and tokenizers, for people; since version 2, as are
    cells/<cell id>/checkpoints/backbone.safetensors    of pre-trainings, if asked for
    configuration.yaml                  the protocol's file, every value with its source
    plugins/<name>.txt                  the text of plug-ins, if asked for; nothing ever runs it

The bytes follow from the files alone: members are sorted, all have the same owner, mode and time, and
nothing is compressed. What does not read exactly so was damaged, or made by something else, and is refused
entry by entry. Nothing is ever unpacked: members are read one by one, each held against the manifest.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import Field, ValidationError

from leaderboard.cards import CARD_NAME
from leaderboard.origins import PassedThrough, Sha256
from leaderboard.record import Git
from protocols.errors import HarnessError
from protocols.files import naming, sha256_of_file
from protocols.frozen import Frozen, Name, NonNegativeInt, PositiveInt, digest_of

MANIFEST, PROTOCOL, CONFIGURATION = "manifest.json", "protocol.json", "configuration.yaml"
METRICS_NAME = "metrics.jsonl"
WEIGHTS_NAME = "checkpoints/backbone.safetensors"
CELL_ID = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,139}"
CELL_FILES = r"record\.json|predictions\.npz|metrics\.jsonl|card\.md|checkpoints/backbone\.safetensors"
CELL_PATH = rf"^cells/{CELL_ID}/({CELL_FILES})$"
PLUGIN_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
OWN_PATH = rf"^(protocol\.json|configuration\.yaml|plugins/{PLUGIN_NAME}\.txt)$"
MAX_MANIFEST_BYTES = 32 * 1024**2
MAX_MEMBER_BYTES = 64 * 1024**2
# Weights alone may be larger: those of a ViT-B are 0.35 GB.
MAX_WEIGHTS_BYTES = 2 * 1024**3
MAX_BUNDLE_BYTES = 4 * 1024**3  # but for weights
MAX_FILE_BYTES = 256 * 1024**3
_CHUNK = 1024**2
_BLOCK, _RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a link", tarfile.DIRTYPE: "a folder",
    tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a pipe",
}  # fmt: skip


class BundledFile(Frozen):
    path: Annotated[str, Field(pattern=rf"{CELL_PATH}|{OWN_PATH}")]
    size: NonNegativeInt
    sha256: Sha256

    @property
    def cell_id(self) -> str:
        """The cell that the file is of; empty for one of the bundle itself."""
        return self.path.split("/")[1] if self.path.startswith("cells/") else ""

    @property
    def name(self) -> str:
        """Its path in the folder of its cell, or in the bundle."""
        return self.path.split("/", 2)[2] if self.cell_id else self.path

    @property
    def is_weights(self) -> bool:
        """True for the one kind of file that may be large, and is never held in memory."""
        return bool(self.cell_id) and self.name == WEIGHTS_NAME


class BundledCell(Frozen):
    """`passed_through`: digests of bundles that the cell itself had been merged from before."""

    cell_id: Annotated[str, Field(pattern=rf"^{CELL_ID}$")]
    status: Literal["done", "failed"]
    passed_through: PassedThrough = ()


class BundledProtocol(Frozen):
    """`digest` is over all slices, whose values are in protocol.json."""

    name: Name
    version: PositiveInt
    digest: Sha256


class Harness(Frozen):
    """What wrote the bundle. The commit that made each cell stands in its record."""

    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.+-]{1,40}$")]
    commit: Annotated[str, Field(pattern=r"^([0-9a-f]{7,64}|unknown)$")]
    dirty: bool

    @classmethod
    def of(cls, version: str, git: Git) -> Harness:
        """The checkout that runs."""
        return cls(version=version, commit=git.commit, dirty=git.dirty)

    @property
    def revision(self) -> str:
        """The commit; `+changes` where files differed from it."""
        return self.commit + ("+changes" if self.dirty else "")


class Manifest(Frozen):
    """What a bundle holds. `cells` and `files` are sorted; `digest` is over all the other fields.

    Version 1 held records, predictions, metrics and protocol.json alone.
    """

    format: Literal["fair-mim bundle"] = "fair-mim bundle"
    format_version: Literal[1, 2] = 2
    harness: Harness
    protocol: BundledProtocol
    cells: Annotated[tuple[BundledCell, ...], Field(strict=False)]
    files: Annotated[tuple[BundledFile, ...], Field(strict=False)]
    digest: str = ""

    def with_digest(self) -> Manifest:
        """The same with its digest."""
        return self.model_copy(update={"digest": self._digest()})

    def text(self) -> bytes:
        """The one form in which it is written."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode()

    def fault(self) -> str:
        """What contradicts itself in it; empty if nothing does."""
        if self.digest != self._digest():
            return "its digest is not that of its fields"
        paths, ids = [one.path for one in self.files], [one.cell_id for one in self.cells]
        if paths != sorted(set(paths)) or ids != sorted(set(ids)):
            return "it names a file or a cell twice, or out of order"
        known = set(ids)
        stray = [one.path for one in self.files if one.cell_id and one.cell_id not in known]
        if stray or PROTOCOL not in paths:
            return f"it names {stray[0]} of no cell" if stray else f"it names no {PROTOCOL}"
        newer = [one.path for one in self.files if one.name in (CARD_NAME, WEIGHTS_NAME, CONFIGURATION)
                 or one.name.startswith("plugins/")]  # fmt: skip
        if newer and self.format_version == 1:
            return f"it is of version 1, and names {newer[0]}"
        return ""

    def _digest(self) -> str:
        return digest_of(self.model_dump(mode="json", exclude={"digest"}))


def member_header(path: str, size: int) -> bytes:
    """The 512 bytes before a member: no time, no owner, no name of anybody."""
    member = tarfile.TarInfo(path)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def padding(size: int) -> bytes:
    """The zeros after a member of `size` bytes."""
    return bytes(-size % _BLOCK)


def ending(size: int) -> bytes:
    """The zeros that end a bundle whose members take `size` bytes."""
    return bytes(2 * _BLOCK + -(size + 2 * _BLOCK) % _RECORD)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with one entry of a bundle; `entry` is its path, or the place where it was found."""

    entry: str
    why: str


class Bundle:
    """An open bundle whose manifest is whole. `faults` are those of its members, met when one is read."""

    def __init__(
        self, path: Path, stream: IO[bytes], *, sha256: str, manifest: Manifest, start: int, size: int
    ) -> None:
        self.name = path.name.encode(errors="replace").decode()  # records hold text, names of files any bytes
        self.sha256 = sha256
        self.manifest = manifest
        self._stream = stream
        self._stated = {one.path: one for one in manifest.files}
        self._files: dict[str, list[str]] = {}
        for one in manifest.files:
            if one.cell_id:
                self._files.setdefault(one.cell_id, []).append(one.name)
        self._offsets, self.faults = _index(stream, manifest, start=start, size=size)

    def files(self, cell_id: str) -> tuple[str, ...]:
        """The names of a cell's files, as the manifest has them."""
        return tuple(self._files.get(cell_id, ()))

    def read(self, path: str) -> bytes:
        """A member's bytes. HarnessError if they are missing, or not those that the manifest names.

        For all but weights, which are copied.
        """
        return b"".join(self._chunks(path))

    def copy(self, path: str, out: Path) -> None:
        """Write a member into the new file `out`, piece by piece. HarnessError as of `read`."""
        with naming(out), out.open("xb") as stream:
            for chunk in self._chunks(path):
                stream.write(chunk)

    def _chunks(self, path: str) -> Iterator[bytes]:
        stated = self._stated[path]
        if path not in self._offsets:
            missing = "is missing: the bundle was cut short or changed"
            raise HarnessError(
                f"{path} {next((one.why for one in self.faults if one.entry == path), missing)}"
            )
        self._stream.seek(self._offsets[path])
        digest, left = hashlib.sha256(), stated.size
        while left and (chunk := self._stream.read(min(left, _CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
            yield chunk
        if digest.hexdigest() != stated.sha256:
            raise HarnessError(
                f"{path} is damaged: SHA-256 {digest.hexdigest()}, the manifest names {stated.sha256}"
            )

    def verify(self, path: str) -> None:
        """HarnessError as of `read`; keeps nothing."""
        for _ in self._chunks(path):
            pass

    def sha256_of(self, path: str) -> str:
        """The digest that the manifest states of a member; held against its bytes where they are read."""
        return self._stated[path].sha256

    def protocol_slices(self) -> dict[str, Any]:
        """The slices that it was written under, by name. HarnessError unless they are the manifest's."""
        content = self.read(PROTOCOL)
        try:
            slices = dict(json.loads(content)["slices"])
            found = digest_of({name: digest_of(values) for name, values in slices.items()})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise HarnessError(f"{PROTOCOL} holds no slices ({error!r})") from None
        if found != self.manifest.protocol.digest:
            raise HarnessError(
                f"{PROTOCOL}: its slices have digest {found}, the manifest names "
                f"{self.manifest.protocol.digest}"
            )
        return slices


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """The bundle in the file `path`.

    Raises HarnessError if it is no bundle, too large, or its manifest is damaged: then nothing in it can be
    told from anything else.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise HarnessError(f"{path} is no file; give bundles, as `bundle` writes them")
        _check_size(path, size, most=MAX_FILE_BYTES)
        stream = path.open("rb")
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror}") from None
    with stream:
        with naming(path):
            manifest, start = _read_manifest(path, stream)
            weights = sum(file.size for file in manifest.files if file.is_weights)
            _check_size(path, size, most=MAX_BUNDLE_BYTES + weights)
            digest = sha256_of_file(path)
        yield Bundle(path, stream, sha256=digest, manifest=manifest, start=start, size=size)


def _check_size(path: Path, size: int, *, most: int) -> None:
    if size > most:
        raise HarnessError(
            f"{path}: {size:,} bytes is too large for a bundle, which has {most:,} at most; "
            "have it split with `bundle --cells`"
        )


def _read_manifest(path: Path, stream: IO[bytes]) -> tuple[Manifest, int]:
    """The manifest, and where the members after it start."""
    block = stream.read(_BLOCK)
    remedy = "get it again from whom you have it, and compare SHA-256"
    if block[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
        raise HarnessError(
            f"{path} is compressed, and a bundle is a plain tar file; unpack it first (gunzip)"
        )
    try:
        first = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError):
        first = None
    if first is None or first.name != MANIFEST:
        raise HarnessError(f"{path} is no bundle, or is damaged: it does not begin with {MANIFEST}; {remedy}")
    if first.size > MAX_MANIFEST_BYTES:
        raise HarnessError(f"{path}: its manifest of {first.size:,} bytes is too large; {remedy}")
    content = stream.read(first.size)
    try:
        manifest = Manifest.model_validate_json(content)
        fault = manifest.fault()
    except ValidationError as error:
        one = error.errors(include_url=False)[0]
        fault = f"{'.'.join(map(str, one['loc']))}: {one['msg']}".removeprefix(": ")
    except ValueError as error:
        fault = str(error)
    whole = not fault and member_header(MANIFEST, first.size) + manifest.text() == block + content
    if fault or not whole or stream.read(len(padding(first.size))) != padding(first.size):
        fault = fault or "it is not written as `bundle` writes it"
        raise HarnessError(f"{path}: its manifest is damaged, or of a newer harness: {fault}; {remedy}")
    return manifest, stream.tell()


def _index(
    stream: IO[bytes], manifest: Manifest, *, start: int, size: int
) -> tuple[dict[str, int], tuple[Fault, ...]]:
    """Path -> where its bytes start, of members that are as they should be; what is wrong with the others.

    Reads headers and what lies between members, no contents. A damaged header is passed over where the
    manifest tells how far.
    """
    stated = {one.path: one for one in manifest.files}
    order = [one.path for one in manifest.files]
    place = {path: number for number, path in enumerate(order)}
    following = 0
    offsets: dict[str, int] = {}
    faults: list[Fault] = []
    at = start
    while True:
        stream.seek(at)
        block = stream.read(_BLOCK)
        if len(block) < _BLOCK or not any(block):
            break
        found = at
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            path, length, why = member.name, member.size, _member_fault(member, block, stated, offsets)
        except tarfile.HeaderError as error:
            if following == len(order):
                faults.append(Fault(entry=f"byte {found}", why=f"what stands here is no member ({error})"))
                return offsets, tuple(faults)
            path, length = order[following], stated[order[following]].size
            why = f"has a damaged header ({error})"
        following = max(following, place.get(path, -1) + 1)
        at += _BLOCK + max(0, length) + len(padding(length))
        if not why and at > size:
            why = "is cut short"
        if not why:
            stream.seek(at - len(padding(length)))
            why = (
                ""
                if stream.read(len(padding(length))) == padding(length)
                else "is followed by bytes that do not belong there"
            )
        if why:
            offsets.pop(path, None)
            faults.append(Fault(entry=path if path in stated else repr(path), why=why))
        else:
            offsets[path] = found + _BLOCK
        if at > size:
            break
    stream.seek(min(at, size))
    if at > size or stream.read(len(ending(at)) + 1) != ending(at):
        faults.append(
            Fault(entry=f"byte {min(at, size)}", why="the bundle is cut short, or goes on past its end")
        )
    return offsets, tuple(faults)


def _member_fault(
    member: tarfile.TarInfo, block: bytes, stated: Mapping[str, BundledFile], known: Collection[str]
) -> str:
    """Why this member is none of the manifest's; empty if its header is exactly the expected one."""
    if member.name not in stated:
        is_outside = member.name.startswith("/") or ".." in member.name.split("/")
        kind = _KINDS.get(member.type, "")
        what = "leads out of the bundle, and " if is_outside else f"is {kind}, and " if kind else ""
        return f"{what}is not in the manifest"
    if member.type != tarfile.REGTYPE:
        return f"is {_KINDS.get(member.type, 'no plain file')}; a bundle holds plain files alone"
    if member.name in known:
        return "stands twice in the bundle"
    size = stated[member.name].size
    if member.size != size:
        return f"has {member.size:,} bytes, the manifest names {size:,}"
    most = MAX_WEIGHTS_BYTES if stated[member.name].is_weights else MAX_MEMBER_BYTES
    if size > most:
        return f"has {size:,} bytes, and such a file of a bundle has {most:,} at most"
    return "" if block == member_header(member.name, size) else "has a header that `bundle` does not write"
