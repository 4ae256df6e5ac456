"""How single values are shown."""

from __future__ import annotations

import pytest

from leaderboard.grids import clean, compact, duration, integer, magnitude, percent, power_of_ten, signed


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0s"),
        (9.96, "10.0s"),
        (59.4, "59s"),
        (59.7, "1m00s"),
        (3599.6, "1h00m"),
        (360_000, "100h00m"),
    ],
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (999, "999"), (1000, "1.00k"), (999_499, "999k"), (999_500, "1.00M"), (384_350_100, "384M")],
)
def test_magnitude(count: int, shown: str) -> None:
    assert magnitude(count) == shown


def test_numbers() -> None:
    assert power_of_ten(3.414e15) == "3.41e15"
    assert power_of_ten(9.999e15) == "1.00e16"
    assert signed(1.234) == "+1.23"
    assert signed(-0.004) == "0.00"
    assert percent(100.0) == "100.00"
    assert integer(1234567) == "1,234,567"
    assert (compact(41.25), compact(193.4), compact(3.0)) == ("41.2", "193", "3")


@pytest.mark.parametrize("show", [compact, duration, integer, magnitude, percent, power_of_ten, signed])
def test_missing_is_a_dash(show) -> None:  # type: ignore[no-untyped-def]
    assert show(None) == show(float("nan")) == "-"


def test_clean_drops_what_a_terminal_obeys() -> None:
    assert clean("a\x1b[2Jb\nc\u202ed") == "a[2Jb cd"
