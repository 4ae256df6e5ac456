"""Records as data frames, for notebooks: `from leaderboard import load_records`.

Every cell of a work dir has its line, also one that failed or that a board would set apart: choose by the
columns. What a board adds, which rows may be compared and how sure a difference is, is not in here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from leaderboard.lineage import PRETRAIN, TOKENISE, Lineage, evaluation_name, harness_version, runtime_choice
from leaderboard.origins import origins
from leaderboard.record import Record, read_records
from leaderboard.staleness import stale_reasons
from protocols.errors import HarnessError, unknown
from protocols.frozen import digest_of

METRICS_NAME = "metrics.jsonl"  # as benchmark/layout.py names it, which this room does not see
MOST_BYTES = 64 * 1024 * 1024
# Column -> what it is. Those of metrics follow, under their own names: `top1_percent` is in per cent.
COLUMNS: Mapping[str, str] = {
    "cell_id": "the cell; its folder has this name",
    "protocol": "the protocol's name",
    "protocol_version": "its version",
    "slices_digest": "SHA-256 over the slices that moved the cell's numbers, its ancestors' included: only "
    "cells with the same one were held to the same values",
    "stage": "tokenise, pretrain, or the kind of evaluation",
    "evaluation": "the protocol's name of the evaluation; empty for tokenise and pretrain",
    "method": "the objective; empty where there is none",
    "tokenizer": "whose tokens were predicted, or made; empty where there are none",
    "trunk": "the trunk; empty where there is none",
    "seed": "the seed; <NA> where nothing is drawn by one",
    "status": "done, failed or skipped",
    "compliance": "clean, modified or imported, of the cell or of what it was made from: only clean cells "
    "are comparable",
    "deviations": "what was changed of the protocol, joined by '; '",
    "stale_reason": "why the cell stands no more for its parents, as records tell it; that the code has "
    "changed since is for `status` to say",
    "merged_from": "the bundle that it came in; empty if it was made here",
    "data_set": "the images that were measured on, or read",
    "images": "how many of them",
    "wall_seconds": "s of training or encoding, over all attempts",
    "images_seen": "images that went through the training, repeats counted",
    "train_flops": "FLOPs of the training, a multiply-add counted as two",
    "peak_memory_bytes": "bytes, of the device",
    "hardware": "the processor or GPU",
    "device": "cpu or cuda",
    "precision": "fp32 or bf16",
    "git_commit": "the harness that made it; +changes where files differed from the commit",
    "method_digest": "SHA-256 of the method's code",
    "tokenizer_digest": "digest of the tokenizer's weights",
    "data_digest": "digest of the images",
    "record_digest": "SHA-256 of the record's fields",
    "pretraining_cell": "the pre-training that it was made from; empty where there is none",
    "tokenising_cell": "the cell that made its tokens; empty where there is none",
    "ended": "when the last attempt ended, UTC",
    "error": "the first line of why it failed; empty if it did not",
}
LONG_COLUMNS: Mapping[str, str] = {
    "metric": "the metric's name",
    "value": "its value, in `unit`",
    "n": "images that it is a mean over",
    "unit": "its unit",
}
CURVE_COLUMNS: Mapping[str, str] = {
    "cell_id": "the cell",
    "phase": "of tokenising, such as k-means; empty in a training",
    "step": "optimiser steps, or images and iterations of a phase",
    "epoch": "epochs of training",
    "loss": "the mean since the line before, in nats unless the method says otherwise",
    "lr": "the largest learning rate",
    "images_per_second": "images/s since the line before",
    "seconds": "s of training so far, over all attempts",
}
_COUNTS = ("protocol_version", "seed", "images", "images_seen", "peak_memory_bytes", "n", "step")
_NUMBERS = ("wall_seconds", "train_flops", "value", "epoch", "loss", "lr", "images_per_second", "seconds")


def load_records(
    work_dir: str | PathLike[str] = "runs",
    protocol: str | Sequence[str] | None = None,
    *,
    metrics: Literal["wide", "long"] = "wide",
) -> pd.DataFrame:
    """Every cell under `work_dir` that has a record, of the protocols named, or of all.

    `metrics="wide"`: a line for each cell, a column for each metric that some cell has (NaN where a cell has
    it not, and where the cell is not done); `frame.attrs["units"]` maps these columns to their units, all
    that some cell has: "nats or squared error" of losses. "long": a line for each cell and metric, with
    LONG_COLUMNS; a metric with the name of one of `COLUMNS`, which explains the others, stands there alone.
    Lines are in the order of protocols and cell ids. Raises HarnessError for a damaged record, and where
    there are none.
    """
    if metrics not in ("wide", "long"):
        raise unknown("form of metrics", str(metrics), ("wide", "long"))
    lines: list[dict[str, Any]] = []
    units: dict[str, set[str]] = {}
    for name in _protocols(Path(work_dir), protocol):
        for record, line in _cells(Path(work_dir), name):
            measured = record.metrics if record.status == "done" else {}
            for metric, one in measured.items():
                units.setdefault(metric, set()).add(one.unit)
            if metrics == "long":
                lines += [
                    line | {"metric": metric, "value": one.value, "n": one.n, "unit": one.unit}
                    for metric, one in sorted(measured.items())
                ]
            else:
                lines.append({metric: one.value for metric, one in measured.items()} | line)
    own = sorted(units.keys() - COLUMNS.keys())
    names = own if metrics == "wide" else list(LONG_COLUMNS)
    frame = _typed(pd.DataFrame(lines, columns=[*COLUMNS, *names]), numbers=own)
    frame.attrs["units"] = {metric: " or ".join(sorted(units[metric])) for metric in sorted(units)}
    return frame


def load_curves(
    work_dir: str | PathLike[str] = "runs", protocol: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Every line of every cell's `metrics.jsonl`: CURVE_COLUMNS, and whatever else a phase measures.

    Of a step that was run twice, because the training went on from a checkpoint, the later line counts.
    A line that a kill cut short is passed over, as is what is no number. Raises HarnessError where there are
    no cells.
    """
    lines: dict[tuple[str, str, int], dict[str, Any]] = {}
    for name in _protocols(Path(work_dir), protocol):
        for path in sorted((Path(work_dir) / name / "cells").glob(f"*/{METRICS_NAME}")):
            for values in _lines(path):
                key = path.parent.name, values["phase"], values["step"]
                lines[key] = values | {"cell_id": key[0]}
    in_order = [lines[key] for key in sorted(lines)]
    names = dict.fromkeys([*CURVE_COLUMNS, *(name for line in in_order for name in line)])
    return _typed(pd.DataFrame(in_order, columns=list(names)))


