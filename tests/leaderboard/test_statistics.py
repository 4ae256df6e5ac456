"""The spread over seeds and the paired bound, against hand values and scipy's bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from leaderboard.statistics import (
    holm,
    mean_and_sd,
    paired_bootstrap_interval,
    paired_bootstrap_lower_bound,
)


def _outcomes(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(images) < 0.7, rng.random(images) < 0.6


def test_mean_and_sample_sd() -> None:
    mean, deviation = mean_and_sd([1.0, 2.0, 6.0])
    assert mean == pytest.approx(3.0)
    assert deviation == pytest.approx(7**0.5)
    assert mean_and_sd([4.5]) == (4.5, None)
    with pytest.raises(ValueError, match="no values"):
        mean_and_sd([])


@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_bound_agrees_with_scipy(confidence: float) -> None:
    a, b = _outcomes(500, seed=3)
    expected = bootstrap(
        (a.astype(float) - b.astype(float),),
        np.mean,
        confidence_level=confidence,
        alternative="greater",
        method="percentile",
        n_resamples=5_000,
        rng=np.random.default_rng(1),
    ).confidence_interval.low
    # One image is 0.2 points, and the standard error of a quantile of 5,000 resamples 0.16 at most.
    bound = paired_bootstrap_lower_bound(a, b, confidence=confidence)
    assert bound == pytest.approx(100 * expected, abs=0.41)
    assert bound < 100 * (a.mean() - b.mean())


def test_bound_is_paired_one_sided_and_reproducible() -> None:
    a, b = _outcomes(500, seed=4)
    bound = paired_bootstrap_lower_bound(a, b)
    assert bound == paired_bootstrap_lower_bound(a, b)
    order = np.random.default_rng(0).permutation(500)
    assert bound == paired_bootstrap_lower_bound(a[order], b[order])
    assert bound > paired_bootstrap_lower_bound(a, b, confidence=0.999)
    # Fully nested outcomes differ in one direction alone, so their bound is tighter than an unpaired one.
    nested = np.arange(500) < 300
    assert paired_bootstrap_lower_bound(nested, nested & (np.arange(500) < 295)) >= 0


def test_equal_predictions_have_bound_zero() -> None:
    a, _ = _outcomes(300, seed=5)
    assert paired_bootstrap_lower_bound(a, a) == 0.0
    assert paired_bootstrap_lower_bound(np.ones(7, bool), np.zeros(7, bool)) == 100.0
    assert paired_bootstrap_lower_bound(np.zeros(7, bool), np.ones(7, bool)) == -100.0


@pytest.mark.parametrize(
    ("a", "b", "confidence"),
    [([True], [True, False], 0.99), ([], [], 0.99), ([[True]], [[True]], 0.99), ([True], [True], 1.0)],
)
def test_bound_refuses_what_is_not_a_pair(a: list[bool], b: list[bool], confidence: float) -> None:
    with pytest.raises(ValueError, match=r"paired images|confidence"):
        paired_bootstrap_lower_bound(np.array(a), np.array(b), confidence=confidence)


def test_the_interval_holds_the_bound_and_takes_counts_alone() -> None:
    a, b = _outcomes(500, seed=6)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    low, high = paired_bootstrap_interval(only_a, only_b, 500, confidence=0.98)
    assert low == pytest.approx(paired_bootstrap_lower_bound(a, b, confidence=0.99))
    assert high > 100 * (a.mean() - b.mean())
    with pytest.raises(ValueError, match="no pair"):
        paired_bootstrap_interval(300, 300, 500)


def test_holms_adjustment() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    adjusted = holm([0.01, float("nan"), 0.02])
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.02])
    assert np.isnan(adjusted[1])
    assert np.isnan(holm([float("nan")])).all()
    assert holm([]).size == 0
