"""The card of converted weights: what they are, how timm loads them, where they come from.

Of a cell's weights all is taken from records; nothing is said of what no record says. Of a file from
elsewhere the card names its bytes and lists what is not known. The same facts give the same text.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmark.convert_sizes import BY_OPTION, VitSizes
from benchmark.inputs import EMBEDDED_SETS
from benchmark.published_classifiers import publication
from leaderboard.imported import is_imported, label_of
from leaderboard.lineage import PRETRAIN, evaluation_name
from leaderboard.record import Record
from methods import list_methods, method_spec
from protocols import list_protocols, load_protocol
from protocols.errors import shown
from protocols.schema import Protocol

NOT_KNOWN = (
    "who trained them, and with which objective, recipe, length and seed",
    "on which images, and how those were cropped and normalised",
    "which tokenizer made the tokens that were predicted, if any",
    "under which licence they may be used: that of whoever published them",
)


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All that a card is made from. `relatives` are the records of the work dir that `record` comes from."""

    out_name: str
    source: Path
    file_name: str
    sha256: str
    key: str
    form: str
    changes: Sequence[str]
    sizes: VitSizes
    heads: int
    heads_by: str
    record: Record | None
    relatives: Sequence[Record]

    @property
    def python(self) -> tuple[str, ...]:
        """The lines that load the weights, strictly, and use them once."""
        name, size = self.sizes.timm_name(self.heads), self.sizes.image_size
        path = json.dumps(self.out_name)
        if name is not None:
            beside = _arguments(self.sizes.beside_sizes)
            made = [f'model = timm.create_model("{name}", {beside}, checkpoint_path={path})']
        else:
            made = [
                f"model = timm.models.VisionTransformer({_arguments(self.sizes.arguments(self.heads))})",
                f"timm.models.load_checkpoint(model, {path})",
            ]
        what = "logits" if self.sizes.classes else "features"
        width = self.sizes.classes or self.sizes.width
        used = f"{what} = model.eval()(torch.zeros(1, 3, {size}, {size}))  # (1, {width})"
        return ("import timm, torch", *made, used)

    @cached_property
    def pretraining(self) -> Record | None:
        """The record of the pre-training that the weights are, or began with."""
        if self.record is None or self.record.stage == PRETRAIN:
            return self.record
        return next((one for one in self.relatives if one.cell_id in self.record.parents), None)

    @cached_property
    def descendants(self) -> tuple[Record, ...]:
        """What was measured on these weights, or from them on: by evaluation, seed and cell."""
        origin = self.pretraining
        if origin is None:
            return () if self.record is None else (self.record,)
        found = [
            one
            for one in self.relatives
            if one.status == "done" and one.parents.get(origin.cell_id) == origin.artefact_digest
        ]
        return tuple(sorted(found, key=lambda one: (evaluation_name(one), one.seed or 0, one.cell_id)))


def model_card(facts: CardFacts) -> str:
    """The card's text, in Markdown."""
    body = _published(facts) if facts.record is None else _of_cell(facts, facts.record)
    # A record that came in a bundle may hold any text: none of it may begin a line of its own.
    return "\n".join([*(shown(" ".join(line.split("\n"))) for line in (*_opening(facts), *body)), ""])


def _opening(facts: CardFacts) -> Iterator[str]:
    sizes = facts.sizes
    title = facts.file_name if facts.record is None else _row(facts.record)
    yield f"# {facts.out_name}: {title}"
    yield ""
    head = f"with a head of {sizes.classes} classes" if sizes.classes else "without a head"
    pooled = "the mean of the patch tokens through `fc_norm`" if sizes.pooling == "avg" else "the class token"
    yield f"A vision transformer under timm's names, {head}: {sizes.described}, {facts.heads} attention heads"
    yield f"({facts.heads_by}). It gives {pooled}. timm loads it strictly:"
    yield ""
    yield "```python"
    yield from facts.python
    yield "```"
    yield ""
    if sizes.timm_name(facts.heads) is None:
        yield "timm has no name for a model of these sizes, so it is built from them."
        yield ""


