"""Token stores of made-up tokens, and the stand-in for the tokenizer that they are said to be by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenizers.store import Manifest, write_tokens


@dataclass(frozen=True)
class StandIn:
    """What a store keeps of its tokenizer; it never encodes anything."""

    codebook_size: int = 8192
    grid: int = 2
    name: str = "stand-in"
    digest: str = "0" * 64
    config: dict[str, Any] = field(default_factory=dict)
    teacher: str = "none"
    input_transform: str = "none"


@dataclass(frozen=True)
class MadeIds(Sequence[str]):
    """`count` ids like ImageNet's, in the order of their folders, each made when it is asked for."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int | slice) -> Any:
        chosen = range(self.count)[index]
        if isinstance(chosen, int):
            return self._made(chosen)
        return [self._made(row) for row in chosen]

    def _made(self, row: int) -> str:
        folder = f"n{1440764 + 9973 * (row // 1300):08d}"
        return f"train/{folder}/{folder}_{(row % 1300) * 37 + 6}.JPEG"


def made_tokens(
    count: int, *, patches: int, codes: int, batch: int = 1024
) -> Iterator[npt.NDArray[np.uint16]]:
    """Batches (batch, patches) of random ids below `codes`, `count` rows in all."""
    rng = np.random.default_rng(0)
    for start in range(0, count, batch):
        yield rng.integers(codes, size=(min(batch, count - start), patches), dtype=np.uint16)


def write_made(
    folder: Path,
    image_ids: Sequence[str],
    *,
    tokenizer: StandIn | None = None,
    tokens: Iterable[npt.NDArray[Any]] | None = None,
    labels: npt.ArrayLike | None = None,
    data_name: str = "made",
) -> Manifest:
    """A store of `image_ids` at `folder`; random tokens where none are given."""
    by = tokenizer or StandIn()
    made = made_tokens(len(image_ids), patches=by.grid**2, codes=by.codebook_size)
    return write_tokens(
        folder,
        tokenizer=by,  # type: ignore[arg-type]
        data_name=data_name,
        data_digest="d",
        image_ids=image_ids,
        labels=labels,
        tokens=made if tokens is None else tokens,
    )