def _protocols(work_dir: Path, asked: str | Sequence[str] | None) -> list[str]:
    """The folders of protocols, those asked for or all. HarnessError if there is none."""
    known = sorted(path.parent.name for path in work_dir.glob("*/cells") if path.is_dir())
    if not known:
        raise HarnessError(f"no cells under {work_dir}; give the folder that --work-dir named")
    names = [asked] if isinstance(asked, str) else known if asked is None else list(dict.fromkeys(asked))
    for name in names:
        if name not in known:
            raise unknown(f"protocol with cells under {work_dir}", name, known)
    return names


def _cells(work_dir: Path, protocol: str) -> Iterable[tuple[Record, dict[str, Any]]]:
    records = read_records(work_dir, protocol)
    lineage, stale = Lineage(records), stale_reasons(records, {})
    merged = origins(work_dir, protocol)
    for record in records:
        origin = merged.get(record.cell_id)
        yield record, _line(record, lineage, stale.get(record.cell_id, ()), origin.bundle if origin else "")


def _line(record: Record, lineage: Lineage, stale: Sequence[str], bundle: str) -> dict[str, Any]:
    pretraining = record if record.stage == PRETRAIN else lineage.ancestor(record, PRETRAIN)
    tokenising = record if record.stage == TOKENISE else lineage.ancestor(record, TOKENISE)
    behind = [record, *lineage.ancestors(record)]
    statuses = [one.compliance.status for one in behind if one.compliance.status != "clean"]
    is_evaluation = record.stage not in (PRETRAIN, TOKENISE)
    return {
        "cell_id": record.cell_id,
        "protocol": record.protocol.name,
        "protocol_version": record.protocol.version,
        "slices_digest": digest_of(lineage.slices(record)),
        "stage": record.stage,
        "evaluation": evaluation_name(record) if is_evaluation else "",
        "method": record.method.name if record.method else "",
        "tokenizer": record.tokenizer.name if record.tokenizer else "",
        "trunk": record.trunk or "",
        "seed": record.seed,
        "status": record.status,
        "compliance": next(iter(statuses), "clean"),
        "deviations": "; ".join(lineage.deviations(record) or ()),
        "stale_reason": "; ".join(stale),
        "merged_from": bundle,
        "data_set": record.data_set.name,
        "images": record.data_set.n,
        "wall_seconds": record.cost.wall_seconds,
        "images_seen": record.cost.images_seen,
        "train_flops": record.cost.train_flops,
        "peak_memory_bytes": record.cost.peak_memory_bytes,
        "hardware": record.cost.device,
        "device": runtime_choice(record, "device"),
        "precision": runtime_choice(record, "precision"),
        "git_commit": harness_version(record),
        "method_digest": record.method.source_digest if record.method else "",
        "tokenizer_digest": (record.tokenizer.digest or "") if record.tokenizer else "",
        "data_digest": record.data_set.digest,
        "record_digest": record.digest,
        "pretraining_cell": pretraining.cell_id if pretraining else "",
        "tokenising_cell": tokenising.cell_id if tokenising else "",
        "ended": record.attempts[-1].ended if record.attempts else None,
        "error": next(iter((record.error or "").splitlines()), ""),
    }


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    if path.stat().st_size > MOST_BYTES:
        raise HarnessError(f"{path}: over {MOST_BYTES:,} bytes is too large for a metrics file")
    for line in path.read_bytes().splitlines():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and isinstance(values.get("phase", ""), str):
            numbers = {name: one for name, one in values.items() if _is_number(one)}
            if isinstance(numbers.get("step"), int):
                yield numbers | {"phase": values.get("phase", "")}


def _is_number(value: object) -> bool:
    """True for what a column of numbers can hold; a bundle may bring any text as a metrics file."""
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return is_whole or isinstance(value, float)


def _typed(frame: pd.DataFrame, *, numbers: Sequence[str] = ()) -> pd.DataFrame:
    """Counts as nullable integers, times as UTC, measured values as floats, also where a column is empty."""
    kinds = {name: "Int64" for name in _COUNTS if name in frame}
    kinds |= {name: "float64" for name in (*_NUMBERS, *numbers) if name in frame}
    frame = frame.astype(kinds)
    if "ended" in frame:
        frame["ended"] = pd.to_datetime(frame["ended"], utc=True, format="ISO8601", errors="coerce")
    return frame