def _of_cell(facts: CardFacts, record: Record) -> Iterator[str]:
    origin = facts.pretraining
    data = record.resolved.get("data", {})
    yield "Images are RGB, scaled to [0, 1] and normalised by channel: " + (
        f"mean {_numbers(data.get('mean'))}, standard deviation {_numbers(data.get('std'))}."
    )
    yield ""
    yield "## What it is"
    yield from _bullets(_identity(facts, record, origin))
    if facts.changes:
        yield from _bullets({"done to the weights": "; ".join(facts.changes)})
    yield ""
    yield "## What was measured"
    yield from _metrics(facts)
    yield ""
    yield "## How it was made"
    if origin is not None and origin is not record:
        yield from _recipe(origin)
    yield from _recipe(record)
    yield "```"
    yield from _commands(facts, record)
    yield "```"
    current = _current(record)
    if current is None:
        yield ""
        yield "No protocol that comes with this harness today has that name and these slices: `--protocol`"
        yield "takes the protocol's file, or the commit above has it."
    yield ""
    yield "## Licence"
    yield "The harness is Apache-2.0. No record gives these weights a licence of their own: the terms of the"
    yield f"images that they were trained on ({record.data_set.name}) hold" + (
        ", which the harness's NOTICE states." if record.data_set.name in EMBEDDED_SETS else "."
    )
    tokenizer = (origin or record).tokenizer
    if tokenizer is not None and tokenizer.teacher and not tokenizer.teacher.startswith("none"):
        yield f"So do those of the tokenizer's teacher: {tokenizer.teacher}."


def _identity(facts: CardFacts, record: Record, origin: Record | None) -> Iterator[tuple[str, str]]:
    yield "method", _method(record)
    if record.method and record.method.source_digest:
        yield "its code", f"SHA-256 `{record.method.source_digest}`"
    current = _current(record)
    whole = f", digest `{current.digest}`" if current else ""
    yield "protocol", f"`{record.protocol.name}`, version {record.protocol.version}{whole}"
    slices = dict((origin or record).protocol.slices) | dict(record.protocol.slices)
    for name, digest in sorted(slices.items()):
        yield f"slice {name}", f"`{digest}`"
    status = record.compliance
    if origin is not None and status.status == "clean":
        status = origin.compliance
    yield (
        "compliance",
        ": ".join([status.status, *(["; ".join(status.deviations)] if status.deviations else [])]),
    )
    tokenizer = (origin or record).tokenizer
    if tokenizer is not None:
        teacher = f"; its teacher: {tokenizer.teacher}" if tokenizer.teacher else ""
        yield "tokenizer", f"`{tokenizer.name}`, digest `{tokenizer.digest}`{teacher}"
    seen = origin or record
    yield (
        "images",
        f"{seen.data_set.n:,} of {seen.data_set.name} ({seen.data_set.part}), "
        f"digest `{seen.data_set.digest}`",
    )
    if origin is not record:
        yield "labels", f"fine-tuned and measured on {record.data_set.name}"
    yield "trunk", f"`{record.trunk}`"
    yield "seed", str(record.seed)
    yield "cell", f"`{record.cell_id}`"
    yield "file", f"`{facts.file_name}`, SHA-256 `{facts.sha256}`"
    changed = ", with uncommitted changes" if record.git.dirty else ""
    yield "harness", f"commit `{record.git.commit}`{changed}"
    versions = (
        f"{name} {record.environment[name]}" for name in ("torch", "timm") if name in record.environment
    )
    yield "made with", ", ".join([*versions, f"on {record.cost.device}"])


def _method(record: Record) -> str:
    """The objective, and where its definition stands; of weights from elsewhere, that none is known."""
    if record.method is None:
        return "none"
    name, plugin = record.method.name, record.method.plugin
    if is_imported(record):
        return (
            f"`{name}`: the weights that it began with come from elsewhere, and their objective is not known"
        )
    if plugin:
        return f"`{name}` ({record.method.title or name}), which the plug-in {plugin} brought"
    known = method_spec(name) if name in list_methods() else None
    return f"`{name}` ({known.title}, {known.paper})" if known else f"`{name}`"


def _metrics(facts: CardFacts) -> Iterator[str]:
    if not facts.descendants:
        yield "Nothing yet: no finished evaluation of these weights lies beside them."
        return
    yield "| of | evaluation | metric | value | images | seed | compliance |"
    yield "|---|---|---|---:|---:|---:|---|"
    for record in facts.descendants:
        of, status = _measured_of(facts, record), record.compliance.status
        for name, metric in sorted(record.metrics.items()):
            yield (
                f"| {of} | {evaluation_name(record)} | {name} | {metric.value:.2f} {metric.unit} | "
                f"{metric.n:,} | {record.seed} | {status} |"
            )
    yield ""
    yield "One pre-training and one seed: what its method gives on average, and how sure that is, is said by"
    yield "a board over several seeds and not by this table."


