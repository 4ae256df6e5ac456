"""Which codes and patches a gallery shows: exact on made-up stores, uniform, in bounded memory."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmark import code_patches
from benchmark.code_patches import (
    Pair,
    Patch,
    check_codes,
    code_counts,
    draw_codes,
    draw_patches,
    farthest,
    nearest_of,
    nearest_pairs,
)
from protocols.errors import HarnessError


class MadeUpStore:
    """What a gallery asks of a token store, over an array (images, N); counts how it is read."""

    def __init__(self, tokens: NDArray[np.int64], codebook_size: int) -> None:
        self._tokens, self.codebook_size = tokens, codebook_size
        self.grid = int(tokens.shape[1] ** 0.5)
        self.largest_read = 0

    def __len__(self) -> int:
        return len(self._tokens)

    def tokens(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        self.largest_read = max(self.largest_read, len(positions))
        return self._tokens[positions]


@pytest.fixture
def store() -> MadeUpStore:
    """60 images of 2 x 2 patches; codes 0 to 8 in use, 9 carried by one patch alone, 10 and 11 by none."""
    tokens = np.random.default_rng(3).integers(0, 9, (60, 4))
    tokens[41, 2] = 9
    return MadeUpStore(tokens, 12)


def carriers(store: MadeUpStore, code: int) -> list[Patch]:
    rows, positions = np.nonzero(store._tokens == code)
    return [Patch(row=int(row), position=int(place)) for row, place in zip(rows, positions, strict=True)]


def test_counts_are_those_of_all_patches(store: MadeUpStore) -> None:
    counts = code_counts(store)
    assert counts.sum() == 240
    assert counts.tolist() == [len(carriers(store, code)) for code in range(12)]


def test_codes_are_drawn_among_those_in_use(store: MadeUpStore) -> None:
    counts = code_counts(store)
    assert draw_codes(counts, count=50, seed=0) == tuple(range(10))
    drawn = draw_codes(counts, count=4, seed=0)
    assert drawn == draw_codes(counts, count=4, seed=0) == tuple(sorted(set(drawn)))
    assert len(drawn) == 4
    often = Counter(code for seed in range(600) for code in draw_codes(counts, count=4, seed=seed))
    # 600 x 4 / 10 = 240 for each code in use, however many patches carry it; s.d. 12.
    assert set(often) == set(range(10))
    assert all(abs(times - 240) < 60 for times in often.values())


def test_patches_are_drawn_uniformly_among_all_that_carry_the_code(store: MadeUpStore) -> None:
    counts = code_counts(store)
    every = carriers(store, 5)
    often: Counter[Patch] = Counter()
    for seed in range(800):
        drawn = draw_patches(store, counts, [5], most=6, seed=seed)[5]
        assert list(drawn) == sorted(set(drawn))
        assert len(drawn) == 6
        often.update(drawn)
    expected = 800 * 6 / len(every)
    assert set(often) == set(every)
    assert all(abs(times - expected) < 5 * expected**0.5 for times in often.values())


def test_a_code_shows_the_same_whatever_is_shown_beside_it(store: MadeUpStore) -> None:
    counts = code_counts(store)
    alone = draw_patches(store, counts, [5], most=6, seed=1)[5]
    beside = draw_patches(store, counts, [2, 5, 9], most=6, seed=1)
    assert beside[5] == alone
    assert list(beside) == [2, 5, 9]
    assert beside[9] == (Patch(row=41, position=2),)
    assert draw_patches(store, counts, [5], most=6, seed=2)[5] != alone


def test_everything_is_shown_where_few_patches_carry_the_code(store: MadeUpStore) -> None:
    assert list(draw_patches(store, code_counts(store), [5], most=1000, seed=0)[5]) == carriers(store, 5)


def test_the_store_is_read_in_blocks(store: MadeUpStore, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = code_counts(store)
    whole = draw_patches(store, counts, [1, 5, 9], most=7, seed=0)
    monkeypatch.setattr(code_patches, "_BLOCK_TOKENS", 28)
    store.largest_read = 0
    assert code_counts(store).tolist() == counts.tolist()
    assert draw_patches(store, counts, [1, 5, 9], most=7, seed=0) == whole
    assert store.largest_read == 7


def by_hand(rows: NDArray[np.float64], used: list[int]) -> list[Pair]:
    pairs = [
        Pair(distance=float(np.sqrt(((rows[a] - rows[b]) ** 2).sum())), first=a, second=b)
        for a, b in combinations(used, 2)
    ]
    return sorted(pairs)


def test_nearest_pairs_are_those_of_a_plain_search(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    used = np.array([code for code in range(40) if code % 7])
    expected = by_hand(rows.astype(np.float64), used.tolist())
    for block in (512, 9, 1):
        monkeypatch.setattr(code_patches, "_BLOCK_ROWS", block)
        for count in (1, 12, 10_000):
            found = nearest_pairs(rows, used, count=count)
            assert [(one.first, one.second) for one in found] == [
                (one.first, one.second) for one in expected[:count]
            ]
            assert np.allclose([one.distance for one in found], [one.distance for one in expected[:count]])


def test_of_equally_near_pairs_those_of_lower_codes_come_first() -> None:
    rows = np.array([[0.0], [1.0], [2.0], [3.0], [9.0]]) + 1e6
    used = np.arange(5)
    found = nearest_pairs(rows, used, count=2)
    assert [(one.first, one.second, one.distance) for one in found] == [(0, 1, 1.0), (1, 2, 1.0)]
    found = nearest_pairs(rows, used[1:], count=2)
    assert [(one.first, one.second) for one in found] == [(1, 2), (2, 3)]


def test_chosen_codes_stand_beside_their_nearest() -> None:
    rows = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [0.5, 0.0]])
    found = nearest_of(rows, np.array([0, 1, 2]), [1, 0])
    assert found == [
        Pair(distance=pytest.approx(18**0.5), first=1, second=2),
        Pair(distance=1.0, first=0, second=2),
    ]


def test_the_farthest_come_first_and_ties_in_the_stores_order() -> None:
    distances = {
        Patch(row=7, position=0): 2.0,
        Patch(row=3, position=5): 2.0,
        Patch(row=3, position=1): 2.0,
        Patch(row=1, position=1): 0.5,
        Patch(row=9, position=9): 3.0,
    }
    found = [(patch.row, patch.position) for patch, _ in farthest(distances, most=4)]
    assert found == [(9, 9), (3, 1), (3, 5), (7, 0)]


def test_codes_that_cannot_be_shown_are_errors_that_say_so(store: MadeUpStore) -> None:
    counts = code_counts(store)
    assert check_codes([5, 9, 5], counts, tokenizer="k-pixel") == (5, 9)
    with pytest.raises(HarnessError, match=r"--codes 12: tokenizer k-pixel has codes 0 to 11"):
        check_codes([5, 12], counts, tokenizer="k-pixel")
    unused = r"--codes 11: no patch carries this code of tokenizer k-pixel, which uses 10 of its 12; .* 9,"
    with pytest.raises(HarnessError, match=unused):
        check_codes([11], counts, tokenizer="k-pixel")


def test_one_code_alone_makes_no_pair() -> None:
    with pytest.raises(HarnessError, match="two codes in use, this store has 1"):
        nearest_pairs(np.zeros((4, 2)), np.array([3]), count=1)
