"""What a card says of a record, whoever writes the card: facts, measurements, values and the command.

Two do: leaderboard/cards.py, of cells in a bundle, and benchmark/model_card.py, of converted weights. Nothing
is said that no record says, and the same records give the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from leaderboard.imported import checkpoint_of, is_imported, label_of
from leaderboard.lineage import PRETRAIN, TOKENISE, Lineage, evaluation_name, harness_version
from leaderboard.record import DataUse, Metric, Record, plugin_words
from protocols import list_protocols
from protocols.errors import shown
from protocols.frozen import canonical_json
from protocols.schema import Protocol

CARRIED = (PRETRAIN, TOKENISE)  # stages whose files others use; all else is measured on those
_ONE_LINE = str.maketrans({"\n": " ", "\r": " "})
_MARKUP = str.maketrans({"|": "\\|", "`": "'", "<": "&lt;"})


def plain(text: str) -> str:
    """On one line, and neither a cell of a table nor a tag begins in it: records come from others, too."""
    return one_line(text).translate(_MARKUP)


def one_line(text: str) -> str:
    """`text` without line breaks, or what a terminal would act on: for what stands in a block of code."""
    return shown(text.translate(_ONE_LINE))


def stated(record: Record, lineage: Lineage, protocol: Protocol | None) -> dict[str, str]:
    """Name -> text, in the order of a card. `protocol`: as for `command`."""
    origin = pretraining_of(record, lineage)
    tokenising = record if record.stage == TOKENISE else lineage.ancestor(record, TOKENISE)
    whole = f", digest {protocol.digest}" if holds_equal(record, lineage, protocol) and protocol else ""
    facts = {"protocol": f"{record.protocol.name}, version {record.protocol.version}{whole}"}
    deviations = lineage.deviations(record)
    status = record.compliance.status
    status = "modified" if status == "clean" and deviations is not None else status
    facts["compliance"] = ": ".join([status, *(["; ".join(deviations)] if deviations else [])])
    if record.method is not None:
        facts["method"] = record.method.name + _brought(record.method.plugin)
        facts["its code, SHA-256"] = record.method.source_digest
    tokenizer = record.tokenizer or (tokenising.tokenizer if tokenising else None)
    if tokenizer is not None:
        facts["tokenizer"] = tokenizer.name + _brought(tokenizer.plugin)
        facts["its weights, digest"] = tokenizer.digest or "not recorded"
        facts["its teacher"] = tokenizer.teacher or "not recorded"
    if record.stage == TOKENISE:
        facts["tokens of"] = _images(record.data_set)
    if origin is not None:
        facts["pre-trained on"] = _images(origin.data_set)
    if record.stage not in CARRIED:
        facts["measured on"] = _images(record.data_set)
    for name, digest in sorted(lineage.slices(record).items()):
        facts[f"slice {name}"] = digest
    facts |= {f"file {path}, SHA-256": digest for path, digest in sorted(record.artefacts.items())}
    facts["cell"] = record.cell_id
    if record.parents:
        facts["made from"] = ", ".join(sorted(record.parents))
    if record.trunk is not None:
        facts["trunk"] = record.trunk
    if record.seed is not None:
        facts["seed"] = str(record.seed)
    facts["harness, commit"] = harness_version(record)
    versions = [f"{name} {record.environment[name]}" for name in ("torch", "timm")
                if name in record.environment]  # fmt: skip
    facts["made with"] = ", ".join([*versions, f"on {record.cost.device}"])
    facts["precision"] = str(record.runtime.get("precision", "not stated"))
    facts["images seen"] = f"{record.cost.images_seen:,}"
    facts["training FLOPs (a multiply-add is two)"] = f"{record.cost.train_flops:.3g}"
    facts["training or encoding time"] = f"{record.cost.wall_seconds:,.0f} s"
    if record.attempts:
        facts["ended"] = record.attempts[-1].ended
    return facts


def as_table(facts: Mapping[str, str]) -> Iterator[str]:
    """The lines of `stated` as a table of Markdown."""
    yield "| | |"
    yield "|---|---|"
    for name, value in facts.items():
        yield f"| {plain(name)} | {plain(value)} |"


def measured(record: Record, known: Iterable[Record]) -> Iterator[str]:
    """A row for each metric of the cell itself, and of whatever was measured on the very same files.

    Of a classifier that a cell fine-tuned these are the files that it began with: `of` tells them apart.
    """
    yield "| of | by | seed | metric | value | images | compliance |"
    yield "|---|---|---:|---|---:|---:|---|"
    these = "these tokens" if record.stage == TOKENISE else "these weights"
    for one in (record, *_relatives(record, known)):
        of = these if record.stage in CARRIED or one is record else "their pre-training"
        by = one.stage if one.stage in CARRIED else evaluation_name(one)
        for name, metric in sorted(one.metrics.items()):
            seed = "-" if one.seed is None else str(one.seed)
            yield (
                f"| {of} | {plain(by)} | {seed} | {plain(name)} | {_value(metric)} | {metric.n:,} | "
                f"{one.compliance.status} |"
            )


def values(record: Record) -> Iterator[str]:
    """Every value that moved the cell's numbers, by slice."""
    for name, held in sorted(record.resolved.items()):
        if held:
            yield f"- {plain(name)}: " + ", ".join(
                f"{plain(key)} {plain(_shown(value))}" for key, value in sorted(held.items())
            )


