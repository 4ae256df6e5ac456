"""What the board states of chance: spread over seeds, bounds over test images, Holm's correction.

The tests of two checkpoints stand in `checkpoint_tests.py`, those of two methods in `method_tests.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from leaderboard.exact_bootstrap import bootstrap_quantiles

CONFIDENCE = 0.99
INTERVAL = 0.95
# Checkpoints are told apart by an adjusted p below; the power that a "smallest difference" is stated for.
ALPHA = 0.05
POWER = 0.8


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (divisor n - 1) of `values`; None for the latter of one value.

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("the mean of no values is not defined")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def paired_bootstrap_lower_bound(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    *,
    confidence: float = CONFIDENCE,
) -> float:
    """One-sided lower confidence bound of accuracy(a) - accuracy(b), in percentage points.

    `correct_a` and `correct_b` are (images,) booleans over the same images in the same order
    (`leaderboard.predictions.paired_correct` sees to that). Percentile bootstrap (Efron and Tibshirani,
    "An Introduction to the Bootstrap", 1993, section 13.3) of the mean of the per-image differences.
    A difference is -1, 0 or 1, so the bootstrap distribution of their sum is known: no resample is drawn,
    and the bound is the one that infinitely many would give.

    Raises ValueError for shapes that differ, for no images, or for a confidence outside (0, 1).
    """
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(f"paired images are two equal, non-empty rows; got shapes {a.shape} and {b.shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} must lie between 0 and 1")
    worse, better = int(np.sum(~a & b)), int(np.sum(a & ~b))
    (bound,) = bootstrap_quantiles(worse, better, a.size, [1 - confidence])
    return 100.0 * float(bound) / a.size


def paired_bootstrap_interval(
    only_a: int,
    only_b: int,
    images: int,
    *,
    confidence: float = INTERVAL,
) -> tuple[float, float]:
    """Two-sided percentile interval of accuracy(a) - accuracy(b), in percentage points, as above.

    `only_a` of the `images` were right in a alone, `only_b` in b alone: all that the bootstrap depends on.
    Raises ValueError for counts that cannot be, or for a confidence outside (0, 1).
    """
    if min(only_a, only_b) < 0 or only_a + only_b > images or not images or not 0 < confidence < 1:
        raise ValueError(f"{only_a} and {only_b} of {images} images at confidence {confidence} are no pair")
    tail = (1 - confidence) / 2
    low, high = bootstrap_quantiles(only_b, only_a, images, [tail, 1 - tail])
    return 100.0 * float(low) / images, 100.0 * float(high) / images


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """The p-values of one family of tests, adjusted after Holm (Scandinavian Journal of Statistics 6, 1979).

    The chance of any false claim in the family is then at most the level at which they are read, whatever
    depends on what. NaN is no test: it stays, and counts for nothing.
    """
    # Imported late: only boards with something to compare need it.
    from statsmodels.stats.multitest import multipletests

    given = np.asarray(p_values, dtype=float)
    is_test = ~np.isnan(given)
    adjusted = np.full_like(given, np.nan)
    if is_test.any():
        # statsmodels collects garbage on every call, which on a board of 10,000 records takes seconds: while
        # it runs, nothing is there to be collected.
        gc.freeze()
        try:
            adjusted[is_test] = multipletests(given[is_test], alpha=ALPHA, method="holm")[1]
        finally:
            gc.unfreeze()
    return adjusted


def accuracy_interval(correct: int, images: int, *, confidence: float = INTERVAL) -> tuple[float, float]:
    """Two-sided confidence interval of an accuracy, in per cent, if `correct` of `images` were right.

    Exact binomial (Clopper and Pearson, Biometrika 26, 1934): never covers less often than it says.
    Raises ValueError for counts that cannot be, or for a confidence outside (0, 1).
    """
    if not 0 <= correct <= images or not images or not 0 < confidence < 1:
        raise ValueError(f"{correct} of {images} images at confidence {confidence} have no interval")
    tail = (1 - confidence) / 2
    low = float(betaincinv(correct, images - correct + 1, tail)) if correct else 0.0
    high = float(betaincinv(correct + 1, images - correct, 1 - tail)) if correct < images else 1.0
    return 100.0 * low, 100.0 * high
