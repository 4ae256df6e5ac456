"""Decode images to see which cannot be, and keep none of them. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmark.image_files import DamagedImage
from benchmark.image_part import ImagePart
from benchmark.shard_processes import in_processes

AT_ONCE = 64  # images that a process decodes before it reports


@dataclass(frozen=True)
class Decoded:
    """How many images were decoded, and id and reason of each that cannot be."""

    images: int
    unreadable: tuple[tuple[str, str], ...]


def decode(images: ImagePart, positions: Sequence[int], *, workers: int) -> Iterator[Decoded]:
    """Decode the images at `positions` in `workers` further processes (0: in this one), some at a time."""

    def of_shard(shard: int) -> Decoded:
        chosen, unreadable = positions[shard * AT_ONCE : (shard + 1) * AT_ONCE], []
        for position in chosen:
            try:
                images.image(position)
            except DamagedImage as error:
                unreadable.append((error.image_id, error.reason))
        return Decoded(images=len(chosen), unreadable=tuple(unreadable))

    shards = range((len(positions) + AT_ONCE - 1) // AT_ONCE)
    yield from in_processes(of_shard, shards, workers=workers)
