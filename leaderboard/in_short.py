"""What the whole board comes to, in a few sentences that say no more than its sections prove."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from leaderboard.captions import view_label
from leaderboard.method_tests import METHOD_ALPHA
from leaderboard.sections import Block, Section
from leaderboard.view_table import ViewTable

TITLE = "In short"
_PAIRS = "statistics-"


class Sentence(NamedTuple):
    """`anchor` is the place on the page that holds the proof; `is_alarm` if nobody may overlook it."""

    text: str
    anchor: str
    is_alarm: bool = False


def in_short(tables: Sequence[ViewTable], sections: Sequence[Section]) -> tuple[Sentence, ...]:
    """The answers first: what is measured, told apart, claimed, and fair. Empty if nothing is measured."""
    if not any(table.frame["mean"].notna().any() for table in tables):
        return ()
    named = {section.name: section for section in sections}
    sentences = [_measured(tables)]
    for name, say in (("statistics", _methods), ("claims", _claims), ("fairness", _fairness)):
        if name in named:
            sentences.extend(say(named[name]))
    return tuple(sentences)


def _measured(tables: Sequence[ViewTable]) -> Sentence:
    ours = [table.frame[table.frame["is_ours"].astype(bool)] for table in tables]
    measured = sum(int(frame["mean"].notna().sum()) for frame in ours)
    text = f"{measured} of the {sum(map(len, ours))} places of the tables are measured"
    counts = {
        verdict: sum(int((frame["verdict"] == verdict).sum()) for frame in ours)
        for verdict in ("reproduced", "off")
    }
    if any(counts.values()):
        text += f"; beside the paper's numbers {counts['reproduced']} are reproduced and {counts['off']} off"
    return Sentence(f"{text}.", "tables")


def _methods(section: Section) -> Iterator[Sentence]:
    """How many pairs of rows are told apart over seeds, a table at a time: tables share rows."""
    told = [
        f"{view_label(block.name.removeprefix(_PAIRS))} {count} of {tested}"
        for block in section.blocks
        if block.name.startswith(_PAIRS)
        for count, tested in [_told(block)]
        if tested
    ]
    if told:
        text = f"Pairs of rows that can be told apart over seeds: {', '.join(told)}. The others cannot be."
    else:
        text = (
            "Nothing is said about methods: no two rows that may be compared have three seeds each in a "
            "column."
        )
    yield Sentence(text, section.name)


def _told(block: Block) -> tuple[int, int]:
    frame = block.frame
    of_methods = frame.loc[frame["level"] == "methods", "p_holm"].dropna() if len(frame) else ()
    return sum(p < METHOD_ALPHA for p in of_methods), len(of_methods)


def _claims(section: Section) -> Iterator[Sentence]:
    verdicts = list(section.blocks[0].frame["verdict"])
    counts = (
        f"{verdicts.count(one)} {one}"
        for one in ("supported", "contradicted", "undecided")
        if one in verdicts
    )
    text = f"Of the paper's {len(verdicts)} claims, judged on this protocol's data: {', '.join(counts)}."
    yield Sentence(text, section.name)


def _fairness(section: Section) -> Iterator[Sentence]:
    if section.alerts:
        rows = (
            "1 row of a table is" if len(section.alerts) == 1 else f"{len(section.alerts)} rows of tables are"
        )
        text = f"{rows} compared with no other row: more differs than the table declares."
    else:
        text = (
            "The rows of each table differ only in what it declares, and in what no protocol holds equal "
            "(hardware, versions)."
        )
    yield Sentence(text, section.name, is_alarm=bool(section.alerts))
