"""How the rows and columns of a view's table are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from leaderboard.grids import EVALUATION_NAMES, MISSING, clean, method_name
from leaderboard.view_layout import (
    CUTTING_POINT,
    ViewColumn,
    ViewLayout,
    own_value,
    shown_reconstruction_ratio,
)
from protocols.schema import Protocol

TOKENIZER_NAMES = {"vq-kd": "VQ-KD", "k-clip": "k-CLIP", "dall-e": "DALL-E"}
METRIC_NAMES = {"top1_percent": "top-1", "top5_percent": "top-5"}


def trunk_name(name: str) -> str:
    """The trunk's name as the paper writes it: ViT-T."""
    head, _, size = clean(name).partition("-")
    return f"ViT-{size.upper() if len(size) == 1 else size}" if head == "vit" and size else clean(name)


def tokenizer_name(name: str) -> str:
    """The tokenizer's name as its paper writes it."""
    return TOKENIZER_NAMES.get(name, clean(name))


def row_headers(layout: ViewLayout, *, has_epochs: bool) -> tuple[str, ...]:
    headers = ["method"] if any(row.method for row in layout.rows) else []
    headers += ["tokenizer"] if any(row.tokenizer for row in layout.rows) else []
    headers += ["epochs"] if has_epochs and "epochs" not in layout.tried else []
    for name in layout.tried:
        headers.append(name.replace("_", " "))
    # Beside other tried values it would say the same of some rows, and nothing of the others.
    headers += ["reconstruction ratio"] if layout.tried == (CUTTING_POINT,) else []
    return tuple(headers)


def row_texts(
    protocol: Protocol, layout: ViewLayout, index: int, headers: Sequence[str], names: Mapping[str, str]
) -> tuple[str, ...]:
    """The texts that name a row. Of a value that the row does not try, the protocol's own stands there.

    `names` are those of methods that plug-ins brought.
    """
    row = layout.rows[index]
    trunks = [
        column.trunk for position, column in enumerate(layout.columns) if (index, position) in layout.fed
    ]
    values = {
        name: [
            layout.trials[index].get(name, own_value(protocol, name, method=row.method, trunk=trunk))
            for trunk in dict.fromkeys(trunks)
        ]
        for name in ("epochs", *layout.tried)
    }
    ratios = [
        shown_reconstruction_ratio(int(value), patches=protocol.trunk_spec(trunk, drop_path=0.0).patches)
        for trunk, value in zip(dict.fromkeys(trunks), values.get(CUTTING_POINT, ()), strict=False)
        if value is not None
    ]
    texts = {
        "method": names.get(row.method, method_name(row.method)) if row.method else MISSING,
        "tokenizer": tokenizer_name(row.tokenizer) if row.tokenizer else MISSING,
        "reconstruction ratio": _joined(ratios),
    }
    texts |= {name.replace("_", " "): _joined(found) for name, found in values.items()}
    return tuple(texts[header] for header in headers)


def _joined(values: Iterable[Any]) -> str:
    """One text where all trunks share it, else all of them."""
    return "/".join(dict.fromkeys(clean(str(value)) for value in values if value is not None)) or MISSING


def row_label(layout: ViewLayout, index: int, names: Mapping[str, str]) -> str:
    row = layout.rows[index]
    parts = [names.get(row.method, method_name(row.method))] if row.method else []
    parts += [tokenizer_name(row.tokenizer)] if row.tokenizer else []
    parts += [f"{name.replace('_', ' ')} {value}" for name, value in layout.trials[index].items()]
    return clean(", ".join(parts))


def only_trunk(columns: Sequence[ViewColumn]) -> str:
    trunks = {column.trunk for column in columns}
    return trunk_name(trunks.pop()) if len(trunks) == 1 and "" not in trunks else ""


def column_labels(columns: Sequence[ViewColumn], *, metrics: int) -> tuple[str, ...]:
    """`ViT-T linear probe`: a trunk that all share is left to a note, a metric that all share goes unsaid."""
    trunks = {column.trunk for column in columns}
    return tuple(
        " ".join(
            part
            for part in (
                trunk_name(column.trunk) if column.trunk and len(trunks) > 1 else "",
                EVALUATION_NAMES.get(column.evaluation, clean(column.evaluation)),
                METRIC_NAMES[column.metric] if metrics > 1 else "",
            )
            if part
        )
        for column in columns
    )
