"""Two methods over their seeds: whether their means differ by more than the spread over seeds allows.

The level of *these methods*: the test images are fixed, seeds are what varies. Welch's t-test; why it and
no other, and how often it claims what is not there, says docs/statistics.md. With fewer than three seeds
of either, nothing is said.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from leaderboard.statistics import INTERVAL, POWER

MIN_SEEDS = 3
# Welch's test has its level nearly: with three seeds and one spread seven times the other it claims too much
# in 5.8 % instead of 5 %. Read at 4 % it stays below 5 % for any two spreads.
METHOD_ALPHA = 0.04
TOO_FEW = "fewer than three seeds: nothing is said about methods"
MOST_TIE_GROUPS = 20
_DRAWS = 40_000


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """What was measured of one method: in per cent, by seed, lowest first, each over `images` test images."""

    values: tuple[float, ...]
    images: int

    @property
    def are_enough(self) -> bool:
        """True if something may be said about the method."""
        return len(self.values) >= MIN_SEEDS

    @property
    def least_sd(self) -> float:
        """Half an image, in percentage points: the rounding of an accuracy, and no spread is below it.

        Three seeds of a few hundred images agree to the image by luck. Their spread of zero would make a
        difference of one image certain.
        """
        return 50.0 / self.images

    @property
    def sd(self) -> float:
        """The sample standard deviation over seeds, never below `least_sd`."""
        return max(float(np.std(self.values, ddof=1)), self.least_sd)

    def widened(self) -> NDArray[np.float64]:
        """(seeds,) the values; where they spread less than `least_sd`, others of their mean with that."""
        return _widened(np.array([self.values]), np.array([self.least_sd]))[0]


def _widened(values_RS: NDArray[np.float64], least_R: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, S) the values of R rows, those rows replaced whose S seeds spread less than is believed of them."""
    steps_S = np.arange(values_RS.shape[1]) - (values_RS.shape[1] - 1) / 2
    spread_RS = steps_S * (least_R / np.std(steps_S, ddof=1))[:, None]
    is_narrow_R = np.std(values_RS, axis=1, ddof=1) < least_R
    return np.where(is_narrow_R[:, None], values_RS.mean(axis=1, keepdims=True) + spread_RS, values_RS)


@dataclass(frozen=True, kw_only=True, eq=False)
class MethodTests:
    """(P,) arrays, one entry per pair (a, b): a - b in percentage points, its 95 % interval, Welch's p.

    Interval and p are NaN where one of the two has fewer than three seeds.
    """

    difference: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    p: NDArray[np.float64]


def compare_methods(rows: Sequence[Seeds], pairs: Sequence[tuple[int, int]]) -> MethodTests:
    """Welch's t-test (Biometrika 34, 1947) of each pair of `rows`; the p-values are not adjusted yet.

    Of two rows with unlike numbers of seeds the first of the longer one are used, as many as the other has:
    with 3 seeds against 50 the test would claim too much half as often again as with 3 against 3.
    """
    from scipy.stats import ttest_ind

    counts = np.array([len(row.values) for row in rows])
    means = np.array([np.mean(row.values) for row in rows])
    first = np.array([a for a, _ in pairs], dtype=int)
    second = np.array([b for _, b in pairs], dtype=int)
    difference = means[first] - means[second]
    low, high, p = (np.full(len(pairs), np.nan) for _ in range(3))
    used = np.minimum(counts[first], counts[second])
    # Pairs with equal counts of seeds at once: thousands cost no more than one.
    for count in sorted(set(used[used >= MIN_SEEDS].tolist())):
        enough = np.flatnonzero(counts >= count).tolist()
        place = np.zeros(len(rows), dtype=int)
        place[enough] = np.arange(len(enough))
        values_RS = np.array([rows[index].values[:count] for index in enough])
        widened_RS = _widened(values_RS, np.array([rows[index].least_sd for index in enough]))
        here = np.flatnonzero(used == count)
        a_PS, b_PS = widened_RS[place[first[here]]], widened_RS[place[second[here]]]
        tested = ttest_ind(a_PS, b_PS, axis=1, equal_var=False)
        interval = tested.confidence_interval(INTERVAL)
        low[here], high[here], p[here] = interval.low, interval.high, tested.pvalue
        difference[here] = a_PS.mean(axis=1) - b_PS.mean(axis=1)
    return MethodTests(difference=difference, low=low, high=high, p=p)


