"""Records of mini's view of further methods, of three seeds; and some as if plug-ins had brought them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from benchmark.plan import Cell, make_plan
from benchmark.selection import select
from leaderboard.record import MethodUse, Metric, Record
from protocols import load_protocol
from tests.leaderboard.planned_records import planned_records

MINI = load_protocol("mini")
FURTHER = ("splitmask", "maskfeat", "beit-v2")
SEEDS = (0, 1, 2)
VIEW = "further"


@cache
def further_cells() -> tuple[Cell, ...]:
    """Every cell of the view."""
    names = ["all", *MINI.names("methods")]
    return tuple(make_plan(MINI, select(MINI, methods=names, views=[VIEW], seeds=SEEDS)))


@cache
def further_records() -> tuple[Record, ...]:
    """All of them, done; MaskFeat's loss is no cross-entropy."""
    records = planned_records(MINI, further_cells(), _score)
    return tuple(_with_loss(one) if one.stage == "pretrain" else one for one in records)


def without(records: Iterable[Record], methods: Iterable[str]) -> list[Record]:
    """`records` but for those of `methods`."""
    left_out = set(methods)
    return [one for one in records if one.method is None or one.method.name not in left_out]


def as_plugin(records: Iterable[Record], method: str, *, name: str, title: str, plugin: str) -> list[Record]:
    """The records of `method` as another's: of a plug-in, which no protocol knows."""
    mine = {one.cell_id: one for one in records if one.method is not None and one.method.name == method}
    return [
        one.model_copy(
            update={
                "cell_id": f"{name}-{cell_id}",
                "method": MethodUse(name=name, source_digest="p", title=title, plugin=plugin),
                "parents": {f"{name}-{at}" if at in mine else at: made for at, made in one.parents.items()},
            }
        )
        for cell_id, one in mine.items()
    ]


def _score(cell: Cell) -> dict[str, float]:
    """By row, with a little by seed: a mean of its own for each."""
    name = f"{cell.method}{cell.tokenizer}{cell.evaluation}"
    return {"top1_percent": 50 + sum(map(ord, name)) % 30 + 0.3 * (cell.seed or 0)}


def _with_loss(record: Record) -> Record:
    unit = "nats" if record.tokenizer else "squared error"
    return record.model_copy(update={"metrics": {"loss": Metric(value=1.0, n=1, unit=unit)}})
