"""One run per evaluation cell: where it stands, what it was made from, its gain over the random trunk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from leaderboard.environments import decoded_otherwise
from leaderboard.lineage import (
    LINEAR_PROBE,
    PRETRAIN,
    SCRATCH,
    TOKEN_CLASSIFICATION,
    TOKENISE,
    Lineage,
    Standing,
    ended,
    evaluation_name,
    standing_of,
)
from leaderboard.predictions import PredictionsLoader, paired_correct
from leaderboard.record import Record
from leaderboard.settings import Settings
from leaderboard.statistics import paired_bootstrap_lower_bound
from protocols.frozen import digest_of


class RowKey(NamedTuple):
    """What makes a row of a board; `tokenizer` is empty for a method that needs none.

    Of tokens alone, `trunk` and `method` are empty: their rows are tokenizers.
    `variant` is empty for the protocol's own setting of the method, else what a view tries in its place.
    """

    trunk: str
    tokenizer: str
    method: str
    variant: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One cell of a row. Gain and bound are in percentage points, of a linear probe alone.

    `ancestors` are all known records that it was made from, nearest first.
    `stale` says why the cell, or one that it was made from, no longer stands for the present code.
    """

    record: Record
    key: RowKey
    evaluation: str
    standing: Standing
    differing: Mapping[str, str]
    deviations: tuple[str, ...]
    stale: tuple[str, ...]
    pretraining: Record | None
    tokenising: Record | None
    ancestors: tuple[Record, ...] = ()
    gain_points: float | None = None
    gain_lower_bound_points: float | None = None

    @property
    def top1_percent(self) -> float | None:
        """Top-1 in per cent; None unless the cell is done and measured it."""
        return self._measured("top1_percent")

    @property
    def top5_percent(self) -> float | None:
        """Top-5 in per cent; None unless the cell is done and measured it."""
        return self._measured("top5_percent")

    def _measured(self, name: str) -> float | None:
        metric = self.record.metrics.get(name)
        return metric.value if metric is not None and self.record.status == "done" else None

    @property
    def is_of_tokens(self) -> bool:
        """True if nothing but tokens was classified: the row of a tokenizer, not of a method."""
        return self.record.stage == TOKEN_CLASSIFICATION

    @property
    def is_evaluation(self) -> bool:
        """False for a pre-training, which holds its row's place until something is measured on it."""
        return self.record.stage != PRETRAIN


def collect_runs(
    records: Iterable[Record],
    lineage: Lineage,
    predictions: PredictionsLoader,
    *,
    slices: Mapping[str, str],
    settings: Settings,
    stale: Mapping[str, tuple[str, ...]],
) -> list[Run]:
    """Every pre-training and evaluation cell among `records`, with its standing and its gain.

    `stale` is what `leaderboard.staleness.stale_reasons` says of the records.
    """
    runs = [
        _run(record, lineage, slices, settings, stale)
        for record in records
        if (record.method and record.stage != TOKENISE) or record.stage == TOKEN_CLASSIFICATION
    ]
    floors: dict[object, list[Run]] = {}
    for run in runs:
        if run.key.method == SCRATCH and run.top1_percent is not None and not (run.stale or run.deviations):
            floors.setdefault(_place(run), []).append(run)
    return [_with_gain(run, floors, lineage, predictions) for run in _without_superseded(runs, lineage)]


def _run(
    record: Record,
    lineage: Lineage,
    slices: Mapping[str, str],
    settings: Settings,
    stale: Mapping[str, tuple[str, ...]],
) -> Run:
    deviations = lineage.deviations(record)
    differs = lineage.differing(record, slices)
    method = record.method.name if record.method else ""
    # A trunk that classifies tokens is a part of the evaluation, not of the row.
    trunk = record.trunk or "" if method else ""
    tokenizer = record.tokenizer.name if record.tokenizer else ""
    pretraining = record if record.stage == PRETRAIN else lineage.ancestor(record, PRETRAIN)
    # Cells name no slice of their method: what it was set to stands in the pre-training's own values.
    used, recipe = _hyperparameters(pretraining), _recipe(pretraining)
    variant_of = partial(settings.variant, method=method, tokenizer=tokenizer, trunk=trunk, used=used)
    variant = variant_of(recipe=recipe)
    if variant is not None and settings.recipe_changes(recipe):
        # A view tries it, and the row is named by what is tried. The digest alone is what was run.
        if differs.get("pretraining") == digest_of(recipe):
            del differs["pretraining"]
    elif variant is None:
        variant = variant_of(recipe={})
        if variant is None:
            differs[f"method:{method}"] = digest_of(used)
    reasons = _stale_reasons(record, lineage, stale)
    return Run(
        record=record,
        key=RowKey(trunk=trunk, tokenizer=tokenizer, method=method, variant=variant or ""),
        evaluation="" if record.stage == PRETRAIN else evaluation_name(record),
        standing=standing_of(
            is_stale=bool(reasons), is_modified=deviations is not None, is_other=bool(differs)
        ),
        differing=differs,
        deviations=deviations or (),
        stale=reasons,
        pretraining=pretraining,
        tokenising=lineage.ancestor(record, TOKENISE),
        ancestors=lineage.ancestors(record),
    )


