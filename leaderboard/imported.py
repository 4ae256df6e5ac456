"""Which records are of weights that come from elsewhere, and how their rows are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leaderboard.record import Record

PREFIX = "imported-"
# Of the file that the weights came from: the one hyperparameter of an imported cell.
CHECKPOINT_DIGEST = "checkpoint_sha256"


def is_imported(record: Record) -> bool:
    """True for an evaluation of such weights. Classifiers that were only measured are another thing.

    The name decides: what a record says of its own compliance must not bring it among the protocol's rows.
    """
    return record.method is not None and record.method.name.startswith(PREFIX)


def label_of(record: Record) -> str:
    """What whoever imported the weights called them."""
    return record.method.name.removeprefix(PREFIX) if record.method else ""


def checkpoint_of(record: Record) -> Mapping[str, Any]:
    """What the record says of the file."""
    return record.resolved.get("checkpoint", {})


def digest_of_checkpoint(record: Record) -> str:
    """SHA-256 of the file; empty where the record has none."""
    return str(record.resolved.get("hyperparameters", {}).get(CHECKPOINT_DIGEST, ""))
