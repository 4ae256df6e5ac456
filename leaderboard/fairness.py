"""The fairness proof: the field-by-field difference of everything that was resolved for the rows of a table.

In each column the rows must agree in every value that is held equal; what may differ is what the table
declares: the method with its own hyperparameters and code, the tokenizer with its own values, weights and
code, and the values that a row's name says were tried. A row that differs in anything else, that no record
proves, or whose record contradicts itself, is left out of every comparison of the table.

Which of two unlike rows is the odd one? Cells that are not of the protocol's board are left out first. Of
the rest the largest set of rows that are all alike stays; of equal sets, the one that begins highest up in
the table. `leaderboard.fairness_record` says what becomes of each field of a record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from leaderboard.fairness_profile import Profile, ProfileReader
from leaderboard.fairness_record import (
    METHOD,
    NOT_SET,
    TOKENIZER,
    Field,
    Scope,
    Values,
    differing,
    shown_field,
)
from leaderboard.runs import Run
from leaderboard.tables import Board
from leaderboard.view_table import ViewTable

Kind = Literal["equal", "declared", "shown", "unfair"]
NONE = "none"


class FieldLine(NamedTuple):
    """One field of one column: its value in every row that has it. `part` names what the field belongs to."""

    field: str
    part: str
    kind: Kind
    values: tuple[tuple[int, str], ...]


@dataclass(frozen=True, kw_only=True)
class ColumnProof:
    """One column of a table: the rows that were measured in it, and every field that they were held to.

    `left_out` says of rows why they are compared with none of the others.
    """

    label: str
    rows: tuple[int, ...]
    lines: tuple[FieldLine, ...]
    left_out: Mapping[int, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class TableProof:
    """One table, column by column. `labels` are its rows' as a reader sees them."""

    name: str
    title: str
    labels: Mapping[int, str]
    columns: tuple[ColumnProof, ...]

    @property
    def left_out(self) -> dict[int, tuple[str, ...]]:
        """Row -> why it is in no comparison of this table, whichever column the reasons are from."""
        reasons: dict[int, dict[str, None]] = {}
        for column in self.columns:
            for row, stated in column.left_out.items():
                reasons.setdefault(row, {}).update(dict.fromkeys(stated))
        return {row: tuple(reasons[row]) for row in sorted(reasons)}


def prove(tables: Iterable[ViewTable], board: Board) -> tuple[TableProof, ...]:
    """The proofs of the tables in which something was measured, from the board's own records."""
    runs = {run.record.cell_id: run for run in board.cells}
    reader = ProfileReader()
    proofs = (_prove(table, runs, reader) for table in tables)
    return tuple(proof for proof in proofs if proof.columns)


def left_out(proofs: Iterable[TableProof]) -> frozenset[tuple[str, int]]:
    """(table, row) of every row that must not be compared with the others of its table."""
    return frozenset((proof.name, row) for proof in proofs for row in proof.left_out)


def unlike(
    rows: Sequence[Sequence[Run]], *, metric: str = "top1_percent", reader: ProfileReader | None = None
) -> frozenset[int]:
    """The indices of the rows that must not be compared with the others. A row is its runs, one per seed.

    A `reader` that is given again need not read again what it has read.
    """
    reader = reader or ProfileReader()
    profiles = {index: reader.profile(_by_seed(runs), metric) for index, runs in enumerate(rows) if runs}
    return frozenset(_left_out(profiles))


def _prove(table: ViewTable, runs: Mapping[str, Run], reader: ProfileReader) -> TableProof:
    ours = table.frame[table.frame["is_ours"].astype(bool) & (table.frame["cell_ids"] != "")]
    columns = []
    # Lines as tuples: a frame hands out a Series per line a hundred times slower.
    for _, places in ours.groupby("column", sort=True):
        columns.append(_prove_column(list(places.itertuples(index=False)), runs, reader))
    labels = dict(zip(ours["row"].astype(int), ours["row_label"].astype(str), strict=True))
    return TableProof(name=table.name, title=table.title, labels=labels, columns=tuple(columns))


def _prove_column(places: Sequence[Any], runs: Mapping[str, Run], reader: ProfileReader) -> ColumnProof:
    profiles: dict[int, Profile] = {}
    unknown: dict[int, tuple[str, ...]] = {}
    for place in places:
        cell_ids = place.cell_ids.split("; ")
        missing = [cell_id for cell_id in cell_ids if cell_id not in runs]
        if missing:
            unknown[int(place.row)] = tuple(f"no record of {cell_id} was read" for cell_id in missing)
        else:
            found = _by_seed([runs[cell_id] for cell_id in cell_ids])
            profiles[int(place.row)] = reader.profile(found, place.metric)
    out = {**unknown, **_left_out(profiles)}
    return ColumnProof(
        label=str(places[0].column_label),
        rows=tuple(sorted([*profiles, *unknown])),
        lines=tuple(_lines(profiles)),
        left_out={row: out[row] for row in sorted(out)},
    )


def _by_seed(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: -1 if run.record.seed is None else run.record.seed)


