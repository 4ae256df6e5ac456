"""What is said of a measured number beside a reported one, at the edges of the rule."""

from __future__ import annotations

import math

import pytest

from leaderboard.verdicts import allowed_points, standard_error_of, verdict


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("difference", "standard_error", "said"),
    [
        (0.0, None, "reproduced"), (0.3, None, "reproduced"), (0.301, None, "off"),
        (0.3, 0.0, "reproduced"), (0.301, 0.0, "off"),
        # Twice the standard error counts where it is the larger of the two, and not before.
        (0.3, 0.1, "reproduced"), (0.31, 0.15, "off"), (0.31, 0.155, "reproduced"),
        (1.0, 0.5, "reproduced"), (1.001, 0.5, "off"),
    ],
)  # fmt: skip
def test_the_rule(difference: float, standard_error: float | None, said: str, sign: int) -> None:
    assert verdict(50.0 + sign * difference, 50.0, standard_error=standard_error) == said


def test_no_number_with_one_decimal_is_off_by_how_it_is_stored() -> None:
    """For every reported number: 0.3 points away is reproduced, 0.31 points away is not."""
    for tenths in range(10, 990):
        reported = tenths / 10
        for away in (tenths + 3, tenths - 3):
            assert verdict(away / 10, reported, standard_error=None) == "reproduced"
        for hundredths in (10 * tenths + 31, 10 * tenths - 31):
            assert verdict(hundredths / 100, reported, standard_error=None) == "off"


def test_more_seeds_make_the_rule_no_narrower_than_three_tenths() -> None:
    assert allowed_points(None) == allowed_points(0.0) == allowed_points(0.15) == 0.3
    assert allowed_points(0.2) == 0.4


def test_the_standard_error_needs_two_seeds() -> None:
    assert standard_error_of(None, 1) is None
    assert standard_error_of(0.6, 1) is None
    assert standard_error_of(0.6, 4) == 0.3


@pytest.mark.parametrize("numbers", [(math.nan, 1.0), (1.0, math.inf)])
def test_what_is_no_number_gets_no_verdict(numbers: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="not both numbers"):
        verdict(*numbers, standard_error=None)


@pytest.mark.parametrize("standard_error", [-0.1, math.nan, math.inf])
def test_a_standard_error_is_a_number(standard_error: float) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        verdict(1.0, 1.0, standard_error=standard_error)
