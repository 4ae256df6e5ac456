"""The card of a cell whose files others use, a pre-training or a tokenizer: made from records alone.

Nothing is said that no record says, and the same records give the same text. What makes a card of converted
weights, which knows the file and how timm loads it, is benchmark/model_card.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from leaderboard.lineage import PRETRAIN, TOKENISE, Lineage, evaluation_name, harness_version
from leaderboard.record import Metric, Record

CARD_NAME = "card.md"
CARRIED = (PRETRAIN, TOKENISE)  # stages whose cells have a card
_ONE_LINE = str.maketrans({"\n": " ", "\r": " "})
_MARKUP = str.maketrans({"|": "\\|", "`": "'", "<": "&lt;"})


def card_text(record: Record, relatives: Iterable[Record]) -> str:
    """The card of `record` in Markdown. `relatives`: records among which its parents and children stand."""
    known = list(relatives)
    lineage = Lineage([*known, record])
    tokenising = record if record.stage == TOKENISE else lineage.ancestor(record, TOKENISE)
    sections = (
        _opening(record, lineage),
        _facts(record, tokenising, lineage),
        _measured([record, *_descendants(record, known)]),
        _values(record),
        _command(record, lineage),
    )
    return "\n".join("\n".join(lines) + "\n" for lines in map(list, sections) if lines)


def _opening(record: Record, lineage: Lineage) -> Iterator[str]:
    yield f"# {_plain(record.cell_id)}"
    yield ""
    if record.stage == TOKENISE:
        name = record.tokenizer.name if record.tokenizer else "a tokenizer"
        yield f"The tokens of {_data(record)} by the tokenizer {_plain(name)}: one token for each patch."
    else:
        method = record.method.name if record.method else "no method"
        yield (
            f"A trunk {_plain(record.trunk or '')} pre-trained by {_plain(method)} on {_data(record)}, "
            f"seed {record.seed}."
        )
    deviations = lineage.deviations(record)
    if deviations is not None:
        yield ""
        changed = "; ".join(map(_plain, deviations))
        yield f"**Not under the protocol as it stands**, and not comparable with its board: {changed}."


def _facts(record: Record, tokenising: Record | None, lineage: Lineage) -> Iterator[str]:
    yield "## What it is"
    yield ""
    yield "| | |"
    yield "|---|---|"
    for name, value in _stated(record, tokenising, lineage):
        yield f"| {_plain(name)} | {_plain(value)} |"


def _stated(record: Record, tokenising: Record | None, lineage: Lineage) -> Iterator[tuple[str, str]]:
    yield "protocol", f"{record.protocol.name}, version {record.protocol.version}"
    yield "compliance", record.compliance.status
    if record.method is not None:
        yield "method", record.method.name + _brought(record.method.plugin)
        yield "its code, SHA-256", record.method.source_digest
    tokenizer = record.tokenizer or (tokenising.tokenizer if tokenising else None)
    if tokenizer is not None:
        yield "tokenizer", tokenizer.name + _brought(tokenizer.plugin)
        yield "its weights, digest", tokenizer.digest or "not recorded"
        yield "its teacher", tokenizer.teacher or "not recorded"
    yield "data set", f"{record.data_set.name}, {record.data_set.n:,} images ({record.data_set.part})"
    yield "its pixels, digest", record.data_set.digest
    for name, digest in sorted(lineage.slices(record).items()):
        yield f"slice {name}", digest
    for path, digest in sorted(record.artefacts.items()):
        yield f"file {path}, SHA-256", digest
    for cell_id in sorted(record.parents):
        yield "made from", cell_id
    yield "harness, commit", harness_version(record)
    yield "precision and device", f"{record.runtime.get('precision', 'not stated')}, {record.cost.device}"
    yield "images seen", f"{record.cost.images_seen:,}"
    yield "training FLOPs (a multiply-add is two)", f"{record.cost.train_flops:.3g}"
    yield "training or encoding time", f"{record.cost.wall_seconds:,.0f} s"
    if record.attempts:
        yield "ended", record.attempts[-1].ended


def _measured(records: Sequence[Record]) -> Iterator[str]:
    """A row for each metric of the cell itself and of what was measured on its files."""
    yield "## What was measured"
    yield ""
    yield "| by | seed | metric | value | images | compliance |"
    yield "|---|---:|---|---:|---:|---|"
    for record in records:
        by = record.stage if record.stage in CARRIED else evaluation_name(record)
        for name, metric in sorted(record.metrics.items()):
            seed = "-" if record.seed is None else str(record.seed)
            yield (
                f"| {_plain(by)} | {seed} | {_plain(name)} | {_value(metric)} | {metric.n:,} | "
                f"{record.compliance.status} |"
            )


def _values(record: Record) -> Iterator[str]:
    """Every value that moved the cell's numbers, by slice."""
    yield "## The values that it was made with"
    yield ""
    for name, values in sorted(record.resolved.items()):
        if values:
            yield f"- {_plain(name)}: " + ", ".join(
                f"{_plain(key)} {_plain(_shown(value))}" for key, value in sorted(values.items())
            )


def _command(record: Record, lineage: Lineage) -> Iterator[str]:
    """The command that makes such a cell; the file of a plug-in, or of a protocol, is for the reader."""
    words = ["python", "run_benchmark.py", "--protocol", record.protocol.name]
    if record.stage == TOKENISE:
        words.insert(2, "tokenize")
        words += ["--tokenizers", record.tokenizer.name] if record.tokenizer else []
    else:
        words += ["--methods", record.method.name] if record.method else []
        words += ["--tokenizers", record.tokenizer.name] if record.tokenizer else []
        words += ["--trunks", record.trunk] if record.trunk else []
        words += [] if record.seed is None else ["--seeds", str(record.seed)]
    for one in lineage.deviations(record) or ():
        words += ["--set", one] if "=" in one else []
    yield "## How to make it again"
    yield ""
    yield f"At commit {_plain(harness_version(record))}:"
    yield ""
    yield "    " + shlex.join(words).translate(_ONE_LINE)


def _descendants(record: Record, known: Iterable[Record]) -> list[Record]:
    """Evaluations of the very files of `record`, whoever made them: by name, seed and cell."""
    found = [
        one
        for one in known
        if one.status == "done"
        and one.stage not in CARRIED
        and one.parents.get(record.cell_id) == record.artefact_digest
    ]
    return sorted(found, key=lambda one: (evaluation_name(one), one.seed or 0, one.cell_id))


def _data(record: Record) -> str:
    return f"{record.data_set.n:,} images of {_plain(record.data_set.name)}"


def _brought(plugin: str) -> str:
    return f" (brought by the plug-in {plugin})" if plugin else ""


def _value(metric: Metric) -> str:
    number = f"{metric.value:,.2f}" if abs(metric.value) < 1e6 else f"{metric.value:.3g}"
    return _plain(f"{number} {metric.unit}".strip())


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return f"({', '.join(f'{key} {_shown(one)}' for key, one in sorted(value.items()))})"
    return "none" if value is None else str(value)


def _plain(text: str) -> str:
    """On one line, and neither a cell of a table nor a tag begins in it: records come from others, too."""
    return text.translate(_ONE_LINE).translate(_MARKUP)
