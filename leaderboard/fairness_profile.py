"""What was resolved for one row of a table: the values of all records behind its runs, as one profile."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from leaderboard.fairness_record import (
    METHOD,
    Field,
    RecordReader,
    RecordValues,
    Scope,
    Values,
    differing,
    shown_field,
    shown_value,
)
from leaderboard.lineage import PRETRAIN, SCRATCH, TOKENISE
from leaderboard.record import Record
from leaderboard.runs import RowKey, Run
from protocols.frozen import canonical_json

MEASURED, MADE_FROM = Scope("measured"), Scope("made from")
# What was pre-trained without tokens has no token store among its stages, and cannot have one.
MADE_WITHOUT_TOKENS = Scope("made from", "images alone")
FEW = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Profile:
    """All values behind one or more runs of a row. The values of the fields `tried` are in its name.

    `problems` say why the row cannot be shown to be what it is called. `shown` has one or more sets of
    values per stage, as nothing says that the seeds of a row ran on one machine.
    """

    key: RowKey
    held: Mapping[Scope, Values]
    tried: frozenset[Field]
    shown: Mapping[Scope, tuple[Values, ...]]
    seeds: tuple[int | None, ...]
    problems: tuple[str, ...]

    def value(self, at: Field) -> str:
        """The held value at `at` as one reads it."""
        return shown_value(self.held[at.scope].get(at.path))

    def shown_at(self, at: Field) -> str:
        """The value at `at` that is only shown; several where runs differ in it."""
        found = {values.get(at.path) for values in self.shown.get(at.scope, ())}
        return " and ".join(sorted(map(shown_value, found)))


@dataclass(frozen=True, kw_only=True, eq=False)
class ProfileReader:
    """Reads profiles; what thousands of records share is read once."""

    _reader: RecordReader = field(default_factory=RecordReader)
    # By identity, for two records may claim one cell id; each is kept, so that no other takes its place.
    _records: dict[int, tuple[Record, RecordValues]] = field(default_factory=dict)
    _artefacts: dict[int, str] = field(default_factory=dict)
    _small: dict[tuple[str, str], Values] = field(default_factory=dict)

    def profile(self, runs: Sequence[Run], metric: str) -> Profile:
        """Of the runs of one row in one column, in order of seeds; `metric` is the column's."""
        singles = [self._of_run(run, metric) for run in runs]
        first = singles[0]
        problems = list(first.problems)
        # What one seed knows and the first does not, such as how its images were decoded, binds the others.
        held = dict(first.held)
        shown: dict[Scope, dict[int, Values]] = {}
        for run, single in zip(runs, singles, strict=True):
            for at in differing(held, single.held):
                problems.append(
                    f"its seeds differ in {shown_field(at)}: {shown_value(held[at.scope].get(at.path))} in "
                    f"seed {runs[0].record.seed}, {single.value(at)} in seed {run.record.seed}"
                )
            held = {**single.held, **held}
            problems += single.problems
            for scope, several in single.shown.items():
                shown.setdefault(scope, {}).update({id(values): values for values in several})
        return Profile(
            key=first.key,
            held=held,
            tried=first.tried,
            shown={scope: tuple(several.values()) for scope, several in shown.items()},
            seeds=tuple(run.record.seed for run in runs),
            problems=tuple(dict.fromkeys(problems)),
        )

    def _of_run(self, run: Run, metric: str) -> Profile:
        record = run.record
        held: dict[Scope, Values] = {}
        shown: dict[Scope, tuple[Values, ...]] = {}
        problems = _standing(run)
        for one in (record, *run.ancestors):
            values = self._read(one)
            problems += values.problems
            shown[values.stage] = (*shown.get(values.stage, ()), values.shown)
            for scope, own in values.held.items():
                known = held.setdefault(scope, own)
                if known is not own and known != own:
                    problems += [
                        f"its records disagree on {shown_field(Field(scope, path))}: "
                        f"{shown_value(known[path])}, and {shown_value(own[path])} in {one.cell_id}"
                        for path in sorted(known.keys() & own.keys())
                        if known[path] != own[path]
                    ]
                    held[scope] = {**known, **own}
        problems += self._ancestry(run)
        measured = record.metrics.get(metric)
        if measured is not None:
            held[MEASURED] = self._one(f"metrics.{metric}.n", str(measured.n))
        if record.tokenizer is not None or run.pretraining is not None:
            # A stage under another name would be held to nothing.
            stages = sorted(" ".join(scope) for scope in shown)
            made_from = MADE_FROM if record.tokenizer is not None else MADE_WITHOUT_TOKENS
            held[made_from] = self._one("stages", canonical_json(stages))
        tried, untrue = _tried(run.key, held)
        return Profile(
            key=run.key,
            held=held,
            tried=tried,
            shown=shown,
            seeds=(record.seed,),
            problems=(*problems, *untrue),
        )

    def _one(self, path: str, value: str) -> Values:
        return self._small.setdefault((path, value), {path: value})

    def _read(self, record: Record) -> RecordValues:
        known = self._records.get(id(record))
        if known is None:
            known = self._records[id(record)] = record, self._reader.read(record)
        return known[1]

    def _artefact_digest(self, record: Record) -> str:
        """Of a record that was read, which is what keeps its identity."""
        if id(record) not in self._artefacts:
            self._artefacts[id(record)] = record.artefact_digest
        return self._artefacts[id(record)]

    def _ancestry(self, run: Run) -> Iterable[str]:
        """Why the records behind a run do not prove what it was made from."""
        record = run.record
        known = {one.cell_id: one for one in run.ancestors}
        stages = {one.stage for one in run.ancestors}
        for child in (record, *run.ancestors):
            for cell_id, digest in sorted(child.parents.items()):
                parent = known.get(cell_id)
                if parent is None:
                    yield f"the record of {cell_id}, from which {child.cell_id} was made, is not here"
                elif parent.status != "done" or self._artefact_digest(parent) != digest:
                    yield f"{child.cell_id} was not made from {cell_id} as it is now"
            # Of a run that is known to be modified it is said already.
            if child.compliance.status != "clean" and run.standing != "modified":
                changes = _few(child.compliance.deviations) or child.compliance.status
                yield f"{child.cell_id} is not as the protocol has it: {changes}"
        if PRETRAIN not in stages and _must_be_pretrained(run):
            yield f"no pre-training stands behind {record.cell_id}"
        if record.tokenizer is not None and TOKENISE not in stages:
            yield f"no tokens stand behind {record.cell_id}"
        method, tokenizer = run.key.method, run.key.tokenizer
        for one in run.ancestors:
            if one.method is not None and one.method.name != method:
                yield f"{one.cell_id} is of method {one.method.name}, {record.cell_id} of {method}"
            if one.tokenizer is not None and one.tokenizer.name != tokenizer:
                yield f"{one.cell_id} is of tokenizer {one.tokenizer.name}, {record.cell_id} of {tokenizer}"
            if one.trunk is not None and one.trunk != record.trunk:
                yield f"{one.cell_id} is of trunk {one.trunk}, {record.cell_id} of {record.trunk}"
            if one.seed is not None and one.seed != record.seed:
                yield f"{one.cell_id} is of seed {one.seed}, {record.cell_id} of {record.seed}"


