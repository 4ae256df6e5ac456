"""Feature vectors on their way into k-means: a bounded random sample, and a file to read them again.

M feature vectors in a chunk, D width. What comes out depends on the order of the vectors and not on how
they were cut into chunks.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]


class FeatureSample:
    """A uniform sample without replacement of at most `limit` of the vectors added.

    Every vector draws a key and the smallest keys stay, so the number of vectors need not be known
    beforehand. Holds fewer than 2 x limit vectors and one chunk, and a copy of them while pruning.
    """

    def __init__(self, *, limit: int, seed: int) -> None:
        self._limit = limit
        self._keys = np.random.default_rng(seed)
        self._threshold = np.inf
        self._kept: list[tuple[NDArray[np.float64], Features]] = []
        self._count = 0

    def add(self, features_MD: Features) -> None:
        """Offer the next chunk (M, D)."""
        keys = self._keys.random(len(features_MD))
        low = keys < self._threshold
        self._kept.append((keys[low], features_MD[low]))
        self._count += int(low.sum())
        if self._count >= 2 * self._limit:
            self._prune()

    def rows(self) -> Features:
        """The sample (at most `limit`, D), in the order in which its vectors were added."""
        if not self._kept:
            return np.empty((0, 0), dtype=np.float32)
        self._prune()
        return self._kept[0][1]

    def _prune(self) -> None:
        keys = np.concatenate([keys for keys, _ in self._kept])
        features = np.concatenate([features for _, features in self._kept])
        if len(keys) > self._limit:
            # Stable, so that of two equal keys the earlier vector stays wherever the chunks ended.
            stay = np.sort(np.argsort(keys, kind="stable")[: self._limit])
            keys, features = keys[stay], features[stay]
            self._threshold = keys.max()
        self._kept, self._count = [(keys, features)], len(keys)


class FeatureSpool:
    """Features of many images, (n, N, D) float32, in a nameless temporary file that ends with the object.

    It spares the second run of the extractor when the same images are first fitted on and then encoded;
    the disk space is 4 n N D bytes in `folder`, None the system's temporary one.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - outlives this call
        # Also when fitting fails, or nobody reads the batches.
        weakref.finalize(self, self._file.close)
        self._lengths: list[int] = []
        self._shape: tuple[int, ...] = ()

    def append(self, features_BND: Features) -> None:
        """Keep the features of the next B images."""
        self._file.write(np.ascontiguousarray(features_BND, dtype=np.float32).tobytes())
        self._lengths.append(len(features_BND))
        self._shape = features_BND.shape[1:]

    def batches(self) -> Iterator[Features]:
        """What was appended, in the same batches; the file is gone when the last one was read."""
        per_image = int(np.prod(self._shape))
        with self._file:
            self._file.seek(0)
            for length in self._lengths:
                content = self._file.read(length * per_image * np.dtype(np.float32).itemsize)
                yield np.frombuffer(bytearray(content), dtype=np.float32).reshape(length, *self._shape)