def p_above(a: Seeds, b: Seeds, *, by: float = 0.0) -> float:
    """One-sided p of Welch's test that a lies above b by more than `by` percentage points. NaN of too few."""
    from scipy.stats import ttest_ind

    if not (a.are_enough and b.are_enough):
        return float("nan")
    first, second = _alike(a, b)
    return float(ttest_ind(first - by, second, equal_var=False, alternative="greater").pvalue)


def p_equivalent(a: Seeds, b: Seeds, *, margin: float) -> float:
    """p of two one-sided Welch tests (TOST) that a and b differ by less than `margin` percentage points.

    NaN if one of the two has fewer than three seeds.
    """
    from statsmodels.stats.weightstats import ttost_ind

    if not (a.are_enough and b.are_enough):
        return float("nan")
    return float(ttost_ind(*_alike(a, b), -margin, margin, usevar="unequal")[0])


def _alike(a: Seeds, b: Seeds) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The seeds of both that are tested: equally many."""
    count = min(len(a.values), len(b.values))
    first, second = (replace(one, values=one.values[:count]).widened() for one in (a, b))
    return first, second


def smallest_method_difference(sd: float, *, seeds: int, alpha: float, power: float = POWER) -> float:
    """The smallest difference of means, in percentage points, that Welch's test finds with that power.

    Both methods have `seeds` seeds, at least two, and the standard deviation `sd` over them.
    """
    return sd * _smallest_effect(seeds, alpha, power)


@lru_cache(maxsize=256)
def _smallest_effect(seeds: int, alpha: float, power: float) -> float:
    """In standard deviations. Simulated, since the power of Welch's test has no closed form.

    Equal methods are drawn; each draw needs some true difference to become significant, and the quantile
    of those differences at `power` is what is looked for. Drawn are their means and variances, which is all
    that the test sees of however many seeds.
    """
    from scipy.special import stdtrit

    generator = np.random.default_rng(0)
    difference = generator.standard_normal(_DRAWS) * np.sqrt(2 / seeds)
    a, b = generator.chisquare(seeds - 1, (2, _DRAWS)) / (seeds - 1)
    standard_error = np.sqrt((a + b) / seeds)
    freedom = (seeds - 1) * (a + b) ** 2 / (a**2 + b**2)
    needed = -stdtrit(freedom, alpha / 2) * standard_error
    return float(np.quantile(needed - difference, power))


def tie_groups(rows: Sequence[int], told_apart: Collection[tuple[int, int]]) -> list[tuple[int, ...]]:
    """The largest sets of `rows` of which no two are told apart, in the order of the rows.

    A row may be in several. Sets of one are left out, and all after MOST_TIE_GROUPS.
    """
    if not told_apart:
        return [tuple(rows)] if len(rows) > 1 else []
    apart = {frozenset(pair) for pair in told_apart}
    alike = {
        one: {other for other in rows if other != one and frozenset((one, other)) not in apart}
        for one in rows
    }
    groups = []
    for group in _cliques(frozenset(), set(rows), set(), alike):
        if len(group) > 1:
            groups.append(tuple(one for one in rows if one in group))
        if len(groups) == MOST_TIE_GROUPS:
            break
    place = {row: index for index, row in enumerate(rows)}
    return sorted(groups, key=lambda group: [place[row] for row in group])


def _cliques(
    chosen: frozenset[int], open_: set[int], closed: set[int], alike: dict[int, set[int]]
) -> Iterator[frozenset[int]]:
    """Bron and Kerbosch's algorithm with a pivot (Communications of the ACM 16, 1973)."""
    if not open_ and not closed:
        yield chosen
        return
    pivot = max(sorted(open_ | closed), key=lambda one: len(alike[one] & open_))
    for one in sorted(open_ - alike[pivot]):
        yield from _cliques(chosen | {one}, open_ & alike[one], closed & alike[one], alike)
        open_ = open_ - {one}
        closed = closed | {one}
