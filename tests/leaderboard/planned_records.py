"""Records of a protocol's own cells, with numbers that a test gives: planned, and none of it run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmark.plan import Cell, make_plan
from benchmark.selection import select
from leaderboard.record import (
    Attempt,
    Compliance,
    Cost,
    DataUse,
    Git,
    MethodUse,
    Metric,
    ProtocolUse,
    Record,
    TokenizerUse,
)
from leaderboard.settings import Settings
from leaderboard.tables import Board, build_board
from protocols.schema import Protocol

Numbers = Callable[[Cell], Mapping[str, float]]


def planned_cells(
    protocol: Protocol, *, seeds: Iterable[int] | None = None, methods: Iterable[str] | None = None
) -> list[Cell]:
    """Every cell of the protocol's views: of all methods that it lists, or of those that are named."""
    chosen = ["all", *protocol.names("methods")] if methods is None else methods
    return make_plan(protocol, select(protocol, methods=chosen, views=["all"], seeds=seeds))


def planned_records(protocol: Protocol, cells: Iterable[Cell], numbers: Numbers) -> list[Record]:
    """A record of each cell, done; `numbers` gives an evaluation's metrics in per cent, none to leave it out.

    A metric is the nearest share of the images that were measured, as a count of images makes it.
    """
    records: dict[str, Record] = {}
    slices = {name: dict(protocol.slice(name)) for name in protocol.slices}
    for cell in cells:
        metrics = numbers(cell) if cell.evaluation else {}
        if metrics or not cell.evaluation:
            records[cell.id] = _record(protocol, cell, slices, metrics, records)
    return list(records.values())


def images_of(protocol: Protocol, cell: Cell) -> int:
    """How many images an evaluation measures on."""
    recipe = protocol.evaluation(cell.evaluation or "", cell.trunk)
    transfer = getattr(recipe, "transfer_set", None)
    return protocol.transfer_sets[transfer].test.count if transfer else protocol.data.test.count


def measurable(percent: float, images: int) -> float:
    """The share of so many images, in per cent, that is nearest to `percent`."""
    return 100 * round(percent * images / 100) / images


def board_of(protocol: Protocol, records: Iterable[Record], **more: Any) -> Board:
    """The board of `records`, without predictions, in the protocol's order."""
    return build_board(
        list(records),
        lambda record: None,
        slices=protocol.slices,
        settings=Settings.of(protocol),
        tokenizers=protocol.defaults.tokenizers,
        trunks=protocol.defaults.trunks,
        evaluations=protocol.names("evaluations"),
        default_evaluations=protocol.defaults.evaluations,
        token_evaluations=protocol.token_evaluations,
        **more,
    )


def _record(
    protocol: Protocol,
    cell: Cell,
    slices: Mapping[str, dict[str, Any]],
    metrics: Mapping[str, float],
    records: Mapping[str, Record],
) -> Record:
    images = images_of(protocol, cell) if cell.evaluation else 1
    resolved = {name: slices[name] for name, _ in cell.slices if name in slices}
    if cell.stage == "pretrain":
        resolved["pretraining"] = {**resolved["pretraining"], **dict(cell.pretraining)}
    return Record(
        cell_id=cell.id,
        stage=cell.stage,
        protocol=ProtocolUse(name=protocol.name, version=protocol.version, slices=dict(cell.slices)),
        # A tokenizer's values are those of its slice: of its own it has none.
        resolved=resolved
        | ({"hyperparameters": dict(cell.hyperparameters)} if cell.stage != "tokenise" else {}),
        compliance=Compliance(status="clean"),
        method=MethodUse(name=cell.method, source_digest="s") if cell.method else None,
        tokenizer=TokenizerUse(name=cell.tokenizer, digest="t", source_digest="s")
        if cell.tokenizer
        else None,
        trunk=cell.trunk,
        data_set=DataUse(name=protocol.data.name, part="test", n=images, digest="d"),
        seed=cell.seed,
        metrics={
            name: Metric(value=measurable(value, images), n=images, unit="%")
            for name, value in metrics.items()
        },
        cost=Cost(wall_seconds=1.0, images_seen=1, train_flops=1.0, peak_memory_bytes=1, device="cpu"),
        runtime={"precision": "fp32", "device": "cpu"},
        environment={},
        git=Git(commit="abc", dirty=False),
        parents={parent: records[parent].artefact_digest for parent in cell.parents},
        artefacts={},
        attempts=(Attempt(started="2026-01-02T03:00:00Z", ended="2026-01-02T03:04:05Z", outcome="done"),),
        status="done",
        error=None,
    )
