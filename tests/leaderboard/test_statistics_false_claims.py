"""Equal methods are not said to differ: family-wise, after Holm, in at most 5 % of tables with three seeds.

Seeded draws, and an honest bound: what is asserted is the 99 % upper confidence bound of the rate.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_ind

from leaderboard.method_tests import METHOD_ALPHA
from leaderboard.statistics import ALPHA, holm
from tests.leaderboard.false_claims import (
    MANY_IMAGES,
    SEEDS,
    Scenario,
    Test,
    are_claiming,
    paired,
    pooled,
    scenarios,
    tables_with_claims,
    welch_as_used,
)

TABLES = 1_000
SIX_ROWS = scenarios(6)


def _bounds(
    scenario: Scenario, test: Test, *, tables: int = TABLES, level: float = METHOD_ALPHA
) -> tuple[float, float]:
    """99 % bounds, lower and upper, of the rate of tables with a false claim."""
    drawn = scenario.draw(tables, np.random.default_rng(1))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # The tests that were not chosen cannot tell seeds that agree exactly.
        warnings.simplefilter("ignore", RuntimeWarning)
        claimed = tables_with_claims(drawn, test, level=level)
    interval = binomtest(claimed, tables).proportion_ci(0.98)
    return interval.low, interval.high


@pytest.mark.parametrize("scenario", SIX_ROWS, ids=lambda one: one.name)
def test_a_table_of_six_rows(scenario: Scenario) -> None:
    assert _bounds(scenario, welch_as_used(scenario.images))[1] <= ALPHA


@pytest.mark.parametrize("rows", [3, 12])
def test_tables_of_other_sizes(rows: int) -> None:
    scenario = scenarios(rows)[2]
    assert _bounds(scenario, welch_as_used(scenario.images))[1] <= ALPHA


def test_a_table_claims_something_where_any_adjusted_p_says_so() -> None:
    p_TP = np.random.default_rng(3).random((200, 5)) ** 3
    p_TP[::7, 2] = np.nan
    p_TP[0] = np.nan
    adjusted = np.array([(holm(p_P) < ALPHA).any() for p_P in p_TP])
    assert (are_claiming(p_TP, level=ALPHA) == adjusted).all()
    assert 20 < adjusted.sum() < 180


def test_two_rows_of_whatever_spreads() -> None:
    """The one pair of a table is tested as such: Holm changes nothing. 1 : 7 is about the worst there is."""
    tables = 500_000
    rows = np.random.default_rng(2).standard_normal((2, tables, SEEDS))
    p = ttest_ind(rows[0], 7 * rows[1], axis=1, equal_var=False).pvalue
    assert binomtest(int((p < METHOD_ALPHA).sum()), tables).proportion_ci(0.98).high <= ALPHA
    assert binomtest(int((p < ALPHA).sum()), tables).proportion_ci(0.98).low > ALPHA


def test_why_no_other_test_was_chosen() -> None:
    one_image = SIX_ROWS[5]
    assert one_image.images == 200
    # One variance for both claims too much where spreads differ; pairing, and a spread of nothing, where
    # three seeds agree to the image by luck.
    assert _bounds(SIX_ROWS[1], pooled, tables=2_000, level=ALPHA)[0] > ALPHA
    assert _bounds(one_image, paired, tables=500, level=ALPHA)[0] > ALPHA
    twelve = scenarios(12)[5]
    assert _bounds(twelve, welch_as_used(MANY_IMAGES), tables=500)[0] > ALPHA
    assert _bounds(twelve, welch_as_used(twelve.images), tables=500)[1] <= ALPHA
