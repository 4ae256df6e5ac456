"""Two checkpoints on the same test images: whether one is right more often than chance in the images allows.

The level of *these checkpoints*: one seed against one seed. It says nothing of the methods, whose other
seeds might turn it round; that is `method_tests.py`. R checkpoints, I images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binom

from leaderboard.statistics import POWER, paired_bootstrap_interval


@dataclass(frozen=True, kw_only=True)
class CheckpointTest:
    """`only_a` images were right in a alone. Difference a - b and its 95 % interval in percentage points."""

    images: int
    only_a: int
    only_b: int
    difference: float
    low: float
    high: float
    p: float


def compare_checkpoints(correct_a: ArrayLike, correct_b: ArrayLike) -> CheckpointTest:
    """McNemar's exact test and the paired bootstrap of two rows (I,) of booleans over the same images.

    Raises ValueError for shapes that differ, or for no images.
    """
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(f"paired images are two equal, non-empty rows; got shapes {a.shape} and {b.shape}")
    return checkpoint_test(int(np.sum(a & ~b)), int(np.sum(b & ~a)), a.size)


def checkpoint_test(only_a: int, only_b: int, images: int) -> CheckpointTest:
    """The same from what both tests depend on: how many images each alone had right, of how many."""
    low, high = paired_bootstrap_interval(only_a, only_b, images)
    return CheckpointTest(
        images=images,
        only_a=only_a,
        only_b=only_b,
        difference=100.0 * (only_a - only_b) / images,
        low=low,
        high=high,
        p=float(mcnemar_p(only_a, only_b)),
    )


def mcnemar_p(only_a: ArrayLike, only_b: ArrayLike) -> NDArray[np.float64]:
    """Two-sided exact p (McNemar, Psychometrika 12, 1947), of as many pairs as are given.

    If both are equally good, each image on which they differ falls to either by a fair coin.
    """
    a, b = np.asarray(only_a), np.asarray(only_b)
    return np.minimum(1.0, 2 * binom.cdf(np.minimum(a, b), a + b, 0.5))


def only_right(correct_RI: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(R, R) counts: in how many images the first of a pair is right and the second is wrong."""
    # Counts up to 2^24 are exact in float32, in which this is a fast matrix product.
    right = correct_RI.astype(np.float32)
    return np.rint(right @ (1 - right).T).astype(np.int64)


def smallest_checkpoint_difference(
    images: int, *, share_unlike: float, alpha: float, power: float = POWER
) -> float | None:
    """The smallest difference, in percentage points, that McNemar's exact test finds with that power.

    `share_unlike` of the images are right in one of the two alone. Given their number m, the test is a
    binomial one of m coins. None if no division of the m coins would reach `alpha`.
    """
    unlike = round(images * share_unlike)
    # The greatest count of the lesser side that is still significant.
    lesser = int(binom.ppf(alpha / 2, unlike, 0.5)) if unlike else -1
    while lesser >= 0 and 2 * binom.cdf(lesser, unlike, 0.5) > alpha:
        lesser -= 1
    if lesser < 0:
        return None

    def power_above(share_of_better: float) -> float:
        return float(binom.cdf(lesser, unlike, 1 - share_of_better)) - power

    share_of_better = brentq(power_above, 0.5, 1.0)
    return 100.0 * (2 * share_of_better - 1) * unlike / images
