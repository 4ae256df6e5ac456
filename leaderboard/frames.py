"""The frames beside the board's: runs, tokenizers, stale and failed cells; the order in which names stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from leaderboard.lineage import (
    PRETRAIN,
    SCRATCH,
    TOKENISE,
    Lineage,
    ended,
    evaluation_name,
    harness_version,
    runtime_choice,
    standing_of,
)
from leaderboard.record import Record
from leaderboard.runs import RowKey, Run


@dataclass(frozen=True, kw_only=True)
class Order:
    """Names in the order given, others after them alphabetically."""

    methods: Sequence[str]
    tokenizers: Sequence[str]
    trunks: Sequence[str]
    evaluations: Sequence[str]
    variants: Sequence[str] = ()

    @staticmethod
    def _place(name: str, known: Sequence[str]) -> tuple[int, str]:
        return (list(known).index(name), "") if name in known else (len(known), name)

    def of_evaluation(self, name: str) -> tuple[int, str]:
        """Where an evaluation stands."""
        return self._place(name, self.evaluations)

    def of_trunk(self, name: str) -> tuple[int, str]:
        """Where a trunk stands."""
        return self._place(name, self.trunks)

    def of_tokenizer(self, name: str) -> tuple[int, str]:
        """Where a tokenizer stands."""
        return self._place(name, self.tokenizers)

    def of_row(self, key: RowKey) -> tuple[Any, ...]:
        """By trunk, in each the random trunk first, then by tokenizer, method and variant."""
        return (
            self.of_trunk(key.trunk),
            key.method != SCRATCH,
            self.of_tokenizer(key.tokenizer),
            self._place(key.method, self.methods),
            # The protocol's own setting first; several values that are tried at once, one by one.
            [self._place(value, self.variants) for value in key.variant.split(", ") if value],
        )

    def of_run(self, run: Run) -> tuple[Any, ...]:
        """By row, then by evaluation and seed."""
        return (
            *self.of_row(run.key),
            self.of_evaluation(run.evaluation),
            -1 if run.record.seed is None else run.record.seed,
            run.record.cell_id,
        )


def runs_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One line per run."""
    columns = [
        "standing", "method", "variant", "tokenizer", "trunk", "evaluation", "stage", "seed", "status",
        "top1_percent", "top5_percent", "images", "gain_points", "gain_lower_bound_points", "wall_seconds",
        "pretraining_cell", "pretraining_images_seen", "pretraining_wall_seconds", "pretraining_flops",
        "compliance", "deviations", "differing_slices", "protocol_version", "precision", "device", "hardware",
        "git_commit", "pretraining_precision", "pretraining_device", "pretraining_git_commit", "cell_id",
        "stale_reason", "error",
    ]  # fmt: skip
    return typed(pd.DataFrame([_runs_line(run) for run in runs], columns=columns))


def _runs_line(run: Run) -> dict[str, Any]:
    record, pretraining = run.record, run.pretraining
    metric = record.metrics.get("top1_percent") if record.status == "done" else None
    cost = pretraining.cost if pretraining and pretraining.status == "done" else None
    return {
        "standing": run.standing,
        **run.key._asdict(),
        "trunk": record.trunk or "",
        "evaluation": run.evaluation,
        "stage": record.stage,
        "seed": record.seed,
        "status": record.status,
        "top1_percent": run.top1_percent,
        "top5_percent": run.top5_percent,
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
        "stale_reason": "; ".join(run.stale),
        "error": _first_line(record.error),
    }


