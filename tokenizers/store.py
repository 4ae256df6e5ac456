"""The token store: the ids of one (tokenizer, data set), computed once and read by image id.

    FOLDER/tokens.npy       (images, N) uint16
    FOLDER/labels.npy       (images,) int64, -1 where unknown
    FOLDER/image_ids.txt, id_offsets.npy, id_index.npy    which row is whose: see image_index.py
    FOLDER/manifest.json    what made it, with size and SHA-256 of every other file, and its own digest

Numbers are little-endian. Everything but the manifest is memory-mapped: opening and reading cost the same
for ten images and for a million. Its bytes are a pure function of tokenizer, data and tokens. A store is
written under another name and renamed when complete, so an unfinished one is never read.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import AfterValidator, Field, ValidationError

from protocols.errors import HarnessError
from protocols.files import sync_folder
from protocols.frozen import Frozen, FrozenDict, PositiveInt, Scalar, digest_of
from tokenizers.card import card_of_counts, code_counts
from tokenizers.image_index import IDS_NAME, INDEX_NAME, OFFSETS_NAME, ImageIds, write_image_ids
from tokenizers.store_files import (
    REMEDY,
    FileOfStore,
    Sha256,
    check_files,
    check_same,
    describe_files,
    durable,
    map_array,
    write_array,
)

if TYPE_CHECKING:
    from torch import Tensor

    from tokenizers.base import Tokenizer

SCHEMA_VERSION = 2
TOKENS_NAME = "tokens.npy"
LABELS_NAME = "labels.npy"
MANIFEST_NAME = "manifest.json"
FILE_NAMES = (TOKENS_NAME, LABELS_NAME, IDS_NAME, OFFSETS_NAME, INDEX_NAME)
UNKNOWN_LABEL = -1
_TOKEN = np.dtype("<u2")
_LABEL = np.dtype("<i8")
_MAX_CODEBOOK = 2 ** (8 * _TOKEN.itemsize)
_MAX_MANIFEST_BYTES = 1024 * 1024
_BLOCK = 4096  # images whose tokens are checked, counted and written together


def _of_every_file(files: dict[str, FileOfStore]) -> FrozenDict:
    if set(files) != set(FILE_NAMES):
        raise ValueError(f"must name {', '.join(FILE_NAMES)}, and names {', '.join(sorted(files))}")
    return FrozenDict(files)


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

    schema_version: Literal[2] = 2
    tokenizer: TokenizerOfStore
    data_name: str
    data_digest: str
    images: PositiveInt
    files: Annotated[dict[str, FileOfStore], AfterValidator(_of_every_file)]
    card: dict[str, int | float]
    digest: str = ""

    def content_digest(self) -> str:
        """SHA-256 over every field but `digest`."""
        return digest_of(self.model_dump(mode="json", exclude={"digest"}))


class TokenStore:
    """An open store. Rows are found by image id, never by a position in some listing.

    `image_ids` are the rows' ids in order; whatever is asked for is read from the disk then.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        image_ids: ImageIds,
        tokens: NDArray[np.uint16],
        labels: NDArray[np.int64],
    ) -> None:
        self.manifest = manifest
        self.image_ids = image_ids
        self._tokens, self._labels = tokens, labels

    def __len__(self) -> int:
        return self.manifest.images

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
            return self.image_ids.rows(image_ids)
        except KeyError as error:
            raise HarnessError(
                f"the token store of {self.manifest.data_name} by {self.manifest.tokenizer.name} holds no "
                f"image {error.args[0]!r}; it was made from other images: tokenise the data set again"
            ) from None

    def image_id(self, row: int) -> str:
        """Position -> image id."""
        return self.image_ids[row]

    def tokens(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Positions (B,) -> tokens (B, N) int64, row-major patches."""
        return self._tokens[np.asarray(positions, dtype=np.int64)].astype(np.int64)

    def labels(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Positions (B,) -> labels (B,) int64, -1 where unknown."""
        return self._labels[np.asarray(positions, dtype=np.int64)].astype(np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the files itself; pickled arrays would be copies of all of them.
        return (_reopen, (self.image_ids.folder, self.digest))


def write_store(
    folder: Path,
    *,
    tokenizer: Tokenizer,
    data_name: str,
    data_digest: str,
    image_ids: Sequence[str],
    images: Iterable[Tensor],
    labels: ArrayLike | None = None,
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
        labels=labels,
        tokens=(tokenizer.encode(batch) for batch in images),
    )


def write_tokens(
    folder: Path,
    *,
    tokenizer: Tokenizer,
    data_name: str,
    data_digest: str,
    image_ids: Sequence[str],
    tokens: Iterable[Tensor | NDArray[Any]],
    labels: ArrayLike | None = None,
) -> Manifest:
    """Put token batches (B, N), in the order of `image_ids`, into a new store at `folder`.

    They are what `tokenizer` gave, by `encode` or by `fit_encode`; its digest is asked for after the
    last batch. `labels` (images,) are integers from 0 on, -1 where unknown; None knows none. Beside what
    is given, memory is at most one batch, 48 bytes an image and 16 MB. Nothing is left behind on an error.

    Raises HarnessError if the store exists already, the codebook exceeds 16 bits, ids repeat, or the
    count, shape or range of tokens or labels is wrong. Ids and labels are checked before the first batch
    is asked for.
    """
    _check_writable(folder, tokenizer)
    known_labels = _as_labels(labels, images=len(image_ids))
    with _finished_together(folder) as unfinished:
        write_image_ids(unfinished, image_ids)
        write_array(unfinished / LABELS_NAME, known_labels)
        counts = _write_rows(unfinished / TOKENS_NAME, tokens, tokenizer=tokenizer, images=len(image_ids))
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
            files=describe_files(unfinished, FILE_NAMES),
            card=card_of_counts(counts),
        )
        manifest = manifest.model_copy(update={"digest": manifest.content_digest()})
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)
        # Last, so that a folder without a manifest is known to be unfinished under any name.
        with durable(unfinished / MANIFEST_NAME) as stream:
            stream.write((text + "\n").encode())
    return manifest


