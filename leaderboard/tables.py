"""From records to the board: data frames, one row per method, tokenizer and trunk, and what stands apart.

A row is also split by variant: the values of a method's own that a view of the protocol tries.

Rows keep the protocol's order. Nothing is sorted by score and nothing gets a rank: the notes under the
board say what the numbers support.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from leaderboard.frames import Order, failures_frame, runs_frame, stale_frame, tokenizers_frame, typed
from leaderboard.imported import is_imported
from leaderboard.imported_rows import imported_frame
from leaderboard.lineage import LINEAR_PROBE, Lineage, ended, with_plugins
from leaderboard.notes import board_notes
from leaderboard.plugin_methods import PluginFiles, PluginMethod, plugin_methods
from leaderboard.predictions import PredictionsLoader
from leaderboard.record import Record
from leaderboard.runs import RowKey, Run, collect_runs, version_of
from leaderboard.settings import Settings
from leaderboard.staleness import stale_reasons
from leaderboard.statistics import mean_and_sd
from leaderboard.token_rows import token_rows
from leaderboard.validation_rows import validations_frame

METHODS = ("mim", "pim", "mapet", "beit", "cae", "splitmask", "maskfeat", "beit-v2")
EVALUATIONS = ("finetune", "linear-probe")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of the board; its columns in the frames start with `name`.

    `is_default`: the protocol asks it of every row. It has a column though nothing was measured, and
    it alone counts in what a row costs in total.
    """

    name: str
    stage: str
    is_default: bool


