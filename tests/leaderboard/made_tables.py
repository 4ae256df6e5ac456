"""Runs and tables of views made up in memory: nothing is read or written, any number can be put anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from leaderboard.predictions import Predictions
from leaderboard.record import Compliance, Cost, DataUse, Git, Metric, ProtocolUse, Record
from leaderboard.runs import RowKey, Run
from leaderboard.view_table import PLACE_COLUMNS, ViewTable

NAMES = {"mim": "MIM", "pim": "PIM", "mapet": "MaPeT", "beit": "BEiT", "cae": "CAE"}


@cache
def _record() -> Record:
    return Record(
        cell_id="none",
        stage="finetune",
        protocol=ProtocolUse(name="made", version=1, slices={}),
        resolved={},
        compliance=Compliance(status="clean"),
        method=None,
        tokenizer=None,
        trunk="vit-mini",
        data_set=DataUse(name="shapes", part="test", n=1, digest="d"),
        seed=0,
        metrics={},
        cost=Cost(wall_seconds=1, images_seen=1, train_flops=1, peak_memory_bytes=1, device="cpu"),
        runtime={},
        environment={},
        git=Git(commit="c", dirty=False),
        parents={},
        artefacts={},
        attempts=(),
        status="done",
        error=None,
    )


def made_run(
    key: RowKey, evaluation: str, seed: int, value: float, *, metric: str = "top1_percent",
    images: int = 50_000, standing: Any = "board",
) -> Run:  # fmt: skip
    """One evaluation of one seed that measured `value` per cent."""
    cell_id = "-".join([*filter(None, key), evaluation, metric, f"s{seed}"]).replace(" ", "_")
    record = _record().model_copy(
        update={
            "cell_id": cell_id, "seed": seed, "trunk": key.trunk,
            "metrics": {metric: Metric(value=value, n=images, unit="%")},
        }
    )  # fmt: skip
    return Run(
        record=record, key=key, evaluation=evaluation, standing=standing, differing={}, deviations=(),
        stale=(), pretraining=None, tokenising=None,
    )  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column of a made table; the trunk is empty for tokens alone."""

    trunk: str
    evaluation: str
    metric: str = "top1_percent"

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.trunk, self.evaluation, self.metric)))


def made_table(
    name: str, runs: Iterable[Run], *, rows: Sequence[tuple[str, str, str]], columns: Sequence[Column]
) -> ViewTable:
    """A table of those rows (method, tokenizer, variant); what `runs` does not hold is missing."""
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        metric = next(iter(run.record.metrics))
        found.setdefault((*run.key, run.evaluation, metric), []).append(run)
    labels = [", ".join(filter(None, (NAMES.get(row[0], row[0]), *row[1:]))) for row in rows]
    lines = []
    for index, (method, tokenizer, variant) in enumerate(rows):
        for position, column in enumerate(columns):
            here = found.get((column.trunk, tokenizer, method, variant, column.evaluation, column.metric), [])
            here = sorted(here, key=lambda run: run.record.seed)
            values = [run.record.metrics[column.metric].value for run in here]
            line = dict.fromkeys(PLACE_COLUMNS, float("nan")) | {
                "row": index, "column": position, "row_label": labels[index], "column_label": column.label,
                "method": method, "variant": variant, "tokenizer": tokenizer, "trunk": column.trunk,
                "evaluation": column.evaluation, "metric": column.metric, "is_ours": True,
                "mean": float(np.mean(values)) if values else float("nan"), "seeds": len(values),
                "cell_ids": "; ".join(run.record.cell_id for run in here),
                "verdict": "" if here else "missing", "command": "", "seed_values": "",
            }  # fmt: skip
            lines.append(line)
    return ViewTable(
        name=name,
        title=f"Made {name}",
        row_headers=("method", "tokenizer", "variant"),
        rows=tuple(rows),
        columns=tuple(column.label for column in columns),
        frame=pd.DataFrame(lines, columns=list(PLACE_COLUMNS)),
    )


def made_predictions(run: Run, correct: np.ndarray, *, shuffle: int | None = None) -> Predictions:
    """Predictions of a run that has exactly those (images,) right."""
    ids = np.array([f"test/{index:05d}" for index in range(correct.size)])
    labels = np.arange(correct.size, dtype=np.int64) % 10
    predicted = np.where(correct, labels, (labels + 1) % 10)
    order = np.arange(correct.size)
    if shuffle is not None:
        order = np.random.default_rng(shuffle).permutation(order)
    return Predictions(
        cell_id=run.record.cell_id, image_ids=ids[order], labels=labels[order], predicted=predicted[order]
    )
