"""How far one order of methods is that of another: Kendall's tau, and the pairs that change sides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Orders of the means at one setting against those at OWN, over the methods measured at both.

    `tau` is Kendall's (tau-b), None if it is not defined; `flipped` are the pairs that change sides.
    """

    methods: tuple[str, ...]
    tau: float | None
    flipped: tuple[tuple[str, str], ...]
    pairs: tuple[tuple[str, str], ...]


def stability(own: Mapping[str, float], other: Mapping[str, float]) -> Stability:
    """How far the order of `other`'s means is that of `own`'s, over the methods in both."""
    # Late: scipy.stats takes a second to load.
    from scipy.stats import kendalltau

    methods = tuple(method for method in own if method in other)
    tau = math.nan
    if len(methods) > 1:
        tau = float(kendalltau([own[one] for one in methods], [other[one] for one in methods]).statistic)
    pairs = tuple(combinations(methods, 2))
    flipped = tuple((a, b) for a, b in pairs if (own[a] - own[b]) * (other[a] - other[b]) < 0)
    return Stability(methods=methods, tau=None if math.isnan(tau) else tau, flipped=flipped, pairs=pairs)
