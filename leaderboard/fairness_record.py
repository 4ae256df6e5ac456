"""What one record says that was resolved for its cell, field by field: held equal, only shown, or a result.

- held: all rows must agree. Values of every slice, the images that were read and measured, the trunk. A
  method's hyperparameters and code bind the rows of that method, a tokenizer's values, weights and code
  those of that tokenizer: they are what a table declares that its rows differ in.
  Of images that were decoded from files the decode digest binds, where it is known: other pixels are other
  images.
- shown: what no protocol holds, and a reader should know: the runtime, library versions, hardware, git
  commit, seeds.
- a result, or a name: no setting at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from leaderboard.environments import DECODE_DIGEST, decode_digest
from leaderboard.lineage import PRETRAIN, TOKENISE, harness_version
from leaderboard.record import Record
from protocols.frozen import canonical_json, digest_of

# Every field of a record is in one of the three.
HELD = frozenset({
    "stage", "protocol", "resolved", "compliance", "method", "tokenizer", "trunk", "data_set", "parents",
    "status",
})  # fmt: skip
SHOWN = frozenset({"runtime", "environment", "git", "seed"})
# Of `metrics` the number of images is held, of `cost` the hardware and of `protocol` the version are shown.
RESULTS = frozenset({
    "schema_version", "cell_id", "metrics", "cost", "artefacts", "attempts", "error", "digest",
})  # fmt: skip
# How many cells run side by side, and how many processes read images: neither changes a bit.
UNSEEN_RUNTIME = frozenset({"jobs", "workers"})
# No slices of a protocol: hyperparameters are the method's, a checkpoint's facts those of the file.
UNSLICED = ("hyperparameters", "checkpoint")
METHOD, TOKENIZER, EVALUATION = "method", "tokenizer", "evaluation"
DECODED = "decoded for"
NOT_SET = "not set"


class Scope(NamedTuple):
    """Which rows a value binds: all that have this stage, or those of one method or one tokenizer."""

    kind: str
    name: str = ""

    @property
    def is_of_stage(self) -> bool:
        """False for what binds the rows of one method or tokenizer alone."""
        return self.kind not in (METHOD, TOKENIZER)


class Field(NamedTuple):
    """One value's place, such as `pretraining.epochs` of the stage `pretrain`."""

    scope: Scope
    path: str