def tokenizers_frame(
    records: Iterable[Record],
    lineage: Lineage,
    current: Mapping[str, str],
    stale: Mapping[str, tuple[str, ...]],
    order: Order,
) -> pd.DataFrame:
    """One line per token store that is done."""
    lines: list[dict[str, Any]] = []
    for record in records:
        if record.stage != TOKENISE or record.tokenizer is None or record.status != "done":
            continue
        standing = standing_of(
            is_stale=record.cell_id in stale,
            is_modified=lineage.deviations(record) is not None,
            is_other=bool(lineage.differing(record, current)),
        )
        line: dict[str, Any] = {
            "tokenizer": record.tokenizer.name,
            "standing": standing,
            "data": record.data_set.part,
            "codebook_size": record.resolved.get(f"tokenizer:{record.tokenizer.name}", {}).get(
                "codebook_size"
            ),
            "teacher": record.tokenizer.teacher,
            "wall_seconds": record.cost.wall_seconds,
        }
        line |= {name: metric.value for name, metric in sorted(record.metrics.items())}
        line |= {"plugin": record.tokenizer.plugin} if record.tokenizer.plugin else {}
        line["store"] = store_of(record)
        reason = "; ".join(stale.get(record.cell_id, ()))
        lines.append(line | {"stale_reason": reason, "cell_id": record.cell_id})
    lines.sort(key=lambda line: (order.of_tokenizer(line["tokenizer"]), line["standing"], line["cell_id"]))
    return typed(pd.DataFrame(lines))


def store_of(record: Record) -> str:
    """SHA-256 of the manifest of the token store that the cell made; empty where the record names none."""
    manifests = (digest for path, digest in record.artefacts.items() if path.endswith("/manifest.json"))
    return next(manifests, "")


def stale_frame(
    records: Iterable[Record],
    runs: Iterable[Run],
    lineage: Lineage,
    current: Mapping[str, str],
    stale: Mapping[str, tuple[str, ...]],
    order: Order,
) -> pd.DataFrame:
    """One line per stale cell of any stage: parents before what was made from them, and why each is stale."""
    columns = [
        "stage", "evaluation", "method", "variant", "tokenizer", "trunk", "seed", "top1_percent",
        "stale_reason", "deviations", "differing_slices", "cell_id",
    ]  # fmt: skip
    by_cell = {run.record.cell_id: run for run in runs}
    lines: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for record in records:
        if record.cell_id not in stale:
            continue
        run = by_cell.get(record.cell_id)
        tokenizer = record.tokenizer.name if record.tokenizer else ""
        # Tokens alone belong to no row.
        key = run.key if run else RowKey(trunk=record.trunk or "", tokenizer=tokenizer, method="")
        is_made_for_others = record.stage in (TOKENISE, PRETRAIN)
        evaluation = "" if is_made_for_others else evaluation_name(record)
        metric = record.metrics.get("top1_percent")
        line = {
            "stage": record.stage,
            "evaluation": evaluation,
            **key._asdict(),
            "seed": record.seed,
            "top1_percent": metric.value if metric else None,
            "stale_reason": "; ".join(stale[record.cell_id]),
            "deviations": "; ".join(lineage.deviations(record) or ()),
            "differing_slices": ", ".join(
                sorted(run.differing if run else lineage.differing(record, current))
            ),
            "cell_id": record.cell_id,
        }
        seed = -1 if record.seed is None else record.seed
        place = (record.stage != TOKENISE, *order.of_row(key), seed, not is_made_for_others)
        lines.append(((*place, order.of_evaluation(evaluation), record.cell_id), line))
    return typed(pd.DataFrame([line for _, line in sorted(lines, key=lambda one: one[0])], columns=columns))


def failures_frame(records: Iterable[Record], lineage: Lineage, variants: Mapping[str, str]) -> pd.DataFrame:
    """Failed cells, then skipped ones, each with the first line of why and where its log is.

    `deviations` says what a cell or an ancestor changed of the protocol; empty for cells of the board.
    `variants` maps cell ids to the variants of their rows.
    """
    columns = [
        "status", "stage", "method", "variant", "tokenizer", "trunk", "seed", "deviations", "error", "log",
    ]  # fmt: skip
    failed = sorted(
        (one for one in records if one.status != "done"), key=lambda one: (one.status, ended(one))
    )
    lines = [
        {
            "status": record.status,
            "stage": record.stage,
            "method": record.method.name if record.method else "",
            "variant": variants.get(record.cell_id, ""),
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
        "teacher", "data", "variant", "stale_reason", "store", "file", "sha256", "key", "pooling",
        "reported_by", "method_title", "plugin",
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
