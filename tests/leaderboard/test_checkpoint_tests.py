"""Two checkpoints on the same images: McNemar's test and the paired bootstrap, as the libraries have them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap
from statsmodels.stats.contingency_tables import mcnemar

from leaderboard.checkpoint_tests import (
    checkpoint_test,
    compare_checkpoints,
    mcnemar_p,
    only_right,
    smallest_checkpoint_difference,
)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 12), (40, 40), (13, 2), (300, 241)])
def test_the_exact_p_is_statsmodels_and_scipys(only_a: int, only_b: int) -> None:
    p = float(mcnemar_p(only_a, only_b))
    if only_a + only_b:
        assert p == pytest.approx(mcnemar([[70, only_a], [only_b, 9]], exact=True).pvalue, rel=1e-9)
        assert p == pytest.approx(binomtest(only_a, only_a + only_b).pvalue, rel=1e-9)
    else:
        assert p == 1.0
    assert float(mcnemar_p([only_a, 3], [only_b, 3])[0]) == p


def test_a_textbook_table() -> None:
    """Agresti, Categorical Data Analysis: 150 against 86 who changed their mind."""
    assert float(mcnemar_p(150, 86)) == pytest.approx(3.7e-5, abs=0.2e-5)


def test_interval_agrees_with_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(400) < 0.8, rng.random(400) < 0.7
    test = compare_checkpoints(a, b)
    expected = bootstrap(
        (a.astype(float), b.astype(float)),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=9_999,
        rng=np.random.default_rng(3),
    ).confidence_interval
    # One image of 400 is 0.25 points.
    assert test.low == pytest.approx(100 * expected.low, abs=0.51)
    assert test.high == pytest.approx(100 * expected.high, abs=0.51)
    assert test.low < test.difference < test.high
    assert test.difference == pytest.approx(100 * (a.mean() - b.mean()))
    assert (test.only_a, test.only_b) == (int((a & ~b).sum()), int((b & ~a).sum()))


def test_the_other_way_round_is_the_mirror() -> None:
    one, other = checkpoint_test(40, 25, 1000), checkpoint_test(25, 40, 1000)
    assert (one.difference, one.p) == (-other.difference, other.p)
    assert (one.low, one.high) == (-other.high, -other.low)


def test_equal_checkpoints_are_not_told_apart() -> None:
    right = np.arange(50) % 3 == 0
    test = compare_checkpoints(right, right)
    assert (test.difference, test.low, test.high, test.p) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="paired images"):
        compare_checkpoints(right, right[1:])


def test_counts_of_all_pairs_at_once() -> None:
    correct_RI = np.random.default_rng(4).random((5, 333)) < 0.6
    counts_RR = only_right(correct_RI)
    for a in range(5):
        for b in range(5):
            assert counts_RR[a, b] == int((correct_RI[a] & ~correct_RI[b]).sum())


def test_the_smallest_difference_is_found_four_times_in_five() -> None:
    images, unlike = 1_000, 0.12
    points = smallest_checkpoint_difference(images, share_unlike=unlike, alpha=0.05)
    assert points is not None
    share = (unlike + points / 100) / 2
    counts = np.random.default_rng(5).multinomial(images, [share, unlike - share, 1 - unlike], size=4_000)
    found = float(np.mean(mcnemar_p(counts[:, 0], counts[:, 1]) <= 0.05))
    # The number of images on which two differ varies from draw to draw; the statement fixes it.
    assert found == pytest.approx(0.8, abs=0.03)
    stricter = smallest_checkpoint_difference(images, share_unlike=unlike, alpha=0.05 / 90)
    more = smallest_checkpoint_difference(50_000, share_unlike=unlike, alpha=0.05)
    assert stricter is not None
    assert more is not None
    assert more < points < stricter


def test_too_few_images_find_nothing() -> None:
    assert smallest_checkpoint_difference(100, share_unlike=0.04, alpha=0.05) is None
    assert smallest_checkpoint_difference(100, share_unlike=0.0, alpha=0.05) is None
    assert smallest_checkpoint_difference(100, share_unlike=0.06, alpha=0.05) is not None
