"""The fairness proof as a board shows it: per table what its rows differ in, in red what they must not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from leaderboard.fairness import Kind, TableProof, prove
from leaderboard.fairness_record import NOT_SET
from leaderboard.grids import MISSING, Column, Grid, clean
from leaderboard.sections import Block, Section
from leaderboard.tables import Board
from leaderboard.view_table import ViewTable

NAME = "fairness"
# A row that is wrong in one value is seldom wrong in one alone; the block below has them all.
REASONS_PER_ALERT = 3
ROWS_BY_NAME = 3
# Room for two commits; what is longer stands in full in the block's CSV.
LONGEST_VALUE = 90
KIND_NAMES: Mapping[Kind, str] = {
    "equal": "equal",
    "declared": "declared",
    "shown": "not held",
    "unfair": "UNFAIR",
}
NOTES = (
    "Compared is everything that was resolved for a row: every value of every slice of its evaluation, its "
    "pre-training and its tokens, the images that were read and measured, code of method and tokenizer. "
    "Values are read from the records, and each slice's digest is taken of them anew.",
    "Declared: what a table says that its rows differ in: the method with its own hyperparameters, the "
    "tokenizer with its own values, and values that a row's name says were tried. Not held: what no protocol "
    "fixes (runtime, versions, hardware, commit, seeds); it may move numbers, and rows that differ in it are "
    "compared all the same. Unfair: anything else; such rows are in no comparison of their table.",
)


class _Line(NamedTuple):
    """A field over all columns in which rows do not contradict themselves."""

    field: str
    part: str
    kind: Kind
    values: dict[int, str]
    columns: list[str]


def fairness_section(
    tables: Iterable[ViewTable], board: Board, *, proofs: Sequence[TableProof] | None = None
) -> Section | None:
    """What the rows of each table differ in; None where nothing was measured.

    `proofs` are what `leaderboard.fairness.prove` gives for the same tables and board, if known already.
    """
    proofs = prove(tables, board) if proofs is None else proofs
    if not proofs:
        return None
    return Section(
        name=NAME,
        title="Fairness: what the rows of each table differ in",
        alerts=tuple(alert for proof in proofs for alert in _alerts(proof)),
        blocks=tuple(_block(proof) for proof in proofs),
        notes=NOTES,
    )


def differ_only_in(proof: TableProof) -> str:
    """The sentence of one table: in what its rows differ, or that there is nothing to compare."""
    compared = sorted({row for column in proof.columns for row in column.rows} - set(proof.left_out))
    if len(compared) < 2:
        return f"{_count(len(compared), 'row')}: there is nothing to compare."
    found: dict[str, set[str]] = {}
    for column in proof.columns:
        for line in column.lines:
            if line.kind == "declared" and len({value for row, value in line.values if row in compared}) > 1:
                found.setdefault(line.part, set()).add(line.field.rpartition(".")[2])
    names = []
    for part in sorted(found, key=lambda one: _PARTS.index(one) if one in _PARTS else len(_PARTS)):
        fields = sorted(found[part])
        own = [clean(name) for name in fields if name not in (part, "digest", "source_digest", "teacher")]
        listed = f" ({', '.join(own)})" if own else ""
        names.append(
            "its declared hyperparameters" + listed
            if part == "hyperparameters"
            else clean(part) + ("" if part == "method" else listed)
        )
    differences = ", ".join(names) or "nothing but what no protocol holds"
    return f"These {len(compared)} rows differ only in: {differences}."


def _alerts(proof: TableProof) -> list[str]:
    alerts = []
    for row, reasons in proof.left_out.items():
        more = len(reasons) - REASONS_PER_ALERT
        stated = "; ".join(reasons[:REASONS_PER_ALERT]) + (f"; and {more} more" if more > 0 else "")
        alerts.append(clean(f"{proof.title}: {proof.labels[row]} is compared with no other row: {stated}."))
    return alerts


def _block(proof: TableProof) -> Block:
    lines = _over_columns(proof)
    fields = [line.field for line in lines if line.kind != "equal"]
    rows: list[tuple[str, ...]] = []
    red: list[int] = []
    for line in sorted(lines, key=lambda one: (_ORDER.index(one.kind), "." in one.field, one.field)):
        is_noise = line.kind == "declared" and line.field.endswith("digest")
        if line.kind == "equal" or is_noise or (line.kind == "shown" and len(set(line.values.values())) < 2):
            continue
        name = line.field if fields.count(line.field) == 1 else f"{line.field} [{'; '.join(line.columns)}]"
        if line.kind == "unfair":
            red.append(len(rows))
        rows.append((clean(name), KIND_NAMES[line.kind], *_agreeing(line.values, proof.labels)))
    equal: dict[str, set[str]] = {}
    for line in lines:
        if line.kind == "equal":
            # `data` of the evaluation and of the pre-training on one line; names and counts on the last.
            part = line.part.partition(" (")[0]
            equal.setdefault(NAMES_AND_COUNTS if part in _SINGLE else part, set()).add(line.field)
    for part, names in sorted(equal.items(), key=lambda one: one[0] == NAMES_AND_COUNTS):
        rows.append((clean(f"{part}: {_count(len(names), 'value')}"), KIND_NAMES["equal"], "all", MISSING))
    held = sum(map(len, equal.values()))
    columns = (
        Column("field", False), Column("kind", False), Column("rows that agree", False),
        Column("rows that differ", False),
    )  # fmt: skip
    return Block(
        name=f"{NAME}-{proof.name}",
        caption=clean(f"{proof.title}. {differ_only_in(proof)}"),
        grid=Grid(columns=columns, rows=tuple(rows)),
        frame=_frame(proof, lines),
        notes=(f"{_count(held, 'value')} held equal and found equal in every row that has it.",),
        red=frozenset((row, column) for row in red for column in range(len(columns))),
    )


NAMES_AND_COUNTS = "names and counts"
_PARTS = ("method", "hyperparameters", "tokenizer")
_SINGLE = ("method", "protocol", "trunk", "stage", "stages", "metrics")
_ORDER: tuple[Kind, ...] = ("unfair", "declared", "shown", "equal")


def _over_columns(proof: TableProof) -> list[_Line]:
    """The columns' lines, those of one field joined unless a row has another value in another column."""
    joined: dict[tuple[str, Kind], list[_Line]] = {}
    for column in proof.columns:
        for line in column.lines:
            alike = joined.setdefault((line.field, line.kind), [])
            values = dict(line.values)
            for one in alike:
                if all(one.values.get(row, value) == value for row, value in line.values):
                    one.values.update(values)
                    one.columns.append(column.label)
                    break
            else:
                alike.append(_Line(line.field, line.part, line.kind, values, [column.label]))
    return [line for lines in joined.values() for line in lines]