def _measured_of(facts: CardFacts, record: Record) -> str:
    """Of a classifier its own cell alone speaks; of a pre-training all that began with it."""
    is_own = facts.record is facts.pretraining or (facts.record and facts.record.cell_id == record.cell_id)
    return "these weights" if is_own else "their pre-training"


def _recipe(record: Record) -> Iterator[str]:
    yield f"The values of the {record.stage} cell that are not those of the data and the trunk:"
    yield ""
    for name in sorted(record.resolved):
        if name.startswith(("data", "trunk:")):
            continue
        values = record.resolved[name]
        if values:
            said = ", ".join(f"{key} {_plain(value)}" for key, value in sorted(values.items()))
            yield f"- {name}: {said}"
    yield ""


def _commands(facts: CardFacts, record: Record) -> Iterator[str]:
    words = ["python", "run_benchmark.py", "--protocol", record.protocol.name]
    if is_imported(record):
        file = str(record.resolved.get("checkpoint", {}).get("file", "FILE"))
        words += ["--from-checkpoint", file, "--label", label_of(record)]
    elif record.method is not None:
        words += ["--methods", record.method.name]
        words += ["--plugin", record.method.plugin] if record.method.plugin else []
    tokenizer = (facts.pretraining or record).tokenizer
    if tokenizer is not None:
        words += ["--tokenizers", tokenizer.name]
    words += ["--trunks", record.trunk or "", "--seeds", str(record.seed)]
    if record.stage != PRETRAIN:
        words += ["--evaluations", evaluation_name(record)]
    if record.compliance.status == "modified":
        words += [word for one in record.compliance.deviations for word in ("--set", one)]
    if record.data_set.name not in EMBEDDED_SETS:
        words += ["--data-root", "DIR"]
    yield shlex.join(words)
    cell = f"runs/{record.protocol.name}/cells/{record.cell_id}"
    yield shlex.join(["python", "run_benchmark.py", "convert", cell, facts.out_name])


def _published(facts: CardFacts) -> Iterator[str]:
    yield "## Where it comes from"
    entry = f", entry `{facts.key}`" if facts.key else ""
    yield from _bullets(
        {
            "file": f"`{facts.file_name}`{entry}",
            "SHA-256": f"`{facts.sha256}`",
            "names in it": facts.form,
            "done to the weights": "; ".join(facts.changes) or "nothing",
        }
    )
    yield ""
    yield "This harness did not train them. Not known:"
    for one in NOT_KNOWN:
        yield f"- {one}"
    known = publication().files.get(facts.file_name)
    if known is not None:
        yield ""
        yield f"A file of this name was released with {publication().source}, which reports"
        yield f"{known.top1_percent} % top-1 on {publication().data_set}. No digest was published that would"
        yield "show that this is that file."
    yield ""
    yield "## How it was converted"
    yield "```"
    key = ["--key", facts.key] if facts.key else []
    heads = ["--heads", str(facts.heads)] if facts.heads_by == BY_OPTION else []
    yield shlex.join(["python", "run_benchmark.py", "convert", facts.file_name, facts.out_name, *key, *heads])
    yield "```"


def _current(record: Record) -> Protocol | None:
    """The protocol of that name as it is now, if it holds the very same things equal as `record`'s did."""
    if record.protocol.name not in list_protocols():
        return None
    protocol = load_protocol(record.protocol.name)
    return protocol if record.protocol.slices.items() <= protocol.slices.items() else None


def _row(record: Record) -> str:
    parts = [record.method.name if record.method else "", record.tokenizer.name if record.tokenizer else ""]
    how = "pre-trained" if record.stage == PRETRAIN else f"{evaluation_name(record)} of"
    return f"{how} {'/'.join(part for part in [*parts, record.trunk or ''] if part)}, seed {record.seed}"


def _arguments(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}" for name, value in values.items()
    )


def _numbers(values: Any) -> str:
    return "not stated" if values is None else ", ".join(f"{value:g}" for value in values)


def _plain(value: Any) -> str:
    return (
        "none"
        if value is None
        else ", ".join(map(str, value))
        if isinstance(value, list | tuple)
        else str(value)
    )


def _bullets(values: Any) -> Iterator[str]:
    for name, value in values.items() if isinstance(values, Mapping) else values:
        yield f"- {name}: {value}"
