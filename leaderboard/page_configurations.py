"""The values behind each cell, as the page shows them: every distinct slice once, and who used which.

What a cell was resolved to stands in its record. Most cells share most of it, so the page holds each distinct
set of values once and points to it.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leaderboard.grids import clean
from leaderboard.lineage import evaluation_name
from leaderboard.record import Record
from protocols.frozen import digest_of

HYPERPARAMETERS = "hyperparameters"


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One set of values: `name` as the record calls it, `lines` (field, value) with nested fields dotted."""

    anchor: str
    name: str
    digest: str
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What one cell and those that it was made from used, stage by stage."""

    anchor: str
    title: str
    stages: tuple[tuple[str, tuple[Slice, ...]], ...]


@dataclass
class Configurations:
    """Gathers the configurations of the cells that a page names; `all` and `slices` are then shown."""

    all: dict[str, Configuration] = field(default_factory=dict)
    slices: dict[str, Slice] = field(default_factory=dict)
    _of_cell: dict[str, tuple[Slice, ...]] = field(default_factory=dict)
    _known: dict[tuple[str, bytes], Slice] = field(default_factory=dict)

    def anchor(self, records: Sequence[Record]) -> str:
        """The place on the page of what `records`, a cell and its parents, were resolved to."""
        stages = tuple((one.stage, self._of(one)) for one in records)
        title = _title(records[0])
        digest = digest_of([title, *([stage, [part.digest for part in parts]] for stage, parts in stages)])
        anchor = f"configuration-{digest[:12]}"
        if anchor not in self.all:
            self.all[anchor] = Configuration(anchor=anchor, title=title, stages=stages)
        return anchor

    def _of(self, record: Record) -> tuple[Slice, ...]:
        if record.cell_id not in self._of_cell:
            resolved = sorted(record.resolved.items())
            self._of_cell[record.cell_id] = tuple(self._slice(*item) for item in resolved if item[1])
        return self._of_cell[record.cell_id]

    def _slice(self, name: str, values: Mapping[str, Any]) -> Slice:
        # A key alone: that two equal sets of values may pickle to other bytes costs time and nothing else.
        key = (name, pickle.dumps(values))
        if key not in self._known:
            digest = digest_of(values)
            anchor = f"values-{digest[:12]}"
            made = Slice(anchor=anchor, name=clean(name), digest=digest, lines=tuple(_flat(values)))
            self._known[key] = self.slices.setdefault(f"{name} {digest}", made)
        return self._known[key]


def _title(record: Record) -> str:
    """What was done to what: `linear-probe of mim, k-pixel, vit-mini`."""
    method, tokenizer = record.method, record.tokenizer
    parts = (method.name if method else "", tokenizer.name if tokenizer else "", record.trunk or "")
    named = ", ".join(clean(part) for part in parts if part)
    return f"{clean(evaluation_name(record))} of {named}" if named else clean(evaluation_name(record))


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """(field, value) pairs; fields of fields are joined by dots, as --set names them."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        path = f"{before}{clean(str(name))}"
        if isinstance(value, Mapping) and value:
            lines += _flat(value, f"{path}.")
        else:
            lines.append((path, clean(value if isinstance(value, str) else json.dumps(value))))
    return lines