def _stale_reasons(record: Record, lineage: Lineage, stale: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Of the record, or, as one that is not done is never stale itself, of what it was to be made from."""
    if record.cell_id in stale:
        return stale[record.cell_id]
    behind = (reason for one in lineage.ancestors(record) for reason in stale.get(one.cell_id, ()))
    return tuple(dict.fromkeys(behind))


def version_of(run: Run) -> tuple[tuple[str, str], ...]:
    """Runs with equal versions held the same things equal; a method's own hyperparameters do not count."""
    return tuple(sorted(item for item in run.differing.items() if not item[0].startswith("method:")))


def _hyperparameters(pretraining: Record | None) -> dict[str, Any]:
    return pretraining.resolved.get("hyperparameters", {}) if pretraining else {}


def _recipe(pretraining: Record | None) -> dict[str, Any]:
    return pretraining.resolved.get("pretraining", {}) if pretraining else {}


def _without_superseded(runs: Sequence[Run], lineage: Lineage) -> list[Run]:
    """The same runs; those that would mix two settings of a method into one row are superseded.

    A method's default hyperparameter that changed gives new cells for old places on the board, some
    seeds of them perhaps still to be run. The newest setting counts, for all seeds of a row.
    """
    places: dict[object, list[Run]] = {}
    for run in runs:
        if run.standing not in ("modified", "stale"):
            places.setdefault((run.standing, version_of(run), run.key), []).append(run)
    older: set[str] = set()
    for sharing in places.values():
        newest_first = sorted(sharing, key=lambda run: ended(run.record), reverse=True)
        settings = (_hyperparameters(run.pretraining) for run in newest_first)
        setting = next((known for known in settings if known), {})
        origins: dict[int | None, str] = {}
        seen: set[tuple[int | None, str]] = set()
        for run in newest_first:
            seed, used = run.record.seed, _hyperparameters(run.pretraining)
            origin = lineage.origin(run.record)
            is_older = bool(used) and used != setting
            if not is_older:
                is_older = origins.setdefault(seed, origin) != origin or (seed, run.evaluation) in seen
            if is_older:
                older.add(run.record.cell_id)
            else:
                seen.add((seed, run.evaluation))
    return [replace(run, standing="superseded") if run.record.cell_id in older else run for run in runs]


def _place(run: Run) -> object:
    """What a probe and the floor that it is held against share."""
    return run.evaluation, run.key.trunk, run.record.seed


def _with_gain(
    run: Run, floors: Mapping[object, Sequence[Run]], lineage: Lineage, predictions: PredictionsLoader
) -> Run:
    top1 = run.top1_percent
    if (
        run.record.stage != LINEAR_PROBE
        or run.key.method == SCRATCH
        or top1 is None
        or run.standing in ("modified", "stale")
    ):
        return run
    floor = _random_trunk(run, floors.get(_place(run), ()), lineage)
    floor_top1 = floor.top1_percent if floor else None
    if floor is None or floor_top1 is None:
        return run
    mine, its = predictions(run.record), predictions(floor.record)
    bound = paired_bootstrap_lower_bound(*paired_correct(mine, its)) if mine and its else None
    return replace(run, gain_points=top1 - floor_top1, gain_lower_bound_points=bound)


def _random_trunk(run: Run, floors: Iterable[Run], lineage: Lineage) -> Run | None:
    """The newest of `floors`, random trunks of the same seed, that is under the same slices as `run`.

    Where it is known how both decoded images, they must have done so alike.
    """
    mine = lineage.slices(run.record)

    def is_floor(other: Run) -> bool:
        its = lineage.slices(other.record)
        if decoded_otherwise(run.record, other.record):
            return False
        return all(mine.get(name) == digest for name, digest in its.items() if not name.startswith("method:"))

    return max(filter(is_floor, floors), key=lambda other: ended(other.record), default=None)
