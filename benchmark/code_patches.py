"""What a gallery of codes shows (paper, Figures 3 to 5): codes, pairs of codes, and patches that carry them.

Every choice is a function of the token store and the seed. The store is read in blocks, so that memory
does not grow with it; what a code shows does not depend on which other codes are shown beside it.

Shapes: K codes, C width of their rows, b images of a block, N patches of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from protocols.errors import HarnessError

if TYPE_CHECKING:
    from tokenizers.store import TokenStore

MOST_SAMPLED = 256  # carrying patches of a code whose distances are computed
_BLOCK_TOKENS = 2**20
_BLOCK_ROWS = 512
_TIES = 4096
_CODES, _PATCHES = 0, 1  # streams of the seed


@dataclass(frozen=True, kw_only=True, order=True)
class Patch:
    """Patch `position` (row-major) of the image in row `row` of the store."""

    row: int
    position: int


@dataclass(frozen=True, kw_only=True, order=True)
class Pair:
    """Two codes, `first` below `second` unless it was asked for, and the distance of their rows."""

    distance: float
    first: int
    second: int


def code_counts(store: TokenStore) -> NDArray[np.int64]:
    """How many patches of the whole store carry each code, (K,)."""
    counts = np.zeros(store.codebook_size, dtype=np.int64)
    for _, tokens_bN in _blocks(store):
        counts += np.bincount(tokens_bN.reshape(-1), minlength=store.codebook_size)
    return counts


def check_codes(codes: Sequence[int], counts: NDArray[np.int64], *, tokenizer: str) -> tuple[int, ...]:
    """`codes`, each once. HarnessError for one that is outside the codebook, or that no patch carries."""
    for code in codes:
        if not 0 <= code < len(counts):
            raise HarnessError(
                f"--codes {code}: tokenizer {tokenizer} has codes 0 to {len(counts) - 1}; give one of those"
            )
        if not counts[code]:
            used = np.flatnonzero(counts)
            nearest = int(used[np.abs(used - code).argmin()])
            raise HarnessError(
                f"--codes {code}: no patch carries this code of tokenizer {tokenizer}, which uses "
                f"{len(used)} of its {len(counts)}; give one in use, such as {nearest}, or leave --codes out"
            )
    return tuple(dict.fromkeys(codes))


def draw_codes(counts: NDArray[np.int64], *, count: int, seed: int) -> tuple[int, ...]:
    """`count` codes, ascending, drawn uniformly among those in use; all of them if there are fewer."""
    used = np.flatnonzero(counts)
    drawn = np.random.default_rng([seed, _CODES]).choice(used, min(count, len(used)), replace=False)
    return tuple(int(code) for code in np.sort(drawn))


def draw_patches(
    store: TokenStore, counts: NDArray[np.int64], codes: Sequence[int], *, most: int, seed: int
) -> dict[int, tuple[Patch, ...]]:
    """For each code at most `most` patches, drawn uniformly among all that carry it, in the store's order.

    `counts` are those of `code_counts`. One pass over the store.
    """
    wanted = {
        code: np.sort(
            np.random.default_rng([seed, _PATCHES, code]).choice(
                int(counts[code]), min(most, int(counts[code])), replace=False
            )
        )
        for code in codes
    }
    seen = dict.fromkeys(wanted, 0)
    found: dict[int, list[Patch]] = {code: [] for code in wanted}
    is_wanted = np.zeros(len(counts), dtype=bool)
    is_wanted[list(wanted)] = True
    for start, tokens_bN in _blocks(store):
        flat = tokens_bN.reshape(-1)
        places = np.flatnonzero(is_wanted[flat])
        carried = flat[places]
        for code, ordinals in wanted.items():
            own = places[carried == code]
            # The n-th patch of the whole store that carries the code lies here if n falls in this range.
            low, high = np.searchsorted(ordinals, [seen[code], seen[code] + len(own)])
            for place in own[ordinals[low:high] - seen[code]]:
                row, position = divmod(int(place), tokens_bN.shape[1])
                found[code].append(Patch(row=start + row, position=position))
            seen[code] += len(own)
    return {code: tuple(patches) for code, patches in found.items()}


def nearest_pairs(rows_KC: NDArray[np.floating], used: NDArray[np.int64], *, count: int) -> list[Pair]:
    """The `count` pairs of codes of `used` (ascending) whose rows lie nearest, nearest first.

    Of equal distances the pair of lower codes comes first. HarnessError for fewer than two codes.
    """
    points = _points(rows_KC, used)
    best: list[Pair] = []
    for start in range(0, len(used) - 1, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(used))
        squares = _squares(points[start:stop], points)
        # Each pair once: the second code is above the first.
        squares[np.tri(stop - start, len(used), start, dtype=bool)] = np.inf
        low, high = _lowest(squares, count, scale=float(np.square(points).sum(1).max()))
        pairs = [_pair(points, used, int(start + i), int(j)) for i, j in zip(low, high, strict=True)]
        best = sorted([*best, *pairs])[:count]
    return best


def nearest_of(rows_KC: NDArray[np.floating], used: NDArray[np.int64], codes: Sequence[int]) -> list[Pair]:
    """For each code that was asked for, the other code in use whose row lies nearest, in that order."""
    points = _points(rows_KC, used)
    place_of = {int(code): place for place, code in enumerate(used)}
    pairs = []
    for code in codes:
        place = place_of[code]
        distances = np.linalg.norm(points - points[place], axis=1)
        distances[place] = np.inf
        other = int(distances.argmin())
        pairs.append(Pair(distance=float(distances[other]), first=code, second=int(used[other])))
    return pairs


def farthest(distances: Mapping[Patch, float], *, most: int) -> list[tuple[Patch, float]]:
    """The `most` patches of the largest distance, farthest first; of equal ones the earlier in the store."""
    ordered = sorted(distances.items(), key=lambda item: (-item[1], item[0]))
    return ordered[:most]


def _blocks(store: TokenStore) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(first row, tokens (b, N)) over the whole store."""
    size = max(1, _BLOCK_TOKENS // store.grid**2)
    for start in range(0, len(store), size):
        yield start, store.tokens(np.arange(start, min(start + size, len(store))))


def _points(rows_KC: NDArray[np.floating], used: NDArray[np.int64]) -> NDArray[np.float64]:
    if len(used) < 2:
        raise HarnessError(
            f"pairs of codes need two codes in use, this store has {len(used)}; take another --rule"
        )
    return rows_KC[used].astype(np.float64)


def _squares(some: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances (some, points), up to the rounding of a matrix product."""
    return np.square(some).sum(1)[:, None] + np.square(points).sum(1) - 2 * some @ points.T


def _lowest(
    squares: NDArray[np.float64], count: int, *, scale: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the `count` lowest entries, and of those that rounding alone may keep from them."""
    finite = int(np.isfinite(squares).sum())
    threshold = np.partition(squares, min(count, finite) - 1, axis=None)[min(count, finite) - 1]
    slack = 1e-10 * scale
    low, high = np.nonzero(squares <= threshold + slack)
    is_sure = squares[low, high] < threshold - slack
    kept = is_sure | (np.cumsum(~is_sure) <= _TIES + count)
    return low[kept], high[kept]


def _pair(points: NDArray[np.float64], used: NDArray[np.int64], low: int, high: int) -> Pair:
    distance = float(np.linalg.norm(points[low] - points[high]))
    return Pair(distance=distance, first=int(used[low]), second=int(used[high]))