@dataclass(frozen=True, kw_only=True)
class OtherBoard:
    """Clean rows under slices that are not the current protocol's. `differing` names those slices.

    `token_rows` are those of tokens alone.
    """

    versions: tuple[int, ...]
    differing: tuple[str, ...]
    rows: pd.DataFrame
    token_rows: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the records come from: distinct values over all of them, and the newest end (ISO 8601 UTC)."""

    environment: Mapping[str, tuple[str, ...]]
    devices: tuple[str, ...]
    commits: tuple[str, ...]
    newest: str
    cells: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Board:
    """`rows` is the board; `runs` has one line per evaluation cell, whatever its standing.

    `token_rows` has a row for each tokenizer whose tokens were classified, with columns for each of
    `token_evaluations`: `leaderboard.token_rows.token_rows` says which.
    `stale` has one line per cell, of any stage, that present code and parents would make anew.
    `validations` has one line per classifier that was trained elsewhere and only measured here, `imported`
    one per evaluation of weights that were.
    `cells` are the pre-trainings and evaluations themselves, whatever their standing, in the board's order.
    `plugins` are the methods among them that plug-ins brought; if there are any, `rows` says of each row
    which (`plugin`, empty for a built-in method) and how it calls itself (`method_title`). `plugin_files` is
    what commands have to name.

    Units are in the column names: top-1 in per cent, gains in percentage points, seconds, FLOPs where
    a multiply-add counts two. A value that is missing is NaN or None.
    """

    title: str
    rows: pd.DataFrame
    token_rows: pd.DataFrame
    runs: pd.DataFrame
    tokenizers: pd.DataFrame
    stale: pd.DataFrame
    failures: pd.DataFrame
    validations: pd.DataFrame
    others: tuple[OtherBoard, ...]
    evaluations: tuple[Evaluation, ...]
    token_evaluations: tuple[str, ...]
    notes: tuple[str, ...]
    provenance: Provenance
    cells: tuple[Run, ...] = ()
    imported: pd.DataFrame = field(default_factory=pd.DataFrame)
    plugins: Mapping[str, PluginMethod] = field(default_factory=dict)
    plugin_files: PluginFiles = field(default_factory=PluginFiles)

    @property
    def modified(self) -> pd.DataFrame:
        """The runs that changed something that the protocol holds equal: shown, never compared."""
        return self.runs[self.runs["standing"] == "modified"]


def build_board(
    records: Sequence[Record],
    predictions: PredictionsLoader,
    *,
    slices: Mapping[str, str],
    settings: Settings | None = None,
    sources: Mapping[str, str] | None = None,
    title: str = "",
    methods: Sequence[str] = METHODS,
    tokenizers: Sequence[str] = (),
    trunks: Sequence[str] = (),
    evaluations: Sequence[str] = EVALUATIONS,
    default_evaluations: Sequence[str] | None = None,
    token_evaluations: Sequence[str] = (),
) -> Board:
    """The board of `records` under the current protocol's `slices` (name -> digest).

    `settings` are the methods' hyperparameters that the protocol sets and tries: pre-trainings with others
    stand apart. `sources` maps `method:NAME` and `tokenizer:NAME` to digests of the present code: what
    other code made is stale; what it lacks is not judged. `predictions` gives a record's predictions, or
    None. The names give the order: trunks, in each the random trunk first, then tokenizers, then methods;
    names that are not given follow alphabetically. `default_evaluations` are asked of every row: all of
    `evaluations` unless given; those of them that are `token_evaluations` of every tokenizer instead.
    Raises HarnessError if predictions are damaged or two probes were not measured on the same images.
    """
    records = sorted(records, key=lambda record: record.cell_id)
    lineage = Lineage(records)
    current = with_plugins(slices, lineage, records)
    settings = settings or Settings()
    order = Order(
        methods=methods,
        tokenizers=tokenizers,
        trunks=trunks,
        evaluations=evaluations,
        variants=settings.variants,
    )
    stale = stale_reasons(records, sources or {})
    own = [record for record in records if not is_imported(record)]
    runs = sorted(
        collect_runs(own, lineage, predictions, slices=current, settings=settings, stale=stale),
        key=order.of_run,
    )
    variants = {run.record.cell_id: run.key.variant for run in runs}
    defaults = evaluations if default_evaluations is None else default_evaluations
    of_tokens = {run.evaluation for run in runs if run.is_of_tokens} | set(token_evaluations) & set(defaults)
    defaults = [name for name in defaults if name not in of_tokens]
    shown_of_tokens = tuple(sorted(of_tokens, key=order.of_evaluation))
    stages = {run.evaluation: run.record.stage for run in runs if run.is_evaluation and not run.is_of_tokens}
    shown = tuple(
        Evaluation(name=name, stage=stages.get(name, name), is_default=name in defaults)
        for name in sorted({*stages, *defaults}, key=order.of_evaluation)
    )
    on_board = [run for run in runs if run.standing == "board"]
    plugins = plugin_methods(own)
    return Board(
        title=title,
        rows=_summary([run for run in on_board if not run.is_of_tokens], shown, plugins),
        token_rows=token_rows([run for run in on_board if run.is_of_tokens], shown_of_tokens),
        runs=runs_frame([run for run in runs if run.is_evaluation]),
        tokenizers=tokenizers_frame(records, lineage, current, stale, order),
        stale=stale_frame(records, runs, lineage, current, stale, order),
        failures=failures_frame(records, lineage, variants),
        validations=validations_frame(records, lineage, current, order),
        imported=imported_frame(records, lineage, current, order),
        others=_others(runs, shown, shown_of_tokens, plugins),
        evaluations=shown,
        token_evaluations=shown_of_tokens,
        notes=board_notes(runs),
        provenance=_provenance(records),
        cells=tuple(runs),
        plugins=plugins,
        plugin_files=PluginFiles.of(own),
    )


def _summary(
    runs: Sequence[Run], evaluations: Sequence[Evaluation], plugins: Mapping[str, PluginMethod]
) -> pd.DataFrame:
    rows: dict[RowKey, list[Run]] = {}
    for run in runs:
        rows.setdefault(run.key, []).append(run)
    lines = [
        _names(key, plugins) | _summary_row(sharing, evaluations) | _costs(sharing, evaluations)
        for key, sharing in rows.items()
    ]
    return typed(pd.DataFrame(lines))


def _names(key: RowKey, plugins: Mapping[str, PluginMethod]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": key.method,
        "variant": key.variant,
        "tokenizer": key.tokenizer,
        "trunk": key.trunk,
    }
    if plugins:
        brought = plugins.get(key.method, PluginMethod(title="", plugin=""))
        row |= {"method_title": brought.title, "plugin": brought.plugin}
    return row


def _summary_row(runs: Sequence[Run], evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for evaluation in evaluations:
        done = [run for run in runs if run.evaluation == evaluation.name and run.top1_percent is not None]
        tops = [run.top1_percent for run in done if run.top1_percent is not None]
        mean, deviation = mean_and_sd(tops) if tops else (None, None)
        name = evaluation.name
        row |= {
            f"{name}_top1_percent": mean,
            f"{name}_top1_sd": deviation,
            f"{name}_seeds": len(tops),
            f"{name}_images": max((run.record.metrics["top1_percent"].n for run in done), default=None),
        }
        if evaluation.stage == LINEAR_PROBE:
            gains = [run.gain_points for run in done if run.gain_points is not None]
            bounds = [run.gain_lower_bound_points for run in done]
            known = [bound for bound in bounds if bound is not None]
            row |= {
                f"{name}_gain_points": mean_and_sd(gains)[0] if gains else None,
                f"{name}_gain_seeds": len(gains),
                # The smallest of some seeds would pass for the smallest of all.
                f"{name}_gain_lower_bound_points": min(known) if known and len(known) == len(gains) else None,
            }
    return row


def _costs(runs: Sequence[Run], evaluations: Sequence[Evaluation]) -> dict[str, float | None]:
    """Means over the seeds whose pre-training, or for the whole row every cell, is done; None without any."""
    by_seed: dict[int | None, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run.record.seed, []).append(run)
    of_seed = by_seed.values()
    pretrainings = [next((run.pretraining for run in runs if run.pretraining), None) for runs in of_seed]
    costs = [record.cost if record and record.status == "done" else None for record in pretrainings]

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    return {
        "pretraining_images_seen": mean([cost.images_seen if cost else None for cost in costs]),
        "pretraining_wall_seconds": mean([cost.wall_seconds if cost else None for cost in costs]),
        "pretraining_flops": mean([cost.train_flops if cost else None for cost in costs]),
        "row_wall_seconds": mean([_row_wall_seconds(runs, evaluations) for runs in of_seed]),
    }


def _row_wall_seconds(runs: Sequence[Run], evaluations: Sequence[Evaluation]) -> float | None:
    """Seconds of one seed's tokenising, pre-training and default evaluations; None unless all are done."""
    counted = {evaluation.name for evaluation in evaluations if evaluation.is_default}
    if counted - {run.evaluation for run in runs if run.top1_percent is not None}:
        return None
    cells: dict[str, Record] = {}
    for run in runs:
        if run.is_evaluation and run.evaluation not in counted:
            continue
        for record in (run.record, *_made_from(run)):
            if record is None or record.status != "done":
                return None
            cells[record.cell_id] = record
    return sum(record.cost.wall_seconds for record in cells.values())


