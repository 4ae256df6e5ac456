"""The data frames beside the board's: runs, tokenizers, failed cells; and the order in which names stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from leaderboard.lineage import SCRATCH, TOKENISE, Lineage, ended, harness_version, runtime_choice
from leaderboard.record import Record
from leaderboard.runs import Run


@dataclass(frozen=True, kw_only=True)
class Order:
    """Names in the order given, others after them alphabetically."""

    methods: Sequence[str]
    tokenizers: Sequence[str]
    trunks: Sequence[str]
    evaluations: Sequence[str]

    @staticmethod
    def _place(name: str, known: Sequence[str]) -> tuple[int, str]:
        return (list(known).index(name), "") if name in known else (len(known), name)

    def of_evaluation(self, name: str) -> tuple[int, str]:
        """Where an evaluation stands."""
        return self._place(name, self.evaluations)

    def of_tokenizer(self, name: str) -> tuple[int, str]:
        """Where a tokenizer stands."""
        return self._place(name, self.tokenizers)

    def of_run(self, run: Run) -> tuple[Any, ...]:
        """By trunk, in each the random trunk first, then by tokenizer, method, evaluation and seed."""
        key = run.key
        return (
            self._place(key.trunk, self.trunks),
            key.method != SCRATCH,
            self.of_tokenizer(key.tokenizer),
            self._place(key.method, self.methods),
            self.of_evaluation(run.evaluation),
            -1 if run.record.seed is None else run.record.seed,
            run.record.cell_id,
        )


def runs_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One line per run."""
    columns = [
        "standing", "method", "tokenizer", "trunk", "evaluation", "stage", "seed", "status", "top1_percent",
        "images", "gain_points", "gain_lower_bound_points", "wall_seconds", "pretraining_cell",
        "pretraining_images_seen", "pretraining_wall_seconds", "pretraining_flops", "compliance",
        "deviations", "differing_slices", "protocol_version", "precision", "device", "hardware",
        "git_commit", "pretraining_precision", "pretraining_device", "pretraining_git_commit", "cell_id",
        "error",
    ]  # fmt: skip
    return typed(pd.DataFrame([_runs_line(run) for run in runs], columns=columns))


def _runs_line(run: Run) -> dict[str, Any]:
    record, pretraining = run.record, run.pretraining
    metric = record.metrics.get("top1_percent") if record.status == "done" else None
    cost = pretraining.cost if pretraining and pretraining.status == "done" else None
    return {
        "standing": run.standing,
        **run.key._asdict(),
        "evaluation": run.evaluation,
        "stage": record.stage,
        "seed": record.seed,
        "status": record.status,
        "top1_percent": run.top1_percent,
        "images": metric.n if metric else None,
        "gain_points": run.gain_points,
        "gain_lower_bound_points": run.gain_lower_bound_points,
        "wall_seconds": record.cost.wall_seconds,
        "pretraining_cell": pretraining.cell_id if pretraining else "",
        "pretraining_images_seen": cost.images_seen if cost else None,
        "pretraining_wall_seconds": cost.wall_seconds if cost else None,
        "pretraining_flops": cost.train_flops if cost else None,
        "compliance": record.compliance.status,
        "deviations": "; ".join(run.deviations),
        "differing_slices": ", ".join(sorted(run.differing)),
        "protocol_version": record.protocol.version,
        "precision": runtime_choice(record, "precision"),
        "device": runtime_choice(record, "device"),
        "hardware": record.cost.device,
        "git_commit": harness_version(record),
        "pretraining_precision": runtime_choice(pretraining, "precision") if pretraining else "",
        "pretraining_device": runtime_choice(pretraining, "device") if pretraining else "",
        "pretraining_git_commit": harness_version(pretraining) if pretraining else "",
        "cell_id": record.cell_id,
        "error": _first_line(record.error),
    }


def tokenizers_frame(
    records: Iterable[Record], lineage: Lineage, current: Mapping[str, str], order: Order
) -> pd.DataFrame:
    """One line per token store that is done."""
    lines: list[dict[str, Any]] = []
    for record in records:
        if record.stage != TOKENISE or record.tokenizer is None or record.status != "done":
            continue
        unclean = lineage.deviations(record) is not None
        other = bool(lineage.differing(record, current))
        line: dict[str, Any] = {
            "tokenizer": record.tokenizer.name,
            "standing": "modified" if unclean else "other version" if other else "board",
            "data": record.data_set.part,
            "codebook_size": record.resolved.get(f"tokenizer:{record.tokenizer.name}", {}).get(
                "codebook_size"
            ),
            "teacher": record.tokenizer.teacher,
            "wall_seconds": record.cost.wall_seconds,
        }
        line |= {name: metric.value for name, metric in sorted(record.metrics.items())}
        lines.append(line | {"cell_id": record.cell_id})
    lines.sort(key=lambda line: (order.of_tokenizer(line["tokenizer"]), line["standing"], line["cell_id"]))
    return typed(pd.DataFrame(lines))


def failures_frame(records: Iterable[Record], lineage: Lineage) -> pd.DataFrame:
    """Failed cells, then skipped ones, each with the first line of why and where its log is.

    `deviations` says what a cell or an ancestor changed of the protocol; empty for cells of the board.
    """
    columns = ["status", "stage", "method", "tokenizer", "trunk", "seed", "deviations", "error", "log"]
    failed = sorted(
        (one for one in records if one.status != "done"), key=lambda one: (one.status, ended(one))
    )
    lines = [
        {
            "status": record.status,
            "stage": record.stage,
            "method": record.method.name if record.method else "",
            "tokenizer": record.tokenizer.name if record.tokenizer else "",
            "trunk": record.trunk or "",
            "seed": record.seed,
            "deviations": "; ".join(lineage.deviations(record) or ()),
            "error": _first_line(record.error),
            "log": f"cells/{record.cell_id}/log",
        }
        for record in failed
    ]
    return typed(pd.DataFrame(lines, columns=columns))


def _first_line(text: str | None) -> str:
    return next((line.strip() for line in (text or "").splitlines() if line.strip()), "")


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Counts as nullable integers, texts as objects, all else as floats, also where a column is empty."""
    texts = {
        "standing", "method", "tokenizer", "trunk", "evaluation", "stage", "status", "pretraining_cell",
        "compliance", "deviations", "differing_slices", "precision", "device", "hardware", "git_commit",
        "pretraining_precision", "pretraining_device", "pretraining_git_commit", "cell_id", "error", "log",
        "teacher", "data",
    }  # fmt: skip
    counts = {"seed", "images", "protocol_version", "codebook_size", "dead_codes"}
    kinds = {
        column: "object"
        if column in texts
        else "Int64"
        if column in counts or column.endswith(("_seeds", "_images"))
        else "float64"
        for column in frame.columns
    }
    return frame.astype(kinds)
