"""Two records that differ in one resolved field are never compared: every field of a protocol, in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from leaderboard.fairness import unlike
from leaderboard.fairness_profile import ProfileReader
from leaderboard.lineage import Lineage
from leaderboard.record import Record
from leaderboard.runs import RowKey, Run, collect_runs
from leaderboard.settings import Settings
from protocols import load_protocol
from protocols.frozen import digest_of
from protocols.schema import Protocol
from tests.leaderboard.whole_campaign import campaign_records

Path = tuple[str, ...]


def fields_of(values: Mapping[str, Any], path: Path = ()) -> Iterator[Path]:
    """The paths of all values that are no dict themselves."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from fields_of(value, (*path, name))
        else:
            yield (*path, name)


def another(value: Any) -> Any:
    """A value of the same kind that is not `value`."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x" if isinstance(value, str) else 1 if value is None else [*value, 0]


def changed(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`values` with another one at `path`."""
    name, *rest = path
    new = changed(values[name], tuple(rest)) if rest else another(values[name])
    return {**values, name: new}


def edited(record: Record, name: str, path: Path, *, with_digest: bool) -> Record:
    """`record` with one value of its slice `name` changed, and the slice's digest too if so asked."""
    values = changed(record.resolved[name], path)
    slices = dict(record.protocol.slices)
    if with_digest and name in slices:
        slices[name] = digest_of(values)
    return record.model_copy(
        update={
            "resolved": {**record.resolved, name: values},
            "protocol": record.protocol.model_copy(update={"slices": slices}),
        }
    )


class Campaign:
    """All records of a protocol's views, and what `collect_runs` makes of them."""

    def __init__(self, protocol: Protocol) -> None:
        self.slices, self.settings = protocol.slices, Settings.of(protocol)
        every = campaign_records(protocol, methods=["all", *protocol.names("methods")])
        self.records = {record.cell_id: record for record in every}
        self.rows: dict[tuple[str, str], dict[RowKey, Run]] = {}
        for run in self.runs(self.records.values()):
            assert run.standing == "board", (run.record.cell_id, run.differing)
            if run.is_evaluation:
                self.rows.setdefault((run.key.trunk, run.evaluation), {})[run.key] = run

    def runs(self, records: Any) -> list[Run]:
        records = list(records)
        return collect_runs(
            records,
            Lineage(records),
            lambda record: None,
            slices=self.slices,
            settings=self.settings,
            stale={},
        )

    def beside(self, rows: Mapping[RowKey, Run], key: RowKey) -> list[Run]:
        """A few rows of the same column, of this method and of this tokenizer as far as there are any."""
        others = [other for other in rows if other != key]
        of_method = [one for one in others if one.method == key.method and one.variant == key.variant]
        of_tokenizer = [one for one in others if one.tokenizer == key.tokenizer and one.method != key.method]
        return [rows[one] for one in dict.fromkeys([*of_method[:1], *of_tokenizer[:2], *others[:2]])]

    def with_edit(self, rows: Sequence[Run], new: Record) -> list[Run]:
        """`rows` as they would be read from the records with `new` in its place."""
        behind = {one.cell_id: one for run in rows for one in (run.record, *run.ancestors)} | {
            new.cell_id: new
        }
        by_id = {run.record.cell_id: run for run in self.runs(behind.values())}
        return [by_id[run.record.cell_id] for run in rows]


@pytest.mark.parametrize("name", ["mini", "fair300"])
def test_a_row_that_differs_in_one_resolved_field_is_left_out(name: str) -> None:
    protocol = load_protocol(name)
    campaign = Campaign(protocol)
    walked: set[tuple[str, ...]] = set()
    reader = ProfileReader()
    for column, rows in campaign.rows.items():
        for key, run in rows.items():
            others = campaign.beside(rows, key)
            row = len(others)
            for record in (run.record, *run.ancestors):
                for slice_name, values in record.resolved.items():
                    owner = f"{key.method} {key.trunk}" if slice_name == "hyperparameters" else ""
                    for path in fields_of(values):
                        field = (record.stage, slice_name, owner, *path)
                        if field in walked or not others:
                            continue
                        walked.add(field)
                        told = (column, key, *field)
                        is_sliced = slice_name in record.protocol.slices
                        if is_sliced:
                            # The value alone: the record contradicts its own digest.
                            lie = edited(record, slice_name, path, with_digest=False)
                            assert row in unlike(
                                [[one] for one in [*others, _with(run, lie)]], reader=reader
                            ), told
                        true = edited(record, slice_name, path, with_digest=True)
                        reread = campaign.with_edit([*others, run], true)
                        assert row in unlike([[one] for one in reread], reader=reader), told
                        if _is_bound(slice_name, key, others):
                            # And even if the digest were the protocol's own: no other row has the value.
                            assert unlike([[one] for one in [*others, _with(run, true)]], reader=reader) == {
                                row
                            }, told
    for slice_name in protocol.slices:
        if not slice_name.startswith("method:"):
            for path in fields_of(protocol.slice(slice_name)):
                assert any(field[1] == slice_name and field[3:] == path for field in walked), (
                    slice_name,
                    path,
                )
    for method in protocol.names("methods"):
        for trunk in protocol.trunks:
            for parameter in protocol.method_values(method, trunk):
                where = ("pretrain", "hyperparameters", f"{method} {trunk}", parameter)
                assert where in walked, where


def _with(run: Run, record: Record) -> Run:
    """`run` with one of the records behind it exchanged, its standing as it was."""
    if record.cell_id == run.record.cell_id:
        return replace(run, record=record)
    ancestors = tuple(record if one.cell_id == record.cell_id else one for one in run.ancestors)
    return replace(run, ancestors=ancestors)


def _is_bound(slice_name: str, key: RowKey, others: Sequence[Run]) -> bool:
    """Whether another row must have the same value, whatever the two rows are of."""
    if slice_name == "hyperparameters":
        return not key.variant and any(one.key.method == key.method and not one.key.variant for one in others)
    if slice_name.startswith("tokenizer:"):
        return any(one.key.tokenizer == key.tokenizer for one in others)
    return not key.variant or slice_name != "pretraining"


@pytest.mark.parametrize("with_digest", [False, True])
def test_a_field_more_or_less_is_a_difference(with_digest: bool) -> None:
    protocol = load_protocol("mini")
    campaign = Campaign(protocol)
    rows = campaign.rows["vit-mini", "finetune"]
    *others, key = [one for one in rows if one.method in ("mim", "cae") and not one.variant]
    for pretraining in ("less", "more"):
        run = rows[key]
        (record,) = (one for one in run.ancestors if one.stage == "pretrain")
        values = dict(record.resolved["pretraining"])
        if pretraining == "less":
            del values["color_jitter"]
        else:
            values["gamma"] = 1.0
        slices = dict(record.protocol.slices)
        if with_digest:
            slices["pretraining"] = digest_of(values)
        use = record.protocol.model_copy(update={"slices": slices})
        resolved = {**record.resolved, "pretraining": values}
        odd = _with(run, record.model_copy(update={"resolved": resolved, "protocol": use}))
        assert unlike([[rows[one]] for one in others] + [[odd]]) == {len(others)}
