"""Rows of the classification from tokens alone (the paper's Table 4): tokenizers, without method or trunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from leaderboard.frames import typed
from leaderboard.runs import Run
from leaderboard.statistics import mean_and_sd

FIGURES = ("top1", "top5")


def token_rows(runs: Sequence[Run], evaluations: Sequence[str]) -> pd.DataFrame:
    """The tokenizers of `runs`, in their order: top-1 and top-5 of each evaluation over seeds.

    Columns start with the evaluation's name: `_top1_percent` and `_top5_percent` (means), `_top1_sd` and
    `_top5_sd` (sample standard deviations), `_seeds`, `_images`.
    """
    by_tokenizer: dict[str, list[Run]] = {}
    for run in runs:
        by_tokenizer.setdefault(run.key.tokenizer, []).append(run)
    return typed(pd.DataFrame([_row(name, sharing, evaluations) for name, sharing in by_tokenizer.items()]))


def _row(tokenizer: str, runs: Sequence[Run], evaluations: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"tokenizer": tokenizer}
    for name in evaluations:
        done = [run for run in runs if run.evaluation == name and run.top1_percent is not None]
        for figure in FIGURES:
            values = [getattr(run, f"{figure}_percent") for run in done]
            known = [value for value in values if value is not None]
            mean, deviation = mean_and_sd(known) if known else (None, None)
            row |= {f"{name}_{figure}_percent": mean, f"{name}_{figure}_sd": deviation}
        row |= {
            f"{name}_seeds": len(done),
            f"{name}_images": max((run.record.metrics["top1_percent"].n for run in done), default=None),
        }
    return row