def _must_be_pretrained(run: Run) -> bool:
    """True of every row but tokens alone and the random trunk, beside which a plug-in may bring another."""
    if run.is_of_tokens:
        return False
    use = run.record.method
    is_of_method = use is not None and use.name != SCRATCH and not use.plugin
    return run.record.tokenizer is not None or is_of_method


def _standing(run: Run) -> list[str]:
    if run.standing == "board":
        return []
    reasons = run.deviations or run.stale or tuple(sorted(run.differing))
    return [f"{run.record.cell_id} is not of the board ({run.standing}): {_few(reasons) or 'see runs.csv'}"]


def _few(reasons: Sequence[str]) -> str:
    more = len(reasons) - FEW
    return "; ".join(reasons[:FEW]) + (f"; and {more} more" if more > 0 else "")


def _tried(key: RowKey, held: Mapping[Scope, Values]) -> tuple[frozenset[Field], list[str]]:
    """The fields that the row's variant names, and where its records say something else than the name."""
    tried, untrue = set(), []
    for label in key.variant.split(", ") if key.variant else ():
        name, _, value = label.rpartition(" ")
        places = [
            Field(Scope(METHOD, key.method), f"hyperparameters.{name}"),
            Field(Scope(PRETRAIN), f"pretraining.{name}"),
        ]
        found = [at for at in places if at.path in held.get(at.scope, {})]
        if len(found) == 1 and str(json.loads(held[found[0].scope][found[0].path])) == value:
            tried.add(found[0])
        else:
            stated = [f"{shown_field(at)} {shown_value(held[at.scope][at.path])}" for at in found]
            untrue.append(
                f"the row is called {label!r}, its records say {', '.join(stated) or f'nothing of {name}'}"
            )
    return frozenset(tried), untrue
