"""Classifiers that were trained elsewhere and only measured here: a row per record, beside what is reported.

Nothing of them is the protocol's but the images and the evaluation's transform, so they stand on no row of
the board. Whatever is said of a file comes from its record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from leaderboard.frames import Order, typed
from leaderboard.lineage import VALIDATE, Lineage, runtime_choice
from leaderboard.record import Record
from leaderboard.statistics import accuracy_interval

COLUMNS = [
    "file", "sha256", "key", "pooling", "trunk", "data", "images", "top1_percent", "top1_low_percent",
    "top1_high_percent", "top5_percent", "reported_top1_percent", "reported_by", "difference_points",
    "difference_low_points", "difference_high_points", "deviations", "differing_slices", "precision",
    "device", "hardware", "wall_seconds", "cell_id",
]  # fmt: skip


def validations_frame(
    records: Sequence[Record], lineage: Lineage, current: Mapping[str, str], order: Order
) -> pd.DataFrame:
    """One line per classifier that was only measured, by trunk and file name."""
    lines = [
        _line(record, lineage.differing(record, current))
        for record in records
        if record.stage == VALIDATE and record.status == "done" and _images(record)
    ]
    lines.sort(key=lambda line: (order.of_trunk(line["trunk"]), line["file"], line["cell_id"]))
    return typed(pd.DataFrame(lines, columns=COLUMNS))


def _images(record: Record) -> int:
    """How many images the top-1 is of; 0 where none was measured."""
    metric = record.metrics.get("top1_percent")
    return metric.n if metric is not None else 0


def _line(record: Record, differing: Mapping[str, str]) -> dict[str, Any]:
    stated, metrics = record.resolved.get("checkpoint", {}), record.metrics
    top1 = metrics["top1_percent"]
    top5 = metrics.get("top5_percent")
    low, high = accuracy_interval(min(max(round(top1.value / 100 * top1.n), 0), top1.n), top1.n)
    reported = stated.get("reported_top1_percent")
    is_number = isinstance(reported, float) and math.isfinite(reported)
    reported = reported if is_number else None
    return {
        **{name: str(stated.get(name) or "") for name in ("file", "sha256", "key", "pooling", "reported_by")},
        "trunk": record.trunk or "",
        "data": record.data_set.name,
        "images": top1.n,
        "top1_percent": top1.value,
        "top1_low_percent": low,
        "top1_high_percent": high,
        "top5_percent": top5.value if top5 else None,
        "reported_top1_percent": reported,
        "difference_points": None if reported is None else top1.value - reported,
        "difference_low_points": None if reported is None else low - reported,
        "difference_high_points": None if reported is None else high - reported,
        "deviations": "; ".join(record.compliance.deviations),
        "differing_slices": ", ".join(sorted(differing)),
        "precision": runtime_choice(record, "precision"),
        "device": runtime_choice(record, "device"),
        "hardware": record.cost.device,
        "wall_seconds": record.cost.wall_seconds,
        "cell_id": record.cell_id,
    }
