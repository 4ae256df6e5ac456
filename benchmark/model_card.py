"""The card of converted weights: what they are, how timm loads them, where they come from.

Of a cell's weights all is taken from records; nothing is said of what no record says. Of a file from
elsewhere the card names its bytes and lists what is not known. The same facts give the same text.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.convert_sizes import BY_OPTION, VitSizes
from benchmark.inputs import EMBEDDED_SETS
from benchmark.published_classifiers import publication
from leaderboard.card_parts import (
    as_table,
    command,
    holds_equal,
    measured,
    plain,
    pretraining_of,
    stated,
    values,
)
from leaderboard.imported import is_imported
from leaderboard.lineage import PRETRAIN, Lineage, evaluation_name, harness_version
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
    """All that a card is made from. `relatives` are the records of the work dir that `record` comes from;
    `stored` says which kinds of numbers the file holds."""

    out_name: str
    file_name: str
    sha256: str
    key: str
    form: str
    stored: str
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
    lineage = Lineage([*facts.relatives, record])
    protocol = _protocol_of(record)
    data = record.resolved.get("data", {})
    yield "Images are RGB, scaled to [0, 1] and normalised by channel: " + (
        f"mean {_numbers(data.get('mean'))}, standard deviation {_numbers(data.get('std'))}."
    )
    yield ""
    yield "## What it is"
    yield ""
    own = {"weights": facts.file_name, "done to the weights": "; ".join(facts.changes) or "nothing"}
    yield from as_table(stated(record, lineage, protocol) | {"method": _method(record)} | own)
    yield ""
    yield "## What was measured"
    yield ""
    yield from measured(record, facts.relatives)
    yield ""
    yield "One pre-training and one seed: what its method gives on average, and how sure that is, is said by"
    yield "a board over several seeds and not by this table."
    yield ""
    yield "## How it was made"
    origin = pretraining_of(record, lineage)
    for one in (origin, record) if origin is not None and origin is not record else (record,):
        yield ""
        yield f"The values of the {one.stage} cell:"
        yield ""
        yield from values(one)
    yield ""
    yield f"At commit {plain(harness_version(record))}; a file that is named here is for the reader to bring:"
    yield ""
    yield "```"
    brought = [] if record.data_set.name in EMBEDDED_SETS else ["--data-root", "DIR"]
    yield shlex.join([*command(record, lineage, protocol), *brought])
    cell = f"runs/{record.protocol.name}/cells/{record.cell_id}"
    yield shlex.join(["python", "run_benchmark.py", "convert", cell, facts.out_name])
    yield "```"
    if not holds_equal(record, lineage, protocol):
        yield ""
        yield "No protocol that comes with this harness today has that name, version and these slices: either"
        yield "`--protocol` takes the protocol's own file, or the commit above has it."
    yield ""
    yield "## Licence"
    yield ""
    yield "The harness is Apache-2.0. No record gives these weights a licence of their own: the terms of the"
    images, tokenizer = (origin or record).data_set.name, record.tokenizer
    yield f"images that they were trained on ({plain(images)}) hold" + (
        ", which the harness's NOTICE states." if images in EMBEDDED_SETS else "."
    )
    if is_imported(record):
        yield "So do those of whoever published the weights that the training began with."
    if tokenizer is not None and tokenizer.teacher and not tokenizer.teacher.startswith("none"):
        yield f"So do those of the tokenizer's teacher: {plain(tokenizer.teacher)}."


def _method(record: Record) -> str:
    """The objective, and where its definition stands; of weights from elsewhere, that none is known."""
    if record.method is None:
        return "none"
    name, plugin = record.method.name, record.method.plugin
    if is_imported(record):
        return f"{name}: the weights that it began with come from elsewhere, and their objective is not known"
    if plugin:
        return f"{name} ({record.method.title or name}), which the plug-in {plugin} brought"
    known = method_spec(name) if name in list_methods() else None
    return f"{name} ({known.title}, {known.paper})" if known else name


def _published(facts: CardFacts) -> Iterator[str]:
    yield "## Where it comes from"
    entry = f", entry `{facts.key}`" if facts.key else ""
    yield f"- file: `{facts.file_name}`{entry}"
    yield f"- SHA-256: `{facts.sha256}`"
    yield f"- names in it: {facts.form}"
    yield f"- numbers: {facts.stored}"
    yield f"- done to the weights: {'; '.join(facts.changes) or 'nothing'}"
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


def _protocol_of(record: Record) -> Protocol | None:
    """The protocol of that name as it is today, if one comes with the harness."""
    name = record.protocol.name
    return load_protocol(name) if name in list_protocols() else None


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
