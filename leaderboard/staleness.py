"""Which finished cells no longer stand for present code and parents. Pure: records in, sentences out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from leaderboard.record import Record


def stale_reasons(records: Iterable[Record], sources: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Cell id -> why its record is stale, for those of `records` that are; only done ones can be.

    `sources` maps `method:NAME` and `tokenizer:NAME` to the digest of the code as it is now; a name that
    it lacks, and a record that states no digest, give no claim. A parent that was made anew with
    identical artefacts makes nothing stale, and a parent whose record is not among `records` is not judged.
    """
    known = {record.cell_id: record for record in records}
    causes = {
        cell_id: _own_causes(record, known, sources)
        for cell_id, record in known.items()
        if record.status == "done"
    }
    reasons: dict[str, tuple[str, ...]] = {}
    for cell_id, own in causes.items():
        inherited = [
            f"its parent {parent} is stale: {cause}"
            for parent in sorted(known[cell_id].parents)
            for cause in _causes_behind(parent, known, causes)
        ]
        if own or inherited:
            reasons[cell_id] = tuple(dict.fromkeys([*own, *inherited]))
    return reasons


def _own_causes(record: Record, known: Mapping[str, Record], sources: Mapping[str, str]) -> list[str]:
    """What makes `record` stale by itself: each sentence names its subject, for descendants repeat it."""
    causes = []
    if record.stage == "tokenise":
        tokenizer = record.tokenizer
        if tokenizer is not None and _has_changed(
            f"tokenizer:{tokenizer.name}", tokenizer.source_digest, sources
        ):
            causes.append(f"tokenizer {tokenizer.name}'s code has changed since")
    # An evaluation of a pre-trained trunk takes nothing of the method but the trunk's weights.
    elif record.method is not None and (record.stage == "pretrain" or not record.parents):
        method = record.method
        if _has_changed(f"method:{method.name}", method.source_digest, sources):
            causes.append(f"method {method.name}'s code has changed since")
    for cell_id, digest in sorted(record.parents.items()):
        parent = known.get(cell_id)
        if parent is None:
            causes.append(f"parent {cell_id} has no record any more")
            continue
        if parent.artefact_digest == digest:
            continue
        if parent.status == "done":
            causes.append(f"parent {cell_id} was made anew since")
        else:
            causes.append(f"parent {cell_id} was run again since and is now {parent.status}")
    return causes


def _has_changed(name: str, recorded: str, sources: Mapping[str, str]) -> bool:
    present = sources.get(name, "")
    return bool(recorded) and bool(present) and recorded != present


def _causes_behind(
    cell_id: str, known: Mapping[str, Record], causes: Mapping[str, list[str]]
) -> Iterable[str]:
    """The causes of a done cell and of its done ancestors, nearest first, each once; parents may circle."""
    found: dict[str, None] = {}
    seen: set[str] = set()
    waiting = [cell_id]
    while waiting:
        current = waiting.pop(0)
        if current in seen or current not in causes:
            continue
        seen.add(current)
        found |= dict.fromkeys(causes[current])
        waiting += sorted(known[current].parents)
    return found
