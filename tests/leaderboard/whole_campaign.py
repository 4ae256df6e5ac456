"""Records as a whole campaign would leave them: the planner's own cells of every view, synthetic numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from benchmark.plan import Cell, make_plan
from benchmark.record_cell import resolved_values
from benchmark.selection import select
from leaderboard.record import (
    PREDICTIONS_NAME,
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
from protocols.schema import Protocol

IMAGES = 1000
# As many as a real record has.
ENVIRONMENT = {f"package-{number}": f"{number}.0.1" for number in range(18)}


def campaign_records(
    protocol: Protocol, *, seeds: Iterable[int] = (0,), predictions: str = "", **selection: Any
) -> Iterator[Record]:
    """One clean record for each cell that the protocol's views need, parents before children.

    `selection` narrows the cells, as the command line's options do. Evaluations name `predictions` as the
    SHA-256 of theirs, and none if it is empty.
    """
    chosen = {"views": ["all"], **selection}
    known: dict[str, Record] = {}
    for cell in make_plan(protocol, select(protocol, seeds=tuple(seeds), **chosen)):
        known[cell.id] = record = _record(cell, protocol, known, predictions)
        yield record


def correct_images(cell: Cell | Record) -> int:
    """How many of the 1,000 images a cell gets right: by its method and seed."""
    name = cell.method if isinstance(cell.method, str) else cell.method.name if cell.method else ""
    return 400 + sum(map(ord, name)) % 300 + 7 * (cell.seed or 0) % 20


def _record(cell: Cell, protocol: Protocol, known: dict[str, Record], predictions: str) -> Record:
    is_measured = cell.stage not in ("tokenise", "pretrain")
    part = "test" if is_measured else cell.part or "pretraining"
    metrics, use = {}, None
    if is_measured:
        value = 100 * correct_images(cell) / IMAGES
        metrics = {"top1_percent": Metric(value=value, n=IMAGES, unit="%")}
    if cell.tokenizer:
        digest = _digest(cell.tokenizer)
        use = TokenizerUse(name=cell.tokenizer, digest=digest, source_digest=digest, teacher="none")
    artefacts = {"weights": _digest(cell.id)}
    if is_measured:
        artefacts = {PREDICTIONS_NAME: predictions} if predictions else {}
    return Record(
        cell_id=cell.id,
        stage=cell.stage,
        protocol=ProtocolUse(name=protocol.name, version=protocol.version, slices=dict(cell.slices)),
        resolved=resolved_values(cell, protocol),
        compliance=Compliance(status="clean"),
        method=MethodUse(name=cell.method, source_digest=_digest(cell.method)) if cell.method else None,
        tokenizer=use,
        trunk=cell.trunk,
        data_set=DataUse(name=protocol.data.name, part=part, n=IMAGES, digest=_digest(part)),
        seed=cell.seed,
        metrics=metrics,
        cost=Cost(
            wall_seconds=60.0,
            images_seen=30_000,
            train_flops=cell.train_flops,
            peak_memory_bytes=1,
            device="a processor",
        ),
        runtime={
            "accumulation": 1,
            "device": "cpu",
            "images": "auto",
            "jobs": 2,
            "precision": "fp32",
            "processes": 1,
            "threads": 1,
            "workers": 0,
        },
        environment=ENVIRONMENT,
        git=Git(commit="c" * 40, dirty=False),
        parents={parent: known[parent].artefact_digest for parent in cell.parents},
        artefacts=artefacts,
        attempts=(Attempt(started="2026-01-02T03:00:00Z", ended="2026-01-02T03:04:05Z", outcome="done"),),
        status="done",
        error=None,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
