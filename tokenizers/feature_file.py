"""Features sampled evenly over many images, in one memory-mapped file that any number of processes fill.

    FOLDER/features.npy     (rows, D) float16, little-endian
    FOLDER/...              which shards are done, as shards.py keeps it, with the SHA-256 of each one's rows

Image i of n gives rows floor(i M / n) to floor((i + 1) M / n) of M. Which of its patches they are is drawn
without replacement from (seed, i) alone. So what stands where depends on no rank, batch or order, and an
image without rows need not be read.

Shapes: N patches of one image, D width of a feature, b images of a batch.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from protocols.errors import HarnessError
from tokenizers.shards import Shards

FEATURES_NAME = "features.npy"
_FLOAT16 = np.dtype("<f2")


class FeatureFile:
    """`identity` is all that moves the features' bytes: the file of another identity is begun anew.

    `content` gives a digest of the images of a range, as in Shards.
    """

    def __init__(
        self,
        folder: Path,
        *,
        images: int,
        patches: int,
        width: int,
        rows: int,
        seed: int,
        identity: Mapping[str, Any],
        content: Callable[[range], str] | None = None,
    ) -> None:
        if not 0 < rows <= images * patches:
            raise HarnessError(
                f"sampled_features {rows} cannot be drawn from {images} images of {patches} patches each: "
                f"set it from 1 to {images * patches}"
            )
        self.images, self.patches, self.width, self.rows, self._seed = images, patches, width, rows, seed
        self._path = folder / FEATURES_NAME
        own = {"patches": patches, "width": width, "rows": rows, "seed": seed}
        self.shards = Shards(folder, images=images, identity={**identity, "features": own}, content=content)
        self._header = _header((rows, width))

    def prepare(self) -> None:
        """Make the folder and the file, with holes for what is not written yet; in one process."""
        self.shards.prepare()
        self._open_whole()

    def wanted(self, shard: int) -> NDArray[np.int64]:
        """Positions of the shard's images that give at least one row, ascending."""
        span = self.shards.span(shard)
        positions = np.arange(span.start, span.stop)
        return positions[np.array([len(self._rows_of(position)) > 0 for position in span], dtype=bool)]

    def patches_of(self, position: int) -> NDArray[np.int64]:
        """The patches of an image that are sampled, ascending."""
        # Raw words of a counter-based generator: their stream is fixed for good, choice()'s is not.
        key = np.array([self._seed, position], dtype=np.uint64)
        words = np.random.Philox(key=key).random_raw(self.patches)
        return np.sort(np.argsort(words, kind="stable")[: len(self._rows_of(position))])

    def write(self, shard: int, features: Iterable[Tensor]) -> None:
        """Put batches (b, N, D) float32 of the images `wanted(shard)`, in that order, where they belong.

        The shard is done when this returns; its rows are on disk then. HarnessError for other counts or
        shapes, and for a feature that float16 cannot hold.
        """
        positions = self.wanted(shard)
        rows = np.empty((len(self._rows_of_shard(shard)), self.width), dtype=_FLOAT16)
        images, filled = 0, 0
        for batch_bND in features:
            if batch_bND.shape[1:] != (self.patches, self.width) or images + len(batch_bND) > len(positions):
                raise HarnessError(
                    f"shard {shard}: features {tuple(batch_bND.shape)} after {images} images, but "
                    f"{len(positions)} images of {self.patches} x {self.width} are to be written"
                )
            for one_ND in batch_bND.numpy():
                chosen = self.patches_of(int(positions[images]))
                with np.errstate(over="ignore"):
                    rows[filled : filled + len(chosen)] = one_ND[chosen]
                images, filled = images + 1, filled + len(chosen)
        if images != len(positions):
            raise HarnessError(f"shard {shard}: features of {images} images, not of {len(positions)}")
        if not np.isfinite(rows).all():
            raise HarnessError(
                f"shard {shard}: a feature is NaN or beyond float16's {np.finfo(_FLOAT16).max}; look at the "
                "images and at the network's weights"
            )
        content = rows.tobytes()
        self._write_at(self._rows_of_shard(shard).start, content)
        self.shards.mark_done(shard, sha256=hashlib.sha256(content).hexdigest())

    def features(self) -> np.memmap[Any, np.dtype[np.float16]]:
        """All rows (M, D), read-only and memory-mapped.

        Every byte is read once and held against its shard's digest; a shard that differs is marked as open.
        HarnessError for that, and unless all shards are done.
        """
        missing = self.shards.count - self.shards.done_count()
        if missing:
            raise HarnessError(
                f"{self._path}: {missing} of {self.shards.count} shards are not done; run the command again"
            )
        if not self._path.is_file() or self._path.stat().st_size != self._size:
            self._give_up(list(range(self.shards.count)))
        mapped = np.memmap(
            self._path, dtype=_FLOAT16, mode="r", offset=len(self._header), shape=(self.rows, self.width)
        )
        damaged = []
        for shard in range(self.shards.count):
            span = self._rows_of_shard(shard)
            found = hashlib.sha256(mapped[span.start : span.stop].tobytes()).hexdigest()
            if found != self.shards.facts(shard).get("sha256"):
                damaged.append(shard)
        if damaged:
            self._give_up(damaged)
        return mapped

    @property
    def _size(self) -> int:
        return len(self._header) + self.rows * self.width * _FLOAT16.itemsize

    def _rows_of(self, position: int) -> range:
        return range(position * self.rows // self.images, (position + 1) * self.rows // self.images)

    def _rows_of_shard(self, shard: int) -> range:
        span = self.shards.span(shard)
        return range(self._rows_of(span.start).start, self._rows_of(span.stop).start)

    def _give_up(self, shards: list[int]) -> None:
        for shard in shards:
            self.shards.mark_open(shard)
        raise HarnessError(
            f"{self._path}: {len(shards)} of {self.shards.count} shards are not as they were written; they "
            "are to be done again: run the command again"
        )

    def _open_whole(self) -> None:
        """The same bytes and the same size, whoever does it and however often."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            os.pwrite(descriptor, self._header, 0)
            os.ftruncate(descriptor, self._size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _write_at(self, row: int, content: bytes) -> None:
        descriptor = os.open(self._path, os.O_RDWR)
        try:
            at = len(self._header) + row * self.width * _FLOAT16.itemsize
            rest = memoryview(content)
            while rest:
                written = os.pwrite(descriptor, rest, at)
                at, rest = at + written, rest[written:]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _header(shape: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": _FLOAT16.str, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()
