"""What the board states of chance: spread over seeds, a paired bound and an interval over test images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

CONFIDENCE = 0.99
RESAMPLES = 100_000
INTERVAL = 0.95


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
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """One-sided lower confidence bound of accuracy(a) - accuracy(b), in percentage points.

    `correct_a` and `correct_b` are (images,) booleans over the same images in the same order
    (`leaderboard.predictions.paired_correct` sees to that). Percentile bootstrap (Efron and Tibshirani,
    "An Introduction to the Bootstrap", 1993, section 13.3) of the mean of the per-image differences.
    A difference is -1, 0 or 1 and the mean depends on how often each occurs alone, so drawing images
    with replacement is exactly one multinomial draw of the three counts: no image is ever indexed.

    Raises ValueError for shapes that differ, for no images, or for a confidence outside (0, 1).
    """
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(f"paired images are two equal, non-empty rows; got shapes {a.shape} and {b.shape}")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence {confidence} must lie between 0 and 1, resamples {resamples} above 0")
    images = a.size
    worse, better = int(np.sum(~a & b)), int(np.sum(a & ~b))
    shares = np.array([worse, images - worse - better, better]) / images
    counts = np.random.default_rng(seed).multinomial(images, shares, size=resamples)
    differences = (counts[:, 2] - counts[:, 0]) / images
    return 100.0 * float(np.quantile(differences, 1 - confidence))


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
