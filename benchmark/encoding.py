"""Images -> tokens, in shards that processes share and that a kill does not lose.

The transform and the decoding of images run in data-loading processes; a shard's tokens are written when
the whole shard is encoded. A tokenizer encodes fixed, padded blocks of images and a shard starts at a
block, so the tokens depend on no process, batch or order.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmark.image_files import DamagedImage
from benchmark.image_part import ImagePart
from benchmark.readers import read
from protocols.errors import HarnessError
from protocols.files import write_atomically
from tokenizers.base import Tokenizer
from tokenizers.shards import Shards

# One block of the networks: larger batches cost shared memory when they come from other processes.
BATCH = 16
MOST_NAMED = 10


@dataclass(frozen=True)
class ReadBatch:
    """`images` (b, 3, S, S) of those that could be read, in order; of the others, id, tab and why not."""

    images: Tensor
    damaged: list[str]


class DamagedImages(HarnessError):
    """Some images cannot be read; nothing was made without them. `damaged`: id, tab and why not, for each."""

    def __init__(self, damaged: Sequence[str], *, images: int, listing: Path) -> None:
        write_atomically(listing, "".join(f"{line}\n" for line in damaged))
        named = ", ".join(line.partition("\t")[0] for line in damaged[:MOST_NAMED])
        more = f" and {len(damaged) - MOST_NAMED} more" if len(damaged) > MOST_NAMED else ""
        super().__init__(
            f"{len(damaged)} of {images} images cannot be read: {named}{more} (all, with reasons, in "
            f"{listing}); no store is made without them: fetch them again and give the command again, with "
            "--redo-failed where a cell failed; shards that were encoded whole are kept"
        )


class _Transformed(Dataset[ReadBatch]):
    """Item = the batch of the next positions, transformed."""

    def __init__(self, tokenizer: Tokenizer, images: ImagePart, batches: Sequence[Sequence[int]]) -> None:
        self.tokenizer, self.images, self.batches = tokenizer, images, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> ReadBatch:
        read, damaged = [], []
        for position in self.batches[index]:
            try:
                read.append(self.tokenizer.transform(self.images.image(position)))
            except DamagedImage as error:
                damaged.append(f"{error.image_id}\t{error.reason}")
        size = self.tokenizer.image_size
        return ReadBatch(torch.stack(read) if read else torch.empty(0, 3, size, size), damaged)


def read_batches(
    tokenizer: Tokenizer, images: ImagePart, positions: Sequence[int], *, workers: int
) -> Iterator[ReadBatch]:
    """The images at `positions`, in order, transformed in `workers` further processes (0: in this one)."""
    yield from read_shards(tokenizer, images, [positions], workers=workers)


def read_shards(
    tokenizer: Tokenizer, images: ImagePart, shards: Iterable[Sequence[int]], *, workers: int
) -> Generator[ReadBatch, None, None]:
    """As `read_batches`, for the positions of several shards; no batch holds images of two of them."""
    batches = [
        positions[start : start + BATCH] for positions in shards for start in range(0, len(positions), BATCH)
    ]
    workers = min(workers, len(batches))
    yield from read(_Transformed(tokenizer, images, batches), order=range(len(batches)), workers=workers)


class TokenShards:
    """The unfinished tokens of one part: FOLDER/00042.npy, uint16 (images of the shard, N)."""

    def __init__(self, shards: Shards, *, patches: int) -> None:
        self.shards, self.patches = shards, patches

    def write(self, shard: int, tokens: npt.NDArray[np.uint16], *, seconds: float) -> None:
        """Keep the tokens (images, N) of one shard and mark it done."""
        buffer = io.BytesIO()
        np.save(buffer, tokens, allow_pickle=False)
        content = buffer.getvalue()
        write_atomically(self._path(shard), content)
        self.shards.mark_done(shard, sha256=hashlib.sha256(content).hexdigest(), seconds=round(seconds, 3))

    def read(self) -> Iterator[npt.NDArray[np.uint16]]:
        """Every shard's tokens, in order. HarnessError if a shard is not done or its file was altered."""
        for shard in range(self.shards.count):
            yield self._read(shard)

    def drop_damaged(self) -> None:
        """Open again what is marked done and whose file is not the one that was written."""
        for shard in range(self.shards.count):
            if self.shards.is_done(shard):
                try:
                    self._read(shard)
                except HarnessError:
                    self.shards.mark_open(shard)

    def _read(self, shard: int) -> npt.NDArray[np.uint16]:
        path = self._path(shard)
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != self.shards.facts(shard).get("sha256"):
            raise HarnessError(f"{path}: not the file that was written; give the command again")
        tokens: npt.NDArray[np.uint16] = np.load(io.BytesIO(content), allow_pickle=False)
        return tokens

    def _path(self, shard: int) -> Path:
        return self.shards.folder / f"{shard:05d}.npy"


def encode_shards(
    tokens: TokenShards,
    tokenizer: Tokenizer,
    images: ImagePart,
    shards: Sequence[int],
    *,
    workers: int,
    check: Callable[[], None],
) -> Iterator[tuple[int, list[str]]]:
    """Encode `shards` of the images; `check` is called before each of them and may raise.

    Yields, after every batch, the number of images it read, and the ids of those that are damaged; a
    shard with one of these stays open.
    """
    spans = [tokens.shards.span(shard) for shard in shards]
    with closing(read_shards(tokenizer, images, spans, workers=workers)) as batches:
        for shard, span in zip(shards, spans, strict=True):
            check()
            started = time.perf_counter()
            found: list[npt.NDArray[np.uint16]] = []
            is_whole = True
            for batch in islice(batches, -(-len(span) // BATCH)):
                is_whole = is_whole and not batch.damaged
                if is_whole:
                    found.append(as_stored(tokenizer.encode(batch.images)))
                yield len(batch.images) + len(batch.damaged), batch.damaged
            if is_whole:
                tokens.write(shard, np.concatenate(found), seconds=time.perf_counter() - started)


def write_as_shards(tokens: TokenShards, batches: Iterable[Tensor]) -> None:
    """Keep tokens (b, N) of all images, in order, as shards."""
    started = time.perf_counter()
    rows, shard = np.empty((0, tokens.patches), dtype=np.uint16), 0
    for batch in batches:
        rows = np.concatenate([rows, as_stored(batch)])
        while shard < tokens.shards.count and len(rows) >= (size := len(tokens.shards.span(shard))):
            tokens.write(shard, rows[:size], seconds=time.perf_counter() - started)
            rows, shard, started = rows[size:], shard + 1, time.perf_counter()


def as_stored(ids: Tensor) -> npt.NDArray[np.uint16]:
    """Token ids as 16 bits hold them. HarnessError for one that does not fit."""
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < 2**16:
        raise HarnessError(f"token ids from {int(ids.min())} to {int(ids.max())} do not fit 16 bits")
    return ids.numpy().astype(np.uint16)