def command(record: Record, lineage: Lineage, protocol: Protocol | None) -> list[str]:
    """The words of the command that makes this very cell. `protocol` is that of its name as it is today.

    The files of a plug-in, of a protocol that the harness does not have, and of imported weights are named
    without their folders, as records name them.
    """
    name = record.protocol.name
    words = ["python", "run_benchmark.py", "--protocol", name if name in list_protocols() else f"{name}.yaml"]
    if record.stage == TOKENISE:
        words.insert(2, "tokenize")
    elif is_imported(record):
        words += [
            "--from-checkpoint",
            str(checkpoint_of(record).get("file") or "FILE"),
            "--label",
            label_of(record),
        ]
    elif record.method is not None:
        words += ["--methods", record.method.name]
    if record.tokenizer is not None:
        words += ["--tokenizers", record.tokenizer.name]
    if record.stage != TOKENISE:
        words += ["--trunks", record.trunk] if record.trunk else []
        words += [] if record.seed is None else ["--seeds", str(record.seed)]
        words += [] if record.stage == PRETRAIN else ["--evaluations", evaluation_name(record)]
        words += [] if is_imported(record) else ["--views", "none"]
    words += plugin_words([use.plugin for use in (record.method, record.tokenizer) if use is not None])
    return [*words, *(word for one in _set(record, lineage, protocol) for word in ("--set", one))]


def holds_equal(record: Record, lineage: Lineage, protocol: Protocol | None) -> bool:
    """True if `protocol` holds equal what the record's did, but for what --set or a view changed.

    What a plug-in brings is in no protocol.
    """
    use = record.protocol
    if protocol is None or (use.name, use.version) != (protocol.name, protocol.version):
        return False
    if _said(record, lineage):
        return True  # --set says what is not equal
    current = protocol.slices
    brought = {one for one in lineage.slices(record) if one.startswith("tokenizer:") and one not in current}
    # A view may try other values of the recipe: the command sets them.
    return lineage.differing(record, current).keys() <= {"pretraining", *brought}


def pretraining_of(record: Record, lineage: Lineage) -> Record | None:
    """The pre-training that the cell is, or began with."""
    return record if record.stage == PRETRAIN else lineage.ancestor(record, PRETRAIN)


def _set(record: Record, lineage: Lineage, protocol: Protocol | None) -> list[str]:
    """SLICE.FIELD=VALUE of what the protocol has otherwise, because --set moved it or a view tries it."""
    changed: dict[str, str] = {}
    origin = pretraining_of(record, lineage)
    if protocol is not None and origin is not None and holds_equal(record, lineage, protocol):
        held: dict[str, tuple[str, Mapping[str, Any]]] = {
            "pretraining": ("pretraining", protocol.slice("pretraining"))
        }
        if origin.method and origin.trunk and origin.method.name in protocol.names("methods"):
            key = protocol.method_key(origin.method.name, origin.trunk)
            held["hyperparameters"] = (
                f"methods.{key}",
                protocol.method_values(origin.method.name, origin.trunk),
            )
        for name, (path, own) in held.items():
            for field, value in origin.resolved.get(name, {}).items():
                if field in own and canonical_json(own[field]) != canonical_json(value):
                    changed[f"{path}.{field}"] = canonical_json(value)
    changed |= dict(one.split("=", 1) for one in _said(record, lineage))
    return [f"{path}={value}" for path, value in changed.items()]


def _said(record: Record, lineage: Lineage) -> list[str]:
    """The deviations that are a --set. Others are sentences, and may name a file with = in its name."""
    return [one for one in lineage.deviations(record) or () if re.fullmatch(r"[^\s=]+=.*", one)]


def _relatives(record: Record, known: Iterable[Record]) -> list[Record]:
    """Finished evaluations of the very files that `record` made, or began with: by name, seed and cell."""
    made = {record.cell_id: record.artefact_digest} if record.stage in CARRIED else record.parents
    found = [
        one
        for one in known
        if one.status == "done"
        and one.stage not in CARRIED
        and one.cell_id != record.cell_id
        and made.items() & one.parents.items()
    ]
    return sorted(found, key=lambda one: (evaluation_name(one), one.seed or 0, one.cell_id))


def _images(data: DataUse) -> str:
    return f"{data.n:,} images of {data.name} ({data.part}), digest {data.digest}"


def _brought(plugin: str) -> str:
    return f" (brought by the plug-in {plugin})" if plugin else ""


def _value(metric: Metric) -> str:
    number = f"{metric.value:,.2f}" if abs(metric.value) < 1e6 else f"{metric.value:.3g}"
    return plain(f"{number} {metric.unit}".strip())


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return f"({', '.join(f'{key} {_shown(one)}' for key, one in sorted(value.items()))})"
    return "none" if value is None else str(value)