def _made_from(run: Run) -> list[Record | None]:
    """The pre-training and the tokens that the run needs; None for one of which there is no record."""
    has_tokens = run.record.tokenizer is not None
    is_pretrained = has_tokens or run.pretraining is not None or bool(run.record.parents)
    return [*([run.pretraining] if is_pretrained else []), *([run.tokenising] if has_tokens else [])]


def _others(
    runs: Iterable[Run],
    evaluations: Sequence[Evaluation],
    token_evaluations: Sequence[str],
    plugins: Mapping[str, PluginMethod],
) -> tuple[OtherBoard, ...]:
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        if run.standing == "other version" and run.is_evaluation:
            groups.setdefault(version_of(run), []).append(run)
    boards = []
    for version in sorted(groups):
        sharing = groups[version]
        boards.append(
            OtherBoard(
                versions=tuple(sorted({run.record.protocol.version for run in sharing})),
                differing=tuple(sorted({name for run in sharing for name in run.differing})),
                rows=_summary([run for run in sharing if not run.is_of_tokens], evaluations, plugins),
                token_rows=token_rows([run for run in sharing if run.is_of_tokens], token_evaluations),
            )
        )
    return tuple(boards)


def _provenance(records: Sequence[Record]) -> Provenance:
    names = sorted({name for record in records for name in record.environment})
    statuses = [record.status for record in records]
    return Provenance(
        environment={
            name: tuple(
                sorted({record.environment[name] for record in records if name in record.environment})
            )
            for name in names
        },
        devices=tuple(sorted({record.cost.device for record in records if record.cost.device})),
        commits=tuple(
            sorted(
                {one.git.commit + (" with uncommitted changes" if one.git.dirty else "") for one in records}
            )
        ),
        newest=max((ended(record)[0] for record in records), default=""),
        cells={status: statuses.count(status) for status in ("done", "failed", "skipped")},
    )
