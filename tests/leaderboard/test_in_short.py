"""The sentences at the head of a board say what its sections prove, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from leaderboard.grids import Grid
from leaderboard.in_short import in_short
from leaderboard.sections import Block, Section
from leaderboard.view_table import ViewTable
from tests.leaderboard.hand_made import every_verdict

NOTHING = Grid((), ())


def _pairs(name: str, p_of_methods: Sequence[float]) -> Block:
    """Checkpoints are told apart throughout, which must not count for methods."""
    levels = ["methods", "checkpoints"] * len(p_of_methods)
    p = [value for of_methods in p_of_methods for value in (of_methods, 0.0)]
    frame = pd.DataFrame({"level": levels, "p_holm": p})
    return Block(name=f"statistics-{name}", caption="", grid=NOTHING, frame=frame)


def _said(tables: Sequence[ViewTable], *sections: Section) -> list[str]:
    return [sentence.text for sentence in in_short(tables, sections)]


def test_places_are_counted_with_their_verdicts() -> None:
    assert _said([every_verdict(), every_verdict()]) == [
        "6 of the 10 places of the tables are measured; beside the paper's numbers 4 are reproduced and "
        "2 off."
    ]


def test_without_a_measurement_nothing_is_said() -> None:
    table = every_verdict()
    assert in_short([replace(table, frame=table.frame.assign(mean=np.nan))], []) == ()
    assert in_short([], []) == ()


def test_methods_are_told_apart_over_seeds_or_not_spoken_of() -> None:
    blocks = (
        _pairs("table1", [0.001, 0.05, np.nan]),
        _pairs("equal-compute", [0.5]),
        _pairs("table3", [np.nan]),
    )
    *_, said = _said([every_verdict()], Section(name="statistics", title="", blocks=blocks))
    assert said == (
        "Pairs of rows that can be told apart over seeds: Table 1 1 of 2, Equal compute 0 of 1. The others "
        "cannot be."
    )
    *_, said = _said([every_verdict()], Section(name="statistics", title="", blocks=blocks[2:]))
    assert said.startswith("Nothing is said about methods: ")


def test_claims_are_counted_by_verdict() -> None:
    frame = pd.DataFrame({"verdict": ["undecided", "supported", "undecided"]})
    block = Block(name="claims", caption="", grid=NOTHING, frame=frame)
    *_, said = _said([every_verdict()], Section(name="claims", title="", blocks=(block,)))
    assert said == "Of the paper's 3 claims, judged on this protocol's data: 1 supported, 2 undecided."


def test_what_is_unfair_is_an_alarm() -> None:
    for alerts, start in (((), "The rows of each table differ only in"), (("x",), "1 row of a table is")):
        *_, said = in_short([every_verdict()], [Section(name="fairness", title="", alerts=alerts)])
        assert said.text.startswith(start)
        assert (said.is_alarm, said.anchor) == (bool(alerts), "fairness")
