"""Rows whose weights come from elsewhere, measured under the protocol: beside the board's, never among them.

How they were pre-trained is not known, so nothing is held equal but what follows: they are compared with no
row, and no average holds both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from leaderboard.frames import Order
from leaderboard.imported import checkpoint_of, digest_of_checkpoint, is_imported, label_of
from leaderboard.lineage import Lineage, evaluation_name, runtime_choice
from leaderboard.record import Record
from leaderboard.statistics import mean_and_sd

COLUMNS = [
    "label", "trunk", "evaluation", "seeds", "top1_percent", "top1_sd", "images", "file", "sha256",
    "deviations", "differing_slices", "precision", "cells",
]  # fmt: skip
COUNTS, MEASURED = ("seeds", "images"), ("top1_percent", "top1_sd")


def imported_frame(
    records: Sequence[Record], lineage: Lineage, current: Mapping[str, str], order: Order
) -> pd.DataFrame:
    """One line per file, label, trunk and evaluation, over its seeds; apart where slices or --set differ."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        top1 = record.metrics.get("top1_percent")
        if is_imported(record) and record.status == "done" and top1 is not None:
            differing = ", ".join(sorted(lineage.differing(record, current)))
            key = (
                label_of(record),
                record.trunk or "",
                evaluation_name(record),
                digest_of_checkpoint(record),
                differing,
                record.compliance.deviations,
                tuple(sorted(record.protocol.slices.items())),
            )
            groups.setdefault(key, []).append(record)
    lines = [_line(key, sharing) for key, sharing in groups.items()]
    lines.sort(key=lambda line: (order.of_trunk(line["trunk"]), line["label"], line["sha256"],
                                 order.of_evaluation(line["evaluation"]), line["cells"]))  # fmt: skip
    kinds = dict.fromkeys(COUNTS, "Int64") | dict.fromkeys(MEASURED, "float64")
    return pd.DataFrame(lines, columns=COLUMNS).astype(dict.fromkeys(COLUMNS, "object") | kinds)


def _line(key: tuple[Any, ...], records: Sequence[Record]) -> dict[str, Any]:
    label, trunk, evaluation, digest, differing, deviations, _ = key
    tops = [record.metrics["top1_percent"].value for record in records]
    mean, deviation = mean_and_sd(tops)
    return {
        "label": label,
        "trunk": trunk,
        "evaluation": evaluation,
        "seeds": len(records),
        "top1_percent": mean,
        "top1_sd": deviation,
        "images": max(record.metrics["top1_percent"].n for record in records),
        "file": str(checkpoint_of(records[0]).get("file") or ""),
        "sha256": digest,
        "deviations": "; ".join(deviations),
        "differing_slices": differing,
        "precision": ", ".join(sorted({runtime_choice(record, "precision") for record in records})),
        "cells": ", ".join(sorted(record.cell_id for record in records)),
    }
