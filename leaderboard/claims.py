"""The paper's claims, each with a verdict from the records: supported, contradicted or undecided.

Of methods alone: every difference is Welch's t-test over at least three seeds of each row, adjusted after
Holm over the differences that one claim asks for. What is not measured, has fewer seeds or is not told
apart speaks neither for a claim nor against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from leaderboard.claim_rules import EQUIVALENCE_MARGIN, NEARLY_ALL, RULES, Difference, PlaceKey, Rule
from leaderboard.comparisons import measured_seeds, seeds_of, shown_p
from leaderboard.fairness import unlike
from leaderboard.fairness_profile import ProfileReader
from leaderboard.grids import MISSING, Column, Grid, clean
from leaderboard.method_tests import METHOD_ALPHA, Seeds, compare_methods, p_above, p_equivalent
from leaderboard.paper import Claim, paper
from leaderboard.runs import Run
from leaderboard.sections import Block, Section
from leaderboard.statistics import holm
from leaderboard.view_table import ViewTable
from protocols.schema import Protocol

Verdict = Literal["supported", "contradicted", "undecided"]
# A difference of two rows speaks for the claim, against it, or says why it does neither.
FOR, AGAINST, NOT_TOLD = "for", "against", "not told apart"
NOT_MEASURED, FEW_SEEDS, LEFT_OUT = "not measured", "fewer than three seeds", "not proven equal in all else"
_Table = dict[PlaceKey, tuple[str, str, Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One difference that a claim asks for: above - below in points, NaN where nothing was measured.

    `p_holm` tests that it is `by`; for an equivalence, that it is outside of the margin, or, where it
    speaks against, that it is within.
    """

    claim: str
    above: str
    below: str
    column_label: str
    by: float
    difference: float
    low: float
    high: float
    p_holm: float
    seeds: int
    says: str
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class JudgedClaim:
    """A claim, its rule in words, its verdict, and what led to it. `reason` says why it is undecided."""

    id: str
    text: str
    rule: str
    verdict: Verdict
    reason: str
    evidence: tuple[Evidence, ...]

    def count(self, says: str) -> int:
        """How many of the differences say so."""
        return sum(one.says == says for one in self.evidence)


def claims_section(
    tables: Sequence[ViewTable],
    runs: Sequence[Run],
    protocol: Protocol,
    *,
    left_out: Collection[tuple[str, int]] = (),
) -> Section | None:
    """The section "claims"; None if nothing was measured in any table."""
    if not any(table.frame["mean"].notna().any() for table in tables):
        return None
    judged = judge_claims(tables, runs, protocol, left_out=left_out)
    columns = ("the paper says", "verdict", "for", "against", "open")
    grid = Grid(
        tuple(Column(name, is_number=place > 1) for place, name in enumerate(columns)),
        tuple(_claim_line(one) for one in judged),
    )
    frame = pd.DataFrame(
        [
            {"claim": one.id, "text": one.text, "verdict": one.verdict, "for": one.count(FOR),
             "against": one.count(AGAINST), "asked": len(one.evidence), "reason": one.reason,
             "rule": one.rule}
            for one in judged
        ]
    )  # fmt: skip
    blocks = [Block(name="claims", caption="", grid=grid, frame=frame, notes=tuple(map(_note, judged)))]
    evidence = [line for one in judged for line in one.evidence if line.seeds]
    if evidence:
        blocks.append(_evidence_block(evidence))
    return Section(
        name="claims",
        title="The paper's claims",
        blocks=tuple(blocks),
        notes=(
            f"Sentences of {paper().source}, judged from the records alone, and so on the data, trunks and "
            f"recipes of protocol {protocol.name}; on others a verdict may be another.",
            "They are judged about methods alone: each difference is Welch's t-test over at least three "
            "seeds of each row, adjusted after Holm over the differences of its claim. A difference that is "
            "not measured, has too few seeds, is not told apart or is not proven equal in all else is open: "
            "it speaks neither for the claim nor against it.",
            "Supported: the stated share of all differences, open ones included, speaks for the claim. "
            "Contradicted: so many speak against it that the share cannot be reached.",
        ),
    )


