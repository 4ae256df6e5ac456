"""The image ids of a token store: found by their hash, so that opening a store reads none of them.

    image_ids.txt     one image id a line, in the rows' order
    id_offsets.npy    (images + 1,) uint64: the byte at which each line begins, and the file's size
    id_index.npy      (2, images) uint64: the ids' hashes in ascending order, and the row of each

A hash is the first 64 bits of BLAKE2b over the id's UTF-8 text. It only says where to look: every hit is
compared with the text itself, so ids of equal hash are never mistaken for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from protocols.errors import HarnessError
from tokenizers.store_files import REMEDY, durable, map_array, map_bytes, write_array

IDS_NAME = "image_ids.txt"
OFFSETS_NAME = "id_offsets.npy"
INDEX_NAME = "id_index.npy"
_NUMBER = np.dtype("<u8")
_HASH_BYTES = _NUMBER.itemsize
_BLOCK = 16384  # ids that are encoded, hashed and compared together


def write_image_ids(folder: Path, image_ids: Sequence[str]) -> None:
    """Write the three files. Beside the ids, memory is at most 40 bytes an image and 16 MB.

    Raises HarnessError if there is no id, or if one is empty, not one line of text, or given twice.
    """
    images = len(image_ids)
    if not images:
        raise HarnessError("a token store needs at least one image id, got none")
    offsets = np.zeros(images + 1, dtype=_NUMBER)
    hashes = np.empty(images, dtype=_NUMBER)
    with durable(folder / IDS_NAME) as stream:
        for start in range(0, images, _BLOCK):
            texts = _as_texts(list(image_ids[start : start + _BLOCK]))
            stop = start + len(texts)
            offsets[start + 1 : stop + 1] = [len(text) + 1 for text in texts]
            hashes[start:stop] = _hashes(texts)
            stream.write(b"\n".join(texts) + b"\n")
    np.cumsum(offsets, out=offsets)
    write_array(folder / OFFSETS_NAME, offsets)
    del offsets
    rows = np.argsort(hashes, kind="stable")
    index = np.empty((2, images), dtype=_NUMBER)
    np.take(hashes, rows, out=index[0])
    index[1] = rows
    _check_distinct(image_ids, index)
    write_array(folder / INDEX_NAME, index)


class ImageIds(Sequence[str]):
    """The ids of `images` rows in `folder`, each read from the map when it is asked for."""

    def __init__(self, folder: Path, images: int) -> None:
        self.folder = folder
        self._text = map_bytes(folder / IDS_NAME)
        self._offsets = map_array(folder / OFFSETS_NAME, _NUMBER, (images + 1,))
        self._hashes, self._rows = map_array(folder / INDEX_NAME, _NUMBER, (2, images))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        rows = range(len(self))[index]
        if isinstance(rows, int):
            return self._lines(rows, rows + 1)[0]
        if rows.step == 1:
            return self._lines(rows.start, rows.stop)
        return [self._lines(row, row + 1)[0] for row in rows]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BLOCK):
            yield from self._lines(start, min(start + _BLOCK, len(self)))

    def __contains__(self, image_id: object) -> bool:
        if not isinstance(image_id, str):
            return False
        return self._rows_of([_text(image_id)], expected=0)[0] >= 0

    def rows(self, image_ids: Iterable[str]) -> NDArray[np.int64]:
        """Image ids -> rows (B,). KeyError with the first id that is not held."""
        found = [np.empty(0, dtype=np.int64)]
        expected = 0
        remaining = iter(image_ids)
        while block := list(islice(remaining, _BLOCK)):
            rows = self._rows_of([_text(image_id) for image_id in block], expected=expected)
            if rows.min() < 0:
                raise KeyError(block[int(rows.argmin())])
            expected = int(rows[-1]) + 1
            found.append(rows)
        return np.concatenate(found)

    def _rows_of(self, texts: list[bytes], *, expected: int) -> NDArray[np.int64]:
        """Rows (B,), -1 where there is none. A run of rows from `expected` on is seen without hashing."""
        images, count = len(self), len(texts)
        if expected + count <= images:
            run = self._text[int(self._offsets[expected]) : int(self._offsets[expected + count])]
            if run == b"\n".join(texts) + b"\n":
                return np.arange(expected, expected + count, dtype=np.int64)
        hashes = _hashes(texts)
        places = np.searchsorted(self._hashes, hashes).astype(np.int64)
        rows = np.full(count, -1, dtype=np.int64)
        pending = np.arange(count)
        while pending.size:
            pending = pending[places[pending] < images]
            pending = pending[self._hashes[places[pending]] == hashes[pending]]
            candidates = self._rows[places[pending]]
            is_hit = self._are_texts(candidates, [texts[one] for one in pending.tolist()])
            rows[pending[is_hit]] = candidates[is_hit]
            # The next place may hold another id of the same hash.
            pending = pending[~is_hit]
            places[pending] += 1
        return rows

    def _are_texts(self, rows: NDArray[np.uint64], texts: list[bytes]) -> NDArray[np.bool_]:
        """(B,), True where the row's line is exactly that text."""
        if rows.size and int(rows.max()) >= len(self):
            raise HarnessError(f"{self.folder / INDEX_NAME}: damaged (row {rows.max()}); {REMEDY}")
        at = rows.astype(np.int64)
        starts, stops = self._offsets[at].tolist(), self._offsets[at + 1].tolist()
        return np.array(
            [
                self._text[start:stop] == text + b"\n"
                for start, stop, text in zip(starts, stops, texts, strict=True)
            ],
            dtype=np.bool_,
        )

    def _lines(self, start: int, stop: int) -> list[str]:
        """The ids of rows `start` to `stop`."""
        if start >= stop:
            return []
        path = self.folder / IDS_NAME
        text = self._text[int(self._offsets[start]) : int(self._offsets[stop])]
        try:
            lines = text.decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise HarnessError(f"{path}: damaged: not UTF-8 ({error.reason}); {REMEDY}") from None
        if len(lines) != stop - start:
            raise HarnessError(f"{path}: damaged: rows {start} to {stop} hold {len(lines)} ids; {REMEDY}")
        return lines


def _text(image_id: str) -> bytes:
    # What is no valid text is not in any store, and must be searched for to be named.
    return image_id.encode("utf-8", "surrogatepass")


def _hash(text: bytes) -> bytes:
    return blake2b(text, digest_size=_HASH_BYTES).digest()


def _hashes(texts: list[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join([_hash(text) for text in texts]), dtype=_NUMBER)


def _as_texts(image_ids: list[str]) -> list[bytes]:
    """One line of UTF-8 for each id. HarnessError for one that is none."""
    if "" in image_ids or "\n".join(image_ids).splitlines() != image_ids:
        image_id = next(one for one in image_ids if one.splitlines() != [one])
        raise HarnessError(
            f"image id {image_id!r} is empty or longer than a line; ids must be distinct lines of text"
        )
    try:
        return [image_id.encode() for image_id in image_ids]
    except UnicodeEncodeError as error:
        raise HarnessError(f"image id {error.object!r} is no valid text; rename the file in UTF-8") from None


def _check_distinct(image_ids: Sequence[str], index: NDArray[np.uint64]) -> None:
    """HarnessError if an id is given twice: only ids of equal hash need to be compared."""
    hashes, rows = index
    seen: set[str] = set()
    previous = -2
    for place in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
        if place != previous + 1:
            seen = {image_ids[int(rows[place])]}
        image_id = image_ids[int(rows[place + 1])]
        if image_id in seen:
            raise HarnessError(f"image id {image_id!r} is given twice; ids must be distinct lines of text")
        seen.add(image_id)
        previous = place
