"""Two methods over seeds: the test, equivalence, the smallest difference, rows that are not told apart."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import ttest_ind
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW, ttost_ind

from leaderboard.method_tests import (
    MethodTests,
    Seeds,
    compare_methods,
    p_above,
    p_equivalent,
    smallest_method_difference,
    tie_groups,
)

A, B, C = (71.2, 71.9, 71.4), (70.1, 70.4, 69.9), (71.3, 71.0, 71.8, 71.1, 71.6)


def _seeds(*values: float, images: int = 10_000) -> Seeds:
    return Seeds(values=values, images=images)


def _compared(*rows: Seeds) -> MethodTests:
    return compare_methods(rows, list(combinations(range(len(rows)), 2)))


def test_welch_is_scipys_and_the_interval_statsmodels() -> None:
    tests = _compared(_seeds(*A), _seeds(*B), _seeds(*C))
    # C has more seeds than the others, and as many are used.
    for place, (a, b) in enumerate([(A, B), (A, C[:3]), (B, C[:3])]):
        assert tests.p[place] == pytest.approx(ttest_ind(a, b, equal_var=False).pvalue)
        low, high = CompareMeans(DescrStatsW(a), DescrStatsW(b)).tconfint_diff(usevar="unequal")
        assert (tests.low[place], tests.high[place]) == pytest.approx((low, high))
        assert tests.difference[place] == pytest.approx(np.mean(a) - np.mean(b))


def test_a_known_case() -> None:
    """t = 5 / sqrt(2/3) on 4 degrees of freedom."""
    tests = _compared(_seeds(84, 85, 86), _seeds(79, 80, 81))
    assert tests.p[0] == pytest.approx(0.00361, abs=1e-5)
    assert (tests.low[0], tests.high[0]) == pytest.approx((2.733, 7.267), abs=1e-3)


def test_nothing_is_said_of_fewer_than_three_seeds() -> None:
    tests = _compared(_seeds(70.0, 71.0), _seeds(*B), _seeds(*C))
    assert np.isnan(tests.p[:2]).all()
    assert np.isnan(tests.low[:2]).all()
    assert not np.isnan(tests.p[2])
    assert tests.difference[0] == pytest.approx(70.5 - np.mean(B))
    assert np.isnan(p_above(_seeds(80.0, 81.0), _seeds(*B)))
    assert np.isnan(p_equivalent(_seeds(80.0, 81.0), _seeds(*B), margin=0.3))


def test_seeds_that_agree_to_the_image_are_not_certain() -> None:
    tests = _compared(_seeds(80.5, 80.5, 80.5, images=200), _seeds(80.0, 80.0, 80.0, images=200))
    assert tests.p[0] > 0.05
    assert tests.low[0] < 0 < tests.high[0]
    assert _compared(_seeds(90.0, 90.0, 90.0, images=200), _seeds(80.0, 80.0, 80.0, images=200)).p[0] < 0.001
    equal = _compared(_seeds(80.0, 80.0, 80.0, images=200), _seeds(80.0, 80.0, 80.0, images=200))
    assert equal.p[0] == pytest.approx(1.0)


def test_the_floor_keeps_mean_and_states_its_spread() -> None:
    for count in (3, 4, 7):
        row = Seeds(values=(80.0,) * count, images=200)
        assert row.sd == pytest.approx(0.25)
        assert np.std(row.widened(), ddof=1) == pytest.approx(0.25)
        assert np.mean(row.widened()) == pytest.approx(80.0)
    assert tuple(_seeds(*A).widened()) == A


def test_one_sided_and_equivalence_tests_are_the_libraries() -> None:
    a, b = _seeds(*A), _seeds(*B)
    expected = ttest_ind(np.array(A) - 0.5, B, equal_var=False, alternative="greater").pvalue
    assert p_above(a, b, by=0.5) == pytest.approx(expected)
    assert p_above(b, a) > 0.9
    near = (71.45, 71.5, 71.55), (71.5, 71.52, 71.6)
    assert p_equivalent(_seeds(*near[0]), _seeds(*near[1]), margin=0.3) == pytest.approx(
        ttost_ind(np.array(near[0]), np.array(near[1]), -0.3, 0.3, usevar="unequal")[0]
    )
    assert p_equivalent(_seeds(*near[0]), _seeds(*near[1]), margin=0.3) < 0.05
    assert p_equivalent(a, b, margin=0.3) > 0.5


def test_the_smallest_difference_is_found_four_times_in_five() -> None:
    points = smallest_method_difference(0.4, seeds=3, alpha=0.05 / 15)
    drawn = np.random.default_rng(6).standard_normal((2, 20_000, 3)) * 0.4
    p = ttest_ind(drawn[0] + points, drawn[1], axis=1, equal_var=False).pvalue
    assert np.mean(p <= 0.05 / 15) == pytest.approx(0.8, abs=0.015)


def test_with_many_seeds_it_is_that_of_students_test() -> None:
    effect = TTestIndPower().solve_power(nobs1=30, alpha=0.05, power=0.8, ratio=1.0)
    assert smallest_method_difference(1.0, seeds=30, alpha=0.05) == pytest.approx(effect, rel=0.02)
    by_seeds = [smallest_method_difference(1.0, seeds=seeds, alpha=0.05) for seeds in (3, 5, 10)]
    assert by_seeds == sorted(by_seeds, reverse=True)


def test_ties_are_the_largest_sets_of_rows_not_told_apart() -> None:
    # 0 - 1 - 2 - 3: neighbours cannot be told apart, and 4 is apart from all.
    apart = {(0, 2), (0, 3), (1, 3), *((one, 4) for one in range(4))}
    assert tie_groups(range(5), apart) == [(0, 1), (1, 2), (2, 3)]
    assert tie_groups(range(4), {(0, 3)}) == [(0, 1, 2), (1, 2, 3)]
    assert tie_groups([4, 2, 9], set()) == [(4, 2, 9)]
    assert tie_groups([1, 2], {(1, 2)}) == []
    assert tie_groups([5], set()) == []


def test_groups_of_many_rows_are_cut_off() -> None:
    # Three rows of each of twelve kinds, apart within their kind: 3^12 groups.
    apart = {pair for kind in range(12) for pair in combinations(range(3 * kind, 3 * kind + 3), 2)}
    groups = tie_groups(range(36), apart)
    assert len(groups) == 20
    assert all(len(group) == 12 for group in groups)
