"""How often equal methods are said to differ: `python -m tests.leaderboard.false_claims` prints the rates.

Tables of R methods with S seeds each, all of one true mean, are drawn and tested as the leaderboard tests
them: every pair, adjusted after Holm over the table. A table with any claim is a false one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from leaderboard.method_tests import METHOD_ALPHA, Seeds, compare_methods
from leaderboard.statistics import ALPHA

SEEDS = 3
# So many images that their rounding plays no part.
MANY_IMAGES = 10**9
Test = Callable[[NDArray[np.float64], Sequence[tuple[int, int]]], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How seeds vary: `sds` of R methods in points; `shared` of the variance is one draw for all methods.

    With `images` the accuracies are counts of so many images.
    """

    name: str
    sds: tuple[float, ...]
    shared: float = 0.0
    images: int = MANY_IMAGES

    def draw(self, tables: int, rng: np.random.Generator, *, seeds: int = SEEDS) -> NDArray[np.float64]:
        """(tables, R, seeds) accuracies in per cent."""
        own = rng.standard_normal((tables, len(self.sds), seeds)) * np.sqrt(1 - self.shared)
        common = rng.standard_normal((tables, 1, seeds)) * np.sqrt(self.shared)
        # Where the true mean lies between two counts of images is a matter of luck.
        means = 70 + rng.random((tables, 1, 1)) * (100 / self.images)
        drawn = means + (own + common) * np.array(self.sds)[:, None]
        if self.images == MANY_IMAGES:
            return drawn
        return np.round(drawn / 100 * self.images) / self.images * 100


def welch_as_used(images: int) -> Test:
    """The leaderboard's own test."""

    def p_values(values: NDArray[np.float64], pairs: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
        rows = [Seeds(values=tuple(row), images=images) for row in values.tolist()]
        return compare_methods(rows, pairs).p

    return p_values


def pooled(values: NDArray[np.float64], pairs: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """Student's t-test with one variance for both."""
    first, second = np.array(pairs).T
    return stats.ttest_ind(values[first], values[second], axis=1, equal_var=True).pvalue


def paired(values: NDArray[np.float64], pairs: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """The paired t-test, seed by seed."""
    first, second = np.array(pairs).T
    return stats.ttest_rel(values[first], values[second], axis=1).pvalue


def tables_with_claims(drawn: NDArray[np.float64], test: Test, *, level: float = METHOD_ALPHA) -> int:
    """How many of the (tables, R, seeds) tables claim something."""
    tables, rows, seeds = drawn.shape
    pairs = list(combinations(range(rows), 2))
    everywhere = [(table * rows + a, table * rows + b) for table in range(tables) for a, b in pairs]
    p_values = test(drawn.reshape(tables * rows, seeds), everywhere).reshape(tables, len(pairs))
    return int(are_claiming(p_values, level=level).sum())


def are_claiming(p_TP: NDArray[np.float64], *, level: float) -> NDArray[np.bool_]:
    """(T,) whether any of a table's P tests is below `level` after Holm, without adjusting each.

    Holm's first step is the smallest p times the number of tests: if that is not below, none is.
    """
    tests_T = np.maximum(1, (~np.isnan(p_TP)).sum(axis=1))
    return np.where(np.isnan(p_TP), 1.0, p_TP).min(axis=1) * tests_T < level


def scenarios(rows: int) -> list[Scenario]:
    """How seeds may vary in a table of so many rows."""
    equal, spread = (1.0,) * rows, tuple(np.geomspace(0.3, 3.0, rows).tolist())
    one = (3.0,) + (0.3,) * (rows - 1)
    return [
        Scenario(name="one spread", sds=equal),
        Scenario(name="spreads from 0.3 to 3", sds=spread),
        Scenario(name="one row ten times the others", sds=one),
        Scenario(name="half of the variance shared", sds=equal, shared=0.5),
        Scenario(name="unequal, half shared", sds=spread, shared=0.5),
        Scenario(name="spread of 1 image of 200", sds=(0.5,) * rows, images=200),
        Scenario(name="spread of 0.3 images of 1,000", sds=(0.03,) * rows, images=1000),
    ]


def main() -> None:
    """Print the rates, in per cent of all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=20_000)
    count = parser.parse_args().tables
    print("| rows | seeds vary by | Welch, as used | Welch at 0.05 | pooled | paired |")
    print("|--:|---|--:|--:|--:|--:|")
    for rows in (2, 3, 6, 12):
        for scenario in scenarios(rows):
            drawn = scenario.draw(count, np.random.default_rng(0))
            tests = [(welch_as_used(scenario.images), level) for level in (METHOD_ALPHA, ALPHA)]
            tests += [(pooled, ALPHA), (paired, ALPHA)]
            with np.errstate(all="ignore"):
                rates = [100 * tables_with_claims(drawn, test, level=level) / count for test, level in tests]
            print(
                f"| {rows} | {scenario.name} | " + " | ".join(f"{rate:.2f}" for rate in rates) + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