def judge_claims(
    tables: Sequence[ViewTable],
    runs: Sequence[Run],
    protocol: Protocol,
    *,
    left_out: Collection[tuple[str, int]] = (),
    claims: Sequence[Claim] | None = None,
) -> tuple[JudgedClaim, ...]:
    """Every claim of the paper, in its order. `runs` are the board's, behind the tables' `cell_ids`.

    `left_out` are (table, row) of which it is not proven that all else was equal.
    """
    by_cell = {run.record.cell_id: run for run in runs}
    places: dict[str, _Table] = {}
    for table in tables:
        here = places.setdefault(table.name, {})
        for line in table.frame[table.frame["is_ours"].astype(bool)].to_dict(orient="records"):
            key = PlaceKey(*(str(line[name]) for name in PlaceKey._fields))
            more = {"table": table.name, "is_left_out": (table.name, int(line["row"])) in left_out}
            here[key] = (str(line["row_label"]), str(line["column_label"]), line | more)
    return tuple(
        _judged(claim, RULES[claim.id], places, by_cell, protocol)
        for claim in (paper().claims if claims is None else claims)
    )


def _judged(
    claim: Claim, rule: Rule, tables: Mapping[str, _Table], by_cell: Mapping[str, Run], protocol: Protocol
) -> JudgedClaim:
    lacking = [name for name in rule.tokenizers if name not in protocol.names("tokenizers")]
    lacking += [name for name in rule.trunks if name not in protocol.trunks]
    lacking += [name for name in claim.views if name not in tables]
    places: _Table = {}
    for name in claim.views:
        places |= {key: place for key, place in tables.get(name, {}).items() if key not in places}
    asked = [] if lacking else rule.differences(places, protocol)
    evidence = _evidence(claim.id, rule, asked, places, by_cell)
    verdict = _verdict(rule, evidence)
    if lacking:
        reason = f"not of this protocol, which has no {', '.join(lacking)}"
    elif not asked:
        reason = "not of this protocol, whose tables have no such rows side by side"
    else:
        open_ = Counter(one.says for one in evidence if one.says not in (FOR, AGAINST))
        reason = (
            ", ".join(f"{count} {says}" for says, count in open_.items()) if verdict == "undecided" else ""
        )
    return JudgedClaim(
        id=claim.id, text=claim.text, rule=rule.words, verdict=verdict, reason=reason, evidence=evidence
    )


def _evidence(
    claim: str, rule: Rule, asked: Sequence[Difference], places: _Table, by_cell: Mapping[str, Run]
) -> tuple[Evidence, ...]:
    found: dict[PlaceKey, Seeds | None] = {}
    for key in dict.fromkeys(key for one in asked for key in (one.above, one.below)):
        runs = measured_seeds(places[key][2], by_cell)
        found[key] = seeds_of(runs, key.metric) if runs else None
    reader = ProfileReader()
    lines: list[Evidence] = []
    tested: list[tuple[int, Seeds, Seeds]] = []
    for one in asked:
        (above, column, first), (below, _, second) = places[one.above], places[one.below]
        a, b = found[one.above], found[one.below]
        says = NOT_TOLD
        if a is None or b is None:
            says = NOT_MEASURED
        elif first["is_left_out"] or second["is_left_out"] or _is_unproven(first, second, by_cell, reader):
            says = LEFT_OUT
        elif not (a.are_enough and b.are_enough):
            says = FEW_SEEDS
        else:
            tested.append((len(lines), a, b))
        lines.append(
            Evidence(
                claim=claim,
                above=above,
                below=below,
                column_label=column,
                by=one.by,
                difference=float(np.mean(a.values) - np.mean(b.values)) if a and b else float("nan"),
                low=float("nan"),
                high=float("nan"),
                p_holm=float("nan"),
                seeds=min(len(a.values), len(b.values)) if a and b else 0,
                says=says,
                group=one.group,
            )
        )
    test = _equivalence if rule.quantifier == "equivalent" else _differences
    for place, more in test(lines, tested).items():
        lines[place] = Evidence(**asdict(lines[place]) | more)
    return tuple(lines)


def _is_unproven(
    first: Mapping[str, Any], second: Mapping[str, Any], by_cell: Mapping[str, Run], reader: ProfileReader
) -> bool:
    """True for places of two tables that differ in more than is declared: each table is proven alone."""
    if first["table"] == second["table"]:
        return False
    rows = [list(measured_seeds(place, by_cell).values()) for place in (first, second)]
    return bool(unlike(rows, metric=str(first["metric"]), reader=reader))