def _agreeing(values: Mapping[int, str], labels: Mapping[int, str]) -> tuple[str, str]:
    """The value that most rows have, and the others', each with its rows."""
    by_value: dict[str, list[int]] = {}
    for row, value in values.items():
        by_value.setdefault(value, []).append(row)
    # What most rows do not have is no value that they agree on.
    most = max(by_value, key=lambda value: (value != NOT_SET, len(by_value[value])))
    others = [_with_rows(value, by_value[value], labels) for value in by_value if value != most]
    return _with_rows(most, by_value[most], labels), "; ".join(others) or MISSING


def _with_rows(value: str, rows: Sequence[int], labels: Mapping[int, str]) -> str:
    named = " / ".join(labels[row] for row in rows) if len(rows) <= ROWS_BY_NAME else f"{len(rows)} rows"
    shown = value if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 3]}..."
    return clean(f"{shown}: {named}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _frame(proof: TableProof, lines: Sequence[_Line]) -> pd.DataFrame:
    """One line per field and value: every value that was compared, and the rows that have it."""
    columns = ["table", "field", "kind", "value", "rows", "columns"]
    found = []
    for line in lines:
        by_value: dict[str, list[str]] = {}
        for row, value in line.values.items():
            by_value.setdefault(value, []).append(proof.labels[row])
        for value, rows in by_value.items():
            found.append((proof.name, line.field, line.kind, value, "; ".join(rows), "; ".join(line.columns)))
    return pd.DataFrame(found, columns=columns)