# Path -> canonical JSON.
Values = Mapping[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordValues:
    """One record's values. `problems` say in what the record contradicts itself.

    Records with the same values share the same mappings: thousands of them differ in a seed alone.
    """

    stage: Scope
    held: Mapping[Scope, Values]
    shown: Values
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordReader:
    """Reads records; each distinct slice is hashed and taken apart once."""

    # Digest, and `.path` -> canonical JSON of every value that is no dict itself, by the slice's text.
    _slices: dict[str, tuple[str, Values]] = field(default_factory=dict)
    _interned: dict[Any, Values] = field(default_factory=dict)

    def read(self, record: Record) -> RecordValues:
        """What `record` alone says."""
        stage = _stage(record)
        use, data, tokenizer = record.method, record.data_set, record.tokenizer
        texts: dict[Scope, dict[str, str]] = {stage: {}}
        for name, values in record.resolved.items():
            kind = name.partition(":")[0]
            if kind in ("hyperparameters", METHOD):
                scope = Scope(METHOD, use.name if use else "")
            elif kind == TOKENIZER:
                scope = Scope(TOKENIZER, tokenizer.name if tokenizer else "")
            else:
                scope = stage
            # As Python writes it: as distinct as canonical JSON, and several times faster for thousands.
            texts.setdefault(scope, {})[name] = text = repr(values)
            if text not in self._slices:
                self._slices[text] = digest_of(values), _flat(values)
        facts: dict[Scope, dict[str, Any]] = {stage: {
            "protocol.name": record.protocol.name, "trunk": record.trunk, "data_set.name": data.name,
            "data_set.part": data.part, "data_set.n": data.n, "data_set.digest": data.digest,
        }}  # fmt: skip
        if stage.kind == EVALUATION:
            facts[stage]["stage"] = record.stage
        # A trunk's evaluation takes nothing of the method or the tokenizer but what its parents made of them.
        if use and (record.stage == PRETRAIN or not record.parents):
            facts[Scope(METHOD, use.name)] = {"method.source_digest": use.source_digest}
        if tokenizer:
            of_weights = {"tokenizer.digest": tokenizer.digest, "tokenizer.teacher": tokenizer.teacher}
            of_code = {"tokenizer.source_digest": tokenizer.source_digest}
            facts[Scope(TOKENIZER, tokenizer.name)] = of_weights | (
                of_code if record.stage == TOKENISE else {}
            )
        # A scope of its own: rows whose records do not know how they decoded are not held to those that do.
        digest = decode_digest(record)
        if digest is not None:
            facts[Scope(DECODED, " ".join(filter(None, stage)))] = {f"environment.{DECODE_DIGEST}": digest}
        # What an evaluation of a pre-trained trunk says of hyperparameters is not the pre-training's.
        prefix = f"{record.stage} " if stage.kind == EVALUATION and record.parents else ""
        return RecordValues(
            stage=stage,
            held={
                scope: self._values(scope, facts.get(scope, {}), texts.get(scope, {}), prefix)
                # No union of their keys: a set's order, and with it the board's, is each process's own.
                for scope in dict.fromkeys((*facts, *texts))
            },
            shown=self._shown(record),
            problems=self._problems(
                record, {name: text for of in texts.values() for name, text in of.items()}
            ),
        )

    def _values(
        self, scope: Scope, facts: Mapping[str, Any], texts: Mapping[str, str], prefix: str
    ) -> Values:
        key = (scope, tuple(facts.items()), tuple(texts.items()), prefix)
        if key not in self._interned:
            values = {name: canonical_json(value) for name, value in facts.items()}
            for name, text in texts.items():
                start = prefix + name if name == "hyperparameters" else name
                values |= {start + path: value for path, value in self._slices[text][1].items()}
            self._interned[key] = values
        return self._interned[key]

    def _shown(self, record: Record) -> Values:
        key = (
            tuple(record.runtime.items()), tuple(record.environment.items()), record.cost.device,
            record.git.commit, record.git.dirty, record.protocol.version, decode_digest(record) is None,
        )  # fmt: skip
        if key not in self._interned:
            facts: dict[str, Any] = {
                f"runtime.{name}": value
                for name, value in record.runtime.items()
                if name not in UNSEEN_RUNTIME
            }
            facts |= {"hardware": record.cost.device, "protocol.version": record.protocol.version}
            facts |= {"git commit": harness_version(record)}
            held = DECODE_DIGEST if decode_digest(record) is not None else ""
            facts |= {
                f"environment.{name}": value for name, value in record.environment.items() if name != held
            }
            self._interned[key] = {name: canonical_json(value) for name, value in facts.items()}
        return self._interned[key]

    def _problems(self, record: Record, texts: Mapping[str, str]) -> tuple[str, ...]:
        """Where values and digests of slices do not belong together: a digest alone proves nothing."""
        stated = record.protocol.slices
        problems = [
            f"{record.cell_id} states a digest of {name}, but none of its values"
            for name in stated
            if name not in texts
        ]
        for name, text in texts.items():
            digest = self._slices[text][0]
            if stated.get(name) == digest or name in UNSLICED:
                continue
            problems.append(
                f"{record.cell_id} contradicts itself: its values of {name} have the digest {digest[:12]}, "
                f"but it states {stated[name][:12]}"
                if name in stated
                else f"{record.cell_id} has values of {name}, but no digest of them"
            )
        return tuple(problems)


def differing(a: Mapping[Scope, Values], b: Mapping[Scope, Values]) -> list[Field]:
    """The fields in which two sets of values differ, of the scopes that both have."""
    return [
        Field(scope, path)
        for scope, values in a.items()
        if scope in b and values is not b[scope] and values != b[scope]
        for path in sorted(values.keys() | b[scope].keys())
        if values.get(path) != b[scope].get(path)
    ]


def shown_field(at: Field) -> str:
    """The path, and the stage where several have it: `data.mean (pretrain)`."""
    scope, path = at
    if not scope.is_of_stage or path.startswith(("pretraining.", "evaluation:", "metrics.")):
        return path
    return f"{path} ({' '.join(part for part in scope if part)})"


def shown_value(value: str | None) -> str:
    """A value as one reads it; of one that is absent, so."""
    if value is None:
        return NOT_SET
    plain = json.loads(value)
    return plain if isinstance(plain, str) and plain else value


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        # A list is one value: a mean of three channels is not three fields.
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}.{name}")
        else:
            flat[f"{prefix}.{name}"] = canonical_json(value)
    return flat


def _stage(record: Record) -> Scope:
    if record.stage == TOKENISE:
        # Tokens of the test images stand beside those of the pre-training images.
        return Scope(TOKENISE, record.data_set.part)
    return Scope(PRETRAIN if record.stage == PRETRAIN else EVALUATION)
