"""The id that a record's cell must have, found again from the record alone. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any, cast

from benchmark.plan import STAGES, Cell, Stage
from benchmark.validation import STAGE as VALIDATE
from benchmark.validation import validation_id
from leaderboard.record import Record
from protocols.errors import HarnessError
from tokenizers import list_tokenizers, tokenizer_spec

MOST_PARENTS = 4


def ids_of_record(record: Record) -> frozenset[str] | None:
    """The ids that the cell of `record` may have; None for a stage, or a tokenizer, that is not known here.

    A record does not keep the order of its cell's parents, nor a tokenizer's values that no protocol sets:
    every order counts, and the defaults as they are. Raises ValueError for values that have no digest.
    """
    if record.stage == VALIDATE:
        return frozenset(_validation_ids(record))
    if record.stage not in STAGES or len(record.parents) > MOST_PARENTS:
        return None
    evaluations = [name for name in record.protocol.slices if name.startswith("evaluation:")]
    known_part = record.data_set.part or None
    if record.stage == "tokenise" and record.parents and known_part is None:
        return None  # one that failed before it read an image
    tried = list(_hyperparameters(record))
    if not tried:
        return None
    return frozenset(
        Cell(
            stage=cast(Stage, record.stage),
            part=known_part if record.stage == "tokenise" and record.parents else None,
            method=record.method.name if record.method else None,
            tokenizer=record.tokenizer.name if record.tokenizer else None,
            trunk=record.trunk,
            evaluation=evaluations[0].partition(":")[2].partition("@")[0] if evaluations else None,
            seed=record.seed,
            slices=tuple(sorted(record.protocol.slices.items())),
            hyperparameters=tuple(sorted(values.items())),
            parents=parents,
        ).id
        for values in tried
        for parents in permutations(sorted(record.parents))
    )


def _hyperparameters(record: Record) -> Iterator[Mapping[str, Any]]:
    if record.stage != "tokenise":
        yield record.resolved.get("hyperparameters", {})
        return
    name = record.tokenizer.name if record.tokenizer else ""
    values = record.resolved.get(f"tokenizer:{name}", {})
    if name in list_tokenizers():
        try:
            yield tokenizer_spec(name).resolve(values)
        except HarnessError:
            return  # values that the tokenizer no longer takes
    else:
        yield values


def _validation_ids(record: Record) -> Iterator[str]:
    """With no key of the weights, and with the one they were found under, which may have been asked for."""
    checkpoint = record.resolved.get("checkpoint", {})
    for key in (None, checkpoint.get("key")):
        yield validation_id(
            Path(str(checkpoint.get("file", ""))),
            record.trunk or "",
            sha256=checkpoint.get("sha256"),
            slices=dict(record.protocol.slices),
            images=record.data_set.digest,
            pooling=checkpoint.get("pooling"),
            key=key,
            precision=record.runtime.get("precision"),
        )