def _left_out(profiles: Mapping[int, Profile]) -> dict[int, tuple[str, ...]]:
    """Row -> why it is not like the others; rows whose own records prove nothing have no vote."""
    out = {row: profile.problems for row, profile in profiles.items() if profile.problems}
    voting = {row: profile for row, profile in profiles.items() if row not in out}
    alike = _largest_alike(voting)
    for row, profile in voting.items():
        if row not in alike:
            differences = {
                at: f"{shown_field(at)} is {profile.value(at)}, in the others {voting[other].value(at)}"
                for other in alike
                for at in _unlike(profile, voting[other])
            }
            out[row] = tuple(differences.values())
    return out


def _unlike(a: Profile, b: Profile) -> list[Field]:
    """The held fields in which two rows differ, but for what their names say was tried."""
    return [at for at in differing(a.held, b.held) if at not in a.tried and at not in b.tried]


def _largest_alike(profiles: Mapping[int, Profile]) -> tuple[int, ...]:
    """The largest set of rows of which each is like each, the highest up among equals."""
    if _are_all_alike(list(profiles.values())):
        return tuple(profiles)
    likes = {
        row: {other for other in profiles if not _unlike(profiles[row], profiles[other])} for row in profiles
    }
    best: tuple[int, ...] = ()
    for row in profiles:
        # The most like first: a row that has little in common with any would else shut others out.
        chosen: list[int] = [row]
        for other in sorted(likes[row] - {row}, key=lambda one: (-len(likes[one] & likes[row]), one)):
            if all(other in likes[one] for one in chosen):
                chosen.append(other)
        if len(chosen) > len(best):
            best = tuple(chosen)
    return best


def _are_all_alike(profiles: Collection[Profile]) -> bool:
    """Whether every held field has one value among the rows that do not try it; in time linear in rows."""
    tried = {at for profile in profiles for at in profile.tried}
    known: dict[Scope, Values] = {}
    for profile in profiles:
        for scope, values in profile.held.items():
            here = {at.path for at in tried if at.scope == scope}
            own = {path: value for path, value in values.items() if path not in here} if here else values
            first = known.setdefault(scope, own)
            if first is not own and first != own:
                return False
    return all(
        len({profile.held[at.scope].get(at.path) for profile in profiles if _is_bound(profile, at)}) < 2
        for at in tried
    )


def _is_bound(profile: Profile, at: Field) -> bool:
    """Whether the row has to have the value that the others have."""
    return at.scope in profile.held and at not in profile.tried


def _lines(profiles: Mapping[int, Profile]) -> Iterator[FieldLine]:
    """Every field of a column: names first, then what is held, then what is only shown."""
    for name in (METHOD, TOKENIZER):
        named = {row: getattr(profile.key, name) or NONE for row, profile in profiles.items()}
        yield _line(name, name, named, is_unfair=False, kind="declared")
    fields = dict.fromkeys(
        Field(scope, path)
        for profile in profiles.values()
        for scope, values in profile.held.items()
        for path in values
    )
    together: dict[str, list[Field]] = {}
    for at in fields:
        together.setdefault(_common_name(at), []).append(at)
    for name, places in together.items():
        values: dict[int, str] = {}
        is_unfair, is_tried = False, False
        for at in places:
            having = {row: profile for row, profile in profiles.items() if at.scope in profile.held}
            values |= {row: profile.value(at) for row, profile in having.items()}
            bound = {profile.value(at) for profile in having.values() if _is_bound(profile, at)}
            is_unfair |= len(bound) > 1
            is_tried |= any(at in profile.tried for profile in having.values())
        if places[0].scope.kind in (METHOD, TOKENIZER):
            # Another method has no such value; a trunk that was never pre-trained has no tokenizer at all.
            kind = places[0].scope.kind
            values = {
                row: NOT_SET for row, profile in profiles.items() if getattr(profile.key, kind)
            } | values
            is_tried = True
        yield _line(
            name,
            name.partition(".")[0] + _stage_of(places[0]),
            values,
            is_unfair=is_unfair,
            kind="declared" if is_tried else "unfair",
        )
    yield _line("seeds", "seeds", {row: _seeds(profile) for row, profile in profiles.items()}, kind="shown")
    shown = dict.fromkeys(
        Field(scope, path)
        for profile in profiles.values()
        for scope, several in profile.shown.items()
        for values in several
        for path in values
    )
    for at in shown:
        stated = {row: profile.shown_at(at) for row, profile in profiles.items() if at.scope in profile.shown}
        yield _line(shown_field(at), at.scope.kind, stated, kind="shown")


def _line(
    name: str, part: str, values: Mapping[int, str], *, kind: Kind, is_unfair: bool = False
) -> FieldLine:
    """`kind` is what a difference would be, unless it is unfair; without one a held field is equal."""
    if is_unfair:
        kind = "unfair"
    elif kind != "shown" and len(set(values.values())) < 2:
        kind = "equal"
    return FieldLine(name, part, kind, tuple(sorted(values.items())))


def _common_name(at: Field) -> str:
    """One name for what every tokenizer has: `tokenizer.codebook_size`, whatever the tokenizer is called."""
    if at.scope.kind == TOKENIZER:
        return f"{TOKENIZER}.{at.path.partition('.')[2]}"
    return shown_field(at)


def _stage_of(at: Field) -> str:
    return shown_field(at).removeprefix(at.path) if at.scope.kind != TOKENIZER else ""


def _seeds(profile: Profile) -> str:
    return ", ".join("none" if seed is None else str(seed) for seed in profile.seeds)
