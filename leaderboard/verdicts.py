"""What is said of a measured number beside a reported one."""

from __future__ import annotations

import math
from typing import Literal

Verdict = Literal["reproduced", "off", "missing", "modified", "stale", ""]
TOLERANCE_POINTS = 0.3
STANDARD_ERRORS = 2.0
_DECIMALS = 9  # 55.6 - 55.3 is a little more than 0.3 in floating point


def verdict(mean: float, reported: float, *, standard_error: float | None) -> Verdict:
    """`reproduced` if the two differ by at most max(0.3 points, twice the standard error), else `off`.

    All in per cent. `standard_error` is that of the measured mean over seeds; None, of one seed, leaves
    the 0.3 points. Raises ValueError for what is no number, or for a negative standard error.
    """
    allowed = allowed_points(standard_error)
    if not math.isfinite(mean) or not math.isfinite(reported):
        raise ValueError(f"measured {mean} and reported {reported} are not both numbers")
    return "reproduced" if round(abs(mean - reported) - allowed, _DECIMALS) <= 0 else "off"


def allowed_points(standard_error: float | None) -> float:
    """How far a measured mean with that standard error may lie from the reported number."""
    if standard_error is None:
        return TOLERANCE_POINTS
    if not standard_error >= 0 or math.isinf(standard_error):
        raise ValueError(f"a standard error is 0 or more, got {standard_error}")
    return max(TOLERANCE_POINTS, STANDARD_ERRORS * standard_error)


def standard_error_of(sd: float | None, seeds: int) -> float | None:
    """The standard error of a mean over `seeds`, from their sample standard deviation; None for one seed."""
    return None if sd is None or seeds < 2 else sd / math.sqrt(seeds)