def _differences(
    lines: Sequence[Evidence], tested: Sequence[tuple[int, Seeds, Seeds]]
) -> dict[int, dict[str, Any]]:
    """Two-sided tests that each difference is its `by`."""
    if not tested:
        return {}
    rows: list[Seeds] = []
    for place, a, b in tested:
        # Less `by`, the row above has to lie above still.
        lower = tuple(value - lines[place].by for value in a.values)
        rows += [Seeds(values=lower, images=a.images), b]
    tests = compare_methods(rows, [(2 * place, 2 * place + 1) for place in range(len(tested))])
    more: dict[int, dict[str, Any]] = {}
    for index, ((place, *_), p) in enumerate(zip(tested, holm(tests.p), strict=True)):
        by = lines[place].by
        told = FOR if tests.difference[index] > 0 else AGAINST
        more[place] = {
            "difference": float(tests.difference[index]) + by,
            "low": float(tests.low[index]) + by,
            "high": float(tests.high[index]) + by,
            "p_holm": float(p),
            "says": told if p < METHOD_ALPHA else NOT_TOLD,
        }
    return more


def _equivalence(
    lines: Sequence[Evidence], tested: Sequence[tuple[int, Seeds, Seeds]]
) -> dict[int, dict[str, Any]]:
    """Tests that each difference is within the margin, and tests that it is outside."""
    margin = EQUIVALENCE_MARGIN
    within = holm([p_equivalent(a, b, margin=margin) for _, a, b in tested])
    # Either side may be the one: two one-sided tests, each at half the level.
    outside = holm(
        [min(1.0, 2 * min(p_above(a, b, by=margin), p_above(b, a, by=margin))) for _, a, b in tested]
    )
    more: dict[int, dict[str, Any]] = {}
    for index, (place, a, b) in enumerate(tested):
        interval = compare_methods([a, b], [(0, 1)])
        says = FOR if within[index] < METHOD_ALPHA else AGAINST if outside[index] < METHOD_ALPHA else NOT_TOLD
        more[place] = {
            "difference": float(interval.difference[0]),
            "low": float(interval.low[0]),
            "high": float(interval.high[0]),
            "p_holm": float(outside[index] if says == AGAINST else within[index]),
            "says": says,
        }
    return more


def _verdict(rule: Rule, evidence: Sequence[Evidence]) -> Verdict:
    """Of all groups together: each must be supported, and one that is contradicted is enough."""
    groups: dict[str, Counter[str]] = {}
    for one in evidence:
        groups.setdefault(one.group, Counter())[one.says] += 1
    verdicts = {_verdict_of(rule, said) for said in groups.values()}
    if "contradicted" in verdicts:
        return "contradicted"
    return "supported" if verdicts == {"supported"} else "undecided"


def _verdict_of(rule: Rule, said: Counter[str]) -> Verdict:
    asked = said.total()
    if rule.quantifier == "most":
        is_shown, is_ruled_out = 2 * said[FOR] > asked, 2 * said[AGAINST] >= asked
    elif rule.quantifier == "nearly all":
        is_shown, is_ruled_out = (
            said[FOR] >= NEARLY_ALL * asked,
            asked - said[AGAINST] < NEARLY_ALL * asked,
        )
    else:
        is_shown, is_ruled_out = said[FOR] == asked, said[AGAINST] > 0
    return "supported" if is_shown else "contradicted" if is_ruled_out else "undecided"


def _claim_line(one: JudgedClaim) -> tuple[str, ...]:
    told = one.count(FOR) + one.count(AGAINST)
    counts = (one.count(FOR), one.count(AGAINST), len(one.evidence) - told)
    shown = tuple(map(str, counts)) if one.evidence else (MISSING,) * 3
    return (clean(one.text), one.verdict, *shown)


def _note(one: JudgedClaim) -> str:
    reason = f" ({one.reason})" if one.reason else ""
    return f"{one.text} ({one.id}): {one.verdict}{reason}. The rule: {one.rule}."


def _evidence_block(evidence: Sequence[Evidence]) -> Block:
    """The numbers: one line per difference that was measured."""
    columns = ("claim", "row less row", "column", "points", "95 % interval", "p (Holm)", "speaks")
    lines = tuple(
        (
            one.claim,
            f"{clean(one.above)} less {clean(one.below)}"
            + (f", against {one.by:g} points" if one.by else ""),
            clean(one.column_label),
            f"{one.difference:+.2f}",
            MISSING if np.isnan(one.low) else f"{one.low:+.2f} to {one.high:+.2f}",
            MISSING if np.isnan(one.p_holm) else shown_p(one.p_holm),
            one.says,
        )
        for one in evidence
    )
    return Block(
        name="claim-evidence",
        caption="The differences behind the verdicts",
        grid=Grid(tuple(Column(name, is_number=2 < place < 6) for place, name in enumerate(columns)), lines),
        frame=pd.DataFrame([asdict(one) for one in evidence]),
    )
