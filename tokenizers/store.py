"""The token store: the ids of one (tokenizer, data set), computed once and read by image id.

    FOLDER/tokens.npy       (images, N) uint16 little-endian, memory-mapped on reading
    FOLDER/image_ids.txt    one image id a line, in the rows' order
    FOLDER/manifest.json    what made it, with the SHA-256 of both files and of itself

A store is written under another name and renamed when complete, so an unfinished one is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, ValidationError

from protocols.errors import HarnessError
from protocols.files import sha256_of_file, sync_folder
from protocols.frozen import Frozen, PositiveInt, Scalar, digest_of
from tokenizers.card import tokenizer_card

if TYPE_CHECKING:
    from torch import Tensor

    from tokenizers.base import Tokenizer

TOKENS_NAME = "tokens.npy"
IDS_NAME = "image_ids.txt"
MANIFEST_NAME = "manifest.json"
_TOKEN = np.dtype("<u2")
_MAX_CODEBOOK = 2 ** (8 * _TOKEN.itemsize)
_MAX_MANIFEST_BYTES = 1024 * 1024
_REMEDY = "delete the store and tokenise again"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TokenizerOfStore(Frozen):
    """The tokenizer that made the tokens; `digest` covers its configuration and weights."""

    name: str
    digest: Sha256
    config: dict[str, Scalar]
    codebook_size: Annotated[int, Field(ge=1, le=_MAX_CODEBOOK)]
    grid: PositiveInt
    teacher: str
    input_transform: str


class Manifest(Frozen):
    """What a store holds. `digest` is that of all other fields, and so of the whole store."""

    schema_version: Literal[1] = 1
    tokenizer: TokenizerOfStore
    data_name: str
    data_digest: str
    images: PositiveInt
    tokens_sha256: Sha256
    image_ids_sha256: Sha256
    card: dict[str, int | float]
    digest: str = ""

    def content_digest(self) -> str:
        """SHA-256 over every field but `digest`."""
        return digest_of(self.model_dump(mode="json", exclude={"digest"}))


class TokenStore:
    """An open store. Rows are found by image id, never by a position in some listing."""

    def __init__(self, manifest: Manifest, image_ids: Sequence[str], tokens: NDArray[np.uint16]) -> None:
        self.manifest = manifest
        self.image_ids = tuple(image_ids)
        self._tokens = tokens
        self._row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def codebook_size(self) -> int:
        """V: ids are below it."""
        return self.manifest.tokenizer.codebook_size

    @property
    def grid(self) -> int:
        """Tokens along one side; N is its square."""
        return self.manifest.tokenizer.grid

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything in the store."""
        return self.manifest.digest

    def rows(self, image_ids: Iterable[str]) -> NDArray[np.int64]:
        """Image ids -> positions (B,). HarnessError naming the first id that the store does not hold."""
        try:
            return np.array([self._row_of[image_id] for image_id in image_ids], dtype=np.int64)
        except KeyError as error:
            raise HarnessError(
                f"the token store of {self.manifest.data_name} by {self.manifest.tokenizer.name} holds no "
                f"image {error.args[0]!r}; it was made from other images: tokenise the data set again"
            ) from None

    def tokens(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Positions (B,) -> tokens (B, N) int64, row-major patches."""
        return self._tokens[np.asarray(positions, dtype=np.int64)].astype(np.int64)


def write_store(
    folder: Path,
    *,
    tokenizer: Tokenizer,
    data_name: str,
    data_digest: str,
    image_ids: Sequence[str],
    images: Iterable[Tensor],
) -> Manifest:
    """Encode `images`, batches (B, 3, S, S) in the order of `image_ids`, into a new store at `folder`.

    Raises HarnessError as `write_tokens` does, and if the tokenizer is not fitted.
    """
    return write_tokens(
        folder,
        tokenizer=tokenizer,
        data_name=data_name,
        data_digest=data_digest,
        image_ids=image_ids,
        tokens=(tokenizer.encode(batch) for batch in images),
    )


def write_tokens(
    folder: Path,
    *,
    tokenizer: Tokenizer,
    data_name: str,
    data_digest: str,
    image_ids: Sequence[str],
    tokens: Iterable[Tensor],
) -> Manifest:
    """Put token batches (B, N), in the order of `image_ids`, into a new store at `folder`.

    They are what `tokenizer` gave, by `encode` or by `fit_encode`; its digest is asked for after the
    last batch. Nothing is left behind on an error. Raises HarnessError if the store exists already, the
    codebook exceeds 16 bits, ids repeat, or the tokens' count, shape or range is wrong.
    """
    _check_writable(folder, tokenizer)
    ids_bytes = _ids_as_bytes(image_ids)
    with _finished_together(folder) as unfinished:
        path = unfinished / TOKENS_NAME
        _write_rows(path, tokens, tokenizer=tokenizer, images=len(image_ids))
        _write_synced(unfinished / IDS_NAME, ids_bytes)
        manifest = Manifest(
            tokenizer=TokenizerOfStore(
                name=tokenizer.name,
                digest=tokenizer.digest,
                config=tokenizer.config,
                codebook_size=tokenizer.codebook_size,
                grid=tokenizer.grid,
                teacher=tokenizer.teacher,
                input_transform=tokenizer.input_transform,
            ),
            data_name=data_name,
            data_digest=data_digest,
            images=len(image_ids),
            tokens_sha256=sha256_of_file(path),
            image_ids_sha256=hashlib.sha256(ids_bytes).hexdigest(),
            card=tokenizer_card(np.load(path, mmap_mode="r", allow_pickle=False), tokenizer.codebook_size),
        )
        manifest = manifest.model_copy(update={"digest": manifest.content_digest()})
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)
        # Last, so that a folder without a manifest is known to be unfinished under any name.
        _write_synced(unfinished / MANIFEST_NAME, (text + "\n").encode())
    return manifest


def open_store(folder: Path, *, verify: bool = True) -> TokenStore:
    """The store at `folder`. `verify` re-reads every byte; without it only sizes and the manifest count.

    Raises HarnessError if the store is missing, unfinished, damaged or edited; a digest that differs is
    shown on both sides.
    """
    manifest = _read_manifest(folder)
    _same(folder / MANIFEST_NAME, "digest", found=manifest.content_digest(), stated=manifest.digest)
    image_ids, ids_digest = _read_ids(folder / IDS_NAME)
    _same(folder / IDS_NAME, "SHA-256", found=ids_digest, stated=manifest.image_ids_sha256)
    tokens = _map_tokens(folder / TOKENS_NAME)
    shape = (manifest.images, manifest.tokenizer.grid**2)
    if tokens.dtype != _TOKEN or tokens.shape != shape or len(image_ids) != manifest.images:
        raise HarnessError(
            f"{folder}: {tokens.dtype} tokens {tokens.shape} and {len(image_ids)} image ids, "
            f"but the manifest says {_TOKEN} {shape}; {_REMEDY}"
        )
    if verify:
        path = folder / TOKENS_NAME
        _same(path, "SHA-256", found=sha256_of_file(path), stated=manifest.tokens_sha256)
    return TokenStore(manifest, image_ids, tokens)


def _check_writable(folder: Path, tokenizer: Tokenizer) -> None:
    if tokenizer.codebook_size > _MAX_CODEBOOK:
        raise HarnessError(
            f"tokenizer {tokenizer.name} has {tokenizer.codebook_size} codes; a token store holds ids of "
            f"16 bits, so at most {_MAX_CODEBOOK}: set a smaller codebook_size"
        )
    if folder.exists():
        raise HarnessError(f"{folder} exists already; open it, or delete it to tokenise again")


def _ids_as_bytes(image_ids: Sequence[str]) -> bytes:
    if not image_ids:
        raise HarnessError("a token store needs at least one image id, got none")
    seen: set[str] = set()
    for image_id in image_ids:
        if not image_id or image_id.splitlines() != [image_id] or image_id in seen:
            fault = "given twice" if image_id in seen else "empty or longer than a line"
            raise HarnessError(f"image id {image_id!r} is {fault}; ids must be distinct lines of text")
        seen.add(image_id)
    try:
        return "".join(f"{image_id}\n" for image_id in image_ids).encode()
    except UnicodeEncodeError as error:
        around = error.object[max(error.start - 40, 0) : error.end].splitlines()[-1]
        raise HarnessError(f"image id ...{around!r} is no valid text; rename the file in UTF-8") from None


def _write_rows(path: Path, batches: Iterable[Tensor], *, tokenizer: Tokenizer, images: int) -> None:
    """Stream the batches into an .npy file of exactly (images, N)."""
    patches, codes = tokenizer.grid**2, tokenizer.codebook_size
    header = {"descr": _TOKEN.str, "fortran_order": False, "shape": (images, patches)}
    written = 0
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for batch in batches:
            ids = np.asarray(batch)
            if ids.ndim != 2 or ids.shape[1] != patches or not np.issubdtype(ids.dtype, np.integer):
                raise HarnessError(
                    f"tokenizer {tokenizer.name} gave {ids.dtype} tokens {ids.shape}, "
                    f"not integers (B, {patches})"
                )
            if ids.size and (ids.min() < 0 or ids.max() >= codes):
                raise HarnessError(
                    f"tokenizer {tokenizer.name} gave ids from {ids.min()} to {ids.max()}, outside its "
                    f"codebook of {codes}"
                )
            written += len(ids)
            if written > images:
                raise HarnessError(f"{images} image ids were given, but tokens of at least {written} images")
            stream.write(ids.astype(_TOKEN).tobytes())
        stream.flush()
        os.fsync(stream.fileno())
    if written != images:
        raise HarnessError(f"{images} image ids were given, but tokens of {written} images")


@contextmanager
def _finished_together(folder: Path) -> Iterator[Path]:
    """A new sibling of `folder` to fill; it takes that name on success and is deleted on any error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f".{folder.name}.unfinished-{uuid.uuid4().hex}"
    unfinished.mkdir()
    try:
        yield unfinished
        sync_folder(unfinished)
        try:
            unfinished.rename(folder)
        except OSError as error:
            raise HarnessError(f"{folder} could not be put in place ({error.strerror}); {_REMEDY}") from None
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise HarnessError(
            f"{folder} is not a finished token store: it has no {MANIFEST_NAME}; tokenise first"
        )
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise HarnessError(f"{path}: {path.stat().st_size} bytes is too large for a manifest; {_REMEDY}")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first: Any = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise HarnessError(f"{path}: {where}: {first['msg']}; {_REMEDY}") from None


def _read_ids(path: Path) -> tuple[list[str], str]:
    if not path.is_file():
        raise HarnessError(f"{path}: missing; {_REMEDY}")
    content = path.read_bytes()
    try:
        return content.decode().splitlines(), hashlib.sha256(content).hexdigest()
    except UnicodeDecodeError as error:
        raise HarnessError(f"{path}: not UTF-8 ({error.reason}); {_REMEDY}") from None


def _map_tokens(path: Path) -> NDArray[np.uint16]:
    if not path.is_file():
        raise HarnessError(f"{path}: missing; {_REMEDY}")
    try:
        tokens: NDArray[np.uint16] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise HarnessError(f"{path}: damaged or cut short ({error}); {_REMEDY}") from None
    return tokens


def _same(path: Path, what: str, *, found: str, stated: str) -> None:
    if found != stated:
        raise HarnessError(f"{path}: its {what} is {found}, the manifest states {stated}; {_REMEDY}")
