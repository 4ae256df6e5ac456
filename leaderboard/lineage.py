"""What a cell was made from, found through its parents, and whether it may stand on the current board."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from leaderboard.record import Record

Standing = Literal["board", "stale", "modified", "other version", "superseded"]
TOKENISE, PRETRAIN, LINEAR_PROBE = "tokenise", "pretrain", "linear-probe"
TOKEN_CLASSIFICATION = "token-classification"
VALIDATE = "validate"
SCRATCH = "scratch"


class Lineage:
    """The parents' graph of a set of records. Nothing is matched by name: an unknown parent stays unknown."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._by_id = {record.cell_id: record for record in records}
        # By identity: one may ask for a record that is not among them.
        self._ancestors: dict[int, tuple[Record, tuple[Record, ...]]] = {}

    def ancestors(self, record: Record) -> tuple[Record, ...]:
        """The known records that `record` was made from, nearest first."""
        if id(record) not in self._ancestors:
            self._ancestors[id(record)] = record, self._found(record)
        return self._ancestors[id(record)][1]

    def _found(self, record: Record) -> tuple[Record, ...]:
        found: dict[str, Record] = {}
        waiting = sorted(record.parents)
        while waiting:
            cell_id = waiting.pop(0)
            parent = self._by_id.get(cell_id)
            if parent is not None and cell_id not in found:
                found[cell_id] = parent
                waiting.extend(sorted(parent.parents))
        return tuple(found.values())

    def ancestor(self, record: Record, stage: str) -> Record | None:
        """The nearest known ancestor of that stage."""
        return next((parent for parent in self.ancestors(record) if parent.stage == stage), None)

    def origin(self, record: Record) -> str:
        """The id of the pre-training that `record` is, or was made from; empty where there is none."""
        parent = record if record.stage == PRETRAIN else self.ancestor(record, PRETRAIN)
        return parent.cell_id if parent is not None else ""

    def slices(self, record: Record) -> dict[str, str]:
        """Slice name -> digest, of every slice that moved this cell's numbers or its ancestors'."""
        merged: dict[str, str] = {}
        for relative in (*reversed(self.ancestors(record)), record):
            merged |= relative.protocol.slices
        return merged

    def differing(self, record: Record, current: Mapping[str, str]) -> dict[str, str]:
        """The slices, of this cell or of any ancestor, that are not the `current` protocol's."""
        used = (item for one in (record, *self.ancestors(record)) for item in one.protocol.slices.items())
        return {name: digest for name, digest in used if current.get(name) != digest}

    def deviations(self, record: Record) -> tuple[str, ...] | None:
        """What this cell or an ancestor changed of the protocol; None if all of them are clean."""
        unclean = [one for one in (record, *self.ancestors(record)) if one.compliance.status != "clean"]
        if not unclean:
            return None
        stated = (deviation for one in unclean for deviation in one.compliance.deviations)
        return tuple(dict.fromkeys(stated)) or tuple(dict.fromkeys(one.compliance.status for one in unclean))


def standing_of(*, is_stale: bool, is_modified: bool, is_other: bool) -> Standing:
    """Where a cell stands: one that present code did not make is on no board, whatever else it is."""
    if is_stale:
        return "stale"
    return "modified" if is_modified else "other version" if is_other else "board"


def evaluation_name(record: Record) -> str:
    """The protocol's name of the evaluation that `record` is; the stage where its slices name none."""
    names = [without_trunk(name) for name in record.protocol.slices if name.startswith("evaluation:")]
    return names[0].partition(":")[2] if len(names) == 1 else record.stage


def without_trunk(slice_name: str) -> str:
    """KIND:NAME of a slice that is called KIND:NAME, or KIND:NAME@TRUNK where its values differ by trunk."""
    return slice_name.partition("@")[0]


def ended(record: Record) -> tuple[str, str]:
    """A key that orders records by when they ended (ISO 8601 UTC), by cell id among equals.

    An earlier attempt under a clock that was ahead does not count: attempts stand in their order.
    """
    return record.attempts[-1].ended if record.attempts else "", record.cell_id


def runtime_choice(record: Record, name: str) -> str:
    """What the cell ran with, of the choices that no protocol fixes: its precision, its kind of device."""
    return str(record.runtime.get(name, "not stated"))


def harness_version(record: Record) -> str:
    """The git commit that made the cell; `+changes` where files differed from it."""
    return record.git.commit + ("+changes" if record.git.dirty else "")


def with_plugins(slices: Mapping[str, str], lineage: Lineage, records: Iterable[Record]) -> dict[str, str]:
    """`slices` and those of plug-in methods and tokenizers, which no protocol lists: the newest of each."""
    listed = {without_trunk(name) for name in slices}
    extended: dict[str, str] = {}
    for record in sorted(records, key=ended):
        if lineage.deviations(record) is None:
            for name, digest in lineage.slices(record).items():
                if name.startswith(("method:", "tokenizer:")) and without_trunk(name) not in listed:
                    extended[name] = digest
    return extended | dict(slices)