def open_store(folder: Path, *, verify: bool = True) -> TokenStore:
    """The store at `folder`. `verify` re-reads every byte of every file; without it only the manifest,
    the files' sizes and their headers are read, however many images there are.

    Raises HarnessError if the store is missing, unfinished, damaged or edited; a digest that differs is
    shown on both sides.
    """
    manifest = _read_manifest(folder)
    check_same(folder / MANIFEST_NAME, "digest", found=manifest.content_digest(), stated=manifest.digest)
    check_files(folder, manifest.files, verify=verify)
    images = manifest.images
    return TokenStore(
        manifest,
        image_ids=ImageIds(folder, images),
        tokens=map_array(folder / TOKENS_NAME, _TOKEN, (images, manifest.tokenizer.grid**2)),
        labels=map_array(folder / LABELS_NAME, _LABEL, (images,)),
    )


def _reopen(folder: Path, digest: str) -> TokenStore:
    store = open_store(folder, verify=False)
    if store.digest != digest:
        raise HarnessError(f"{folder} was replaced by another store while it was in use; run again")
    return store


def _check_writable(folder: Path, tokenizer: Tokenizer) -> None:
    if tokenizer.codebook_size > _MAX_CODEBOOK:
        raise HarnessError(
            f"tokenizer {tokenizer.name} has {tokenizer.codebook_size} codes; a token store holds ids of "
            f"16 bits, so at most {_MAX_CODEBOOK}: set a smaller codebook_size"
        )
    if folder.exists():
        raise HarnessError(f"{folder} exists already; open it, or delete it to tokenise again")


def _as_labels(labels: ArrayLike | None, *, images: int) -> NDArray[np.int64]:
    if labels is None:
        return np.full(images, UNKNOWN_LABEL, dtype=_LABEL)
    given = np.asarray(labels)
    if given.shape != (images,) or (images and not np.issubdtype(given.dtype, np.integer)):
        raise HarnessError(
            f"labels are {given.dtype} {given.shape}; give one integer for each of {images} images, "
            f"{UNKNOWN_LABEL} where it is unknown, or none at all"
        )
    if images and not UNKNOWN_LABEL <= given.min() <= given.max() <= np.iinfo(_LABEL).max:
        raise HarnessError(
            f"labels run from {given.min()} to {given.max()}: a label is 0 or more, {UNKNOWN_LABEL} where it "
            "is unknown, and of at most 63 bits"
        )
    return given.astype(_LABEL)


def _write_rows(
    path: Path, batches: Iterable[Tensor | NDArray[Any]], *, tokenizer: Tokenizer, images: int
) -> NDArray[np.int64]:
    """Stream the batches into an .npy file of exactly (images, N); returns how often each code occurs."""
    header = {"descr": _TOKEN.str, "fortran_order": False, "shape": (images, tokenizer.grid**2)}
    counts = np.zeros(tokenizer.codebook_size, dtype=np.int64)
    written = 0
    with durable(path) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for batch in batches:
            ids = np.asarray(batch)
            _check_form(ids, tokenizer)
            written += len(ids)
            if written > images:
                raise HarnessError(f"{images} image ids were given, but tokens of at least {written} images")
            for start in range(0, len(ids), _BLOCK):
                block = ids[start : start + _BLOCK]
                _check_range(block, tokenizer)
                counts += code_counts(block, tokenizer.codebook_size)
                stream.write(block.astype(_TOKEN, order="C", copy=False).data)
    if written != images:
        raise HarnessError(f"{images} image ids were given, but tokens of {written} images")
    return counts


def _check_form(ids: NDArray[Any], tokenizer: Tokenizer) -> None:
    patches = tokenizer.grid**2
    if ids.ndim != 2 or ids.shape[1] != patches or not np.issubdtype(ids.dtype, np.integer):
        raise HarnessError(
            f"tokenizer {tokenizer.name} gave {ids.dtype} tokens {ids.shape}, not integers (B, {patches})"
        )


def _check_range(ids: NDArray[Any], tokenizer: Tokenizer) -> None:
    if ids.min() < 0 or ids.max() >= tokenizer.codebook_size:
        raise HarnessError(
            f"tokenizer {tokenizer.name} gave ids from {ids.min()} to {ids.max()}, outside its "
            f"codebook of {tokenizer.codebook_size}"
        )


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
            raise HarnessError(f"{folder} could not be put in place ({error.strerror}); {REMEDY}") from None
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise HarnessError(
            f"{folder} is not a finished token store: it has no {MANIFEST_NAME}; tokenise first"
        )
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise HarnessError(f"{path}: {path.stat().st_size} bytes is too large for a manifest; {REMEDY}")
    content = path.read_bytes()
    _check_version(path, content)
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first: Any = error.errors(include_url=False)[0]
        # What is no JSON at all has no field to name.
        where = f"{'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise HarnessError(f"{path}: {where}{first['msg']}; {REMEDY}") from None


def _check_version(path: Path, content: bytes) -> None:
    """HarnessError for a manifest of another layout; one that cannot be read is left to the schema."""
    try:
        version = json.loads(content)["schema_version"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return
    if version != SCHEMA_VERSION:
        raise HarnessError(
            f"{path}: schema_version {version!r}: another version of this harness wrote the store, which "
            f"is read as version {SCHEMA_VERSION} only; {REMEDY}"
        )
