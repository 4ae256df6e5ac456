"""The tokenizer card of one token store, from its record, as `tokenize` prints it."""

from __future__ import annotations

import textwrap

from leaderboard.record import Metric, Record

# Metric -> name and meaning, in the order of the card. `{n}` is the metric's own count of images.
FIGURES = {
    "codebook_use_percent": ("codebook use", "of the codes are carried by some patch"),
    "dead_codes": ("dead codes", "carried by none"),
    "perplexity": ("perplexity", "as many codes used evenly would be as hard to guess"),
    "concentration_percent": ("commonest 1 %", "of all patches carry one of the commonest 1 % of the codes"),
    "images_per_second": ("rate", "encoding alone; it depends on the machine"),
    "batch_agreement_percent": (
        "batch agreement",
        "of the tokens of {n} images same at batch sizes 1 and 64",
    ),
}
_LABEL, _VALUE = 17, 15


def card_text(record: Record, width: int) -> str:
    """The card of a done tokenising record, at most `width` columns wide but for paths, which stay whole."""
    assert record.tokenizer is not None
    data, codebook = record.data_set, record.metrics.get("codebook_size")
    heading = f"{record.tokenizer.name}, {data.part} images of {data.name}"
    facts = [
        ("store", _store(record)),
        ("teacher", record.tokenizer.teacher),
        ("images", f"{data.n:,}"),
        ("codebook", _shown(codebook) if codebook else "not recorded"),
    ]
    lines = [heading, "-" * min(len(heading), width)]
    lines += [_wrapped(text, label.ljust(_LABEL), width) for label, text in facts]
    known = [name for name in FIGURES if name in record.metrics]
    further = sorted(set(record.metrics) - set(FIGURES) - {"codebook_size"})
    for name in (*known, *further):
        metric = record.metrics[name]
        label, meaning = FIGURES.get(name, (name, ""))
        # `dead codes 3 codes` would say one word twice.
        value = _shown(metric).removesuffix(" codes") if label.endswith(" codes") else _shown(metric)
        first = f"{label.ljust(_LABEL)}{value.ljust(_VALUE)}"
        # A long value keeps its distance from what follows.
        first += "  " if meaning and len(value) >= _VALUE else ""
        lines.append(_wrapped(meaning.format(n=metric.n), first, width).rstrip())
    return "\n".join(lines)


def _store(record: Record) -> str:
    """The store's folder in the work dir: the one artefact that is a manifest names it."""
    return next(
        (path.rpartition("/")[0] for path in record.artefacts if path.endswith("/manifest.json")),
        "not recorded",
    )


def _shown(metric: Metric) -> str:
    value = metric.value
    if metric.unit == "%":
        # Nothing but 100 reads as 100.
        number = f"{min(value, 99.99) if value < 100 else value:.2f}"
    else:
        number = f"{value:,.0f}" if value == round(value) or abs(value) >= 100 else f"{value:#.3g}"
    return f"{number} {metric.unit}".rstrip()


def _wrapped(text: str, first: str, width: int) -> str:
    if not text:
        return first
    return textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=" " * (_LABEL + _VALUE if len(first) > _LABEL else _LABEL),
        break_long_words=False,
        break_on_hyphens=False,
    )
