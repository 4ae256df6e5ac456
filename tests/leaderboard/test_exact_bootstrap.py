"""The computed bootstrap distribution, against the one counted out and against drawn resamples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binom

from leaderboard.exact_bootstrap import bootstrap_quantiles

PROBABILITIES = [0.005, 0.01, 0.025, 0.3, 0.5, 0.9, 0.975, 0.99]


@pytest.mark.parametrize(("worse", "better"), [(1, 2), (0, 3), (5, 0), (2, 2), (0, 0), (3, 2)])
def test_it_is_the_distribution_of_all_resamples(worse: int, better: int) -> None:
    images = 5
    differences = [-1] * worse + [1] * better + [0] * (images - worse - better)
    sums = np.sort([sum(drawn) for drawn in itertools.product(differences, repeat=images)])
    # The smallest sum of which at least this share of all 3,125 resamples is not above.
    counted = [sums[int(np.ceil(share * sums.size - 1e-9)) - 1] for share in PROBABILITIES]
    assert bootstrap_quantiles(worse, better, images, PROBABILITIES).tolist() == counted


def test_differences_one_way_are_binomial() -> None:
    quantiles = bootstrap_quantiles(0, 30, 1000, PROBABILITIES)
    assert quantiles.tolist() == binom(1000, 0.03).ppf(PROBABILITIES).tolist()
    assert (bootstrap_quantiles(30, 0, 1000, [0.3]) == -binom(1000, 0.03).isf(0.3)).all()


@pytest.mark.parametrize(
    ("worse", "better", "images"), [(400, 900, 4000), (5000, 6200, 50_000), (1, 0, 50_000), (0, 7, 7)]
)
def test_it_agrees_with_drawn_resamples(worse: int, better: int, images: int) -> None:
    shares = np.array([worse, images - worse - better, better]) / images
    counts = np.random.default_rng(3).multinomial(images, shares, size=100_000)
    drawn = np.quantile(counts[:, 2] - counts[:, 0], PROBABILITIES)
    spread = np.sqrt(worse + better)
    assert bootstrap_quantiles(worse, better, images, PROBABILITIES) == pytest.approx(
        drawn, abs=1 + 0.05 * spread
    )
