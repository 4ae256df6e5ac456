"""What rows cost, accuracy against it, and the methods at equal compute instead of equal epochs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import pandas as pd

from leaderboard.equal_compute import equal_compute_blocks
from leaderboard.figure_curves import MOST_METHODS, ScatterPanel, Spot, draw_scatter
from leaderboard.figure_style import drawn
from leaderboard.grids import (
    EVALUATION_NAMES,
    MISSING,
    Column,
    Grid,
    clean,
    duration,
    integer,
    method_name,
    power_of_ten,
    text,
)
from leaderboard.lineage import SCRATCH
from leaderboard.record import Record
from leaderboard.row_runs import RowRuns, left_out_note, left_out_rows, mean_of
from leaderboard.runs import RowKey
from leaderboard.sections import Block, Figure, Section
from leaderboard.tables import Board
from leaderboard.tried import tried_values
from leaderboard.view_table import ViewTable
from protocols.frozen import digest_of
from protocols.schema import Protocol

SECTION_NAME = "compute"
REFERENCE = "mim"
MOST_FIGURES = 12
ENOUGH_SEEDS = 3
_TEXTS = {"method", "tokenizer", "trunk", "devices"}


def compute_section(
    board: Board,
    protocol: Protocol,
    tables: Sequence[ViewTable],
    *,
    left_out: Collection[tuple[str, int]] = (),
) -> Section | None:
    """Costs of every row, accuracy against compute, and the view `equal-compute`; None without a row.

    Of `tables`, that of the view says with which command a place that is missing is filled. `left_out` are
    (table, row) of which it is not proven that all else was equal: their costs alone are shown.
    """
    runs = RowRuns.of(board)
    rows = [key for key in runs.rows if key.method and not key.variant]
    if not rows:
        return None
    apart = {key: name for key, name in left_out_rows(tables, left_out).items() if _is_drawn(key)}
    compared = RowRuns.of(board, without=apart) if apart else runs
    figures, notes = _figures(board, compared)
    return Section(
        name=SECTION_NAME,
        title="What it costs",
        blocks=(_costs(board, runs, rows), *equal_compute_blocks(compared, protocol, tables)),
        figures=figures,
        notes=(*notes, *left_out_note(apart.values())),
    )


def tuning_budgets(board: Board) -> dict[tuple[str, str, str], int]:
    """(method, tokenizer, trunk) -> in how many settings it was pre-trained among the records.

    A setting is all of the method's resolved hyperparameters and the whole pre-training recipe. Each counts
    once, whatever its seeds, and wherever its cells stand: modified cells, a view's variants, older versions
    and stale cells were looked at, too. Cells that did not end are not counted, nor what was tried elsewhere.
    """
    settings: dict[tuple[str, str, str], set[str]] = {}
    digests: dict[str, str] = {}
    for run in board.cells:
        record = run.pretraining
        if record is None or record.status != "done":
            continue
        if record.cell_id not in digests:
            resolved = record.resolved
            digests[record.cell_id] = digest_of(
                {name: resolved.get(name, {}) for name in ("hyperparameters", "pretraining")}
            )
        row = (run.key.method, run.key.tokenizer, run.key.trunk)
        settings.setdefault(row, set()).add(digests[record.cell_id])
    return {row: len(found) for row, found in settings.items()}


def pareto_front(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Of (cost, score), those that no other beats: none costs no more, scores no less and differs."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return tuple(front)


def _costs(board: Board, runs: RowRuns, rows: Sequence[RowKey]) -> Block:
    budgets = tuning_budgets(board)
    sharing: dict[str, set[RowKey]] = {}
    for key, cells in runs.tokenisings.items():
        for cell_id in cells:
            # Variants of a row share its tokens, too.
            sharing.setdefault(cell_id, set()).add(key)
    frame = pd.DataFrame([_cost_line(key, runs, sharing, budgets) for key in rows])
    # A column in which nothing is known is one of numbers all the same.
    frame = frame.astype({name: "float64" for name in frame if name not in _TEXTS})
    several_trunks = frame["trunk"].nunique() > 1
    has_gpus = frame["gpu_hours"].notna().any()
    several_devices = frame["devices"].nunique() > 1
    makers: list[tuple[str, bool, Callable[[Any], str]]] = [
        ("method", False, lambda row: method_name(row["method"])),
        ("tokenizer", False, lambda row: text(row["tokenizer"])),
        *([("trunk", False, lambda row: text(row["trunk"]))] if several_trunks else []),
        ("FLOPs", True, lambda row: power_of_ten(row["pretraining_flops"])),
        ("x MIM", True, lambda row: _ratio(row["flops_to_mim"])),
        ("training", True, lambda row: duration(row["pretraining_wall_seconds"])),
        *([("GPU-hours", True, lambda row: _hours(row["gpu_hours"]))] if has_gpus else []),
        ("tokenising", True, _tokenising),
        ("evaluation", True, lambda row: duration(row["evaluation_wall_seconds"])),
        ("settings", True, lambda row: integer(row["tuning_budget"])),
        *([("device", False, lambda row: text(row["devices"]))] if several_devices else []),
    ]
    grid = Grid(
        columns=tuple(Column(name, is_number) for name, is_number, _ in makers),
        rows=tuple(tuple(make(row) for _, _, make in makers) for row in frame.to_dict("records")),
    )
    devices = sorted({name for names in frame["devices"] for name in names.split("; ") if name})
    return Block(
        name="compute",
        caption="Compute of every row, set as the protocol sets it",
        grid=grid,
        frame=frame,
        notes=(
            "FLOPs are those of training in one pre-training, forward and backward, a multiply-add counting "
            "two; x MIM: against MIM on the same tokens and trunk. Times are wall times of one seed, "
            f"measured on {', '.join(map(clean, devices)) or 'devices that no record names'}; they depend "
            "on the machine and on what else ran there.",
            "Tokenising is done once and its tokens serve every row on them: the number in brackets. "
            "Evaluation is all that was measured on a row, of one seed.",
            "Training is pre-training. Settings: distinct sets of hyperparameters and recipe values in which "
            "these records pre-trained this method on these tokens and this trunk, whatever came of them. "
            "What was tried elsewhere is not counted.",
        ),
    )


def _cost_line(
    key: RowKey,
    runs: RowRuns,
    sharing: dict[str, set[RowKey]],
    budgets: dict[tuple[str, str, str], int],
) -> dict[str, Any]:
    pretrainings = list(runs.pretrainings.get(key, {}).values())
    tokenisings = list(runs.tokenisings.get(key, {}).values())
    evaluations = runs.evaluations[key]
    by_seed: dict[int | None, list[Record]] = {}
    for record in evaluations:
        by_seed.setdefault(record.seed, []).append(record)
    flops, tokenised = runs.flops(key), mean_of([one.cost.wall_seconds for one in tokenisings])
    reference = runs.flops(key._replace(method=REFERENCE))
    rows = max((len(sharing[one.cell_id]) for one in tokenisings), default=0)
    gpus = [_gpu_hours(one) for one in pretrainings if one.runtime.get("device") == "cuda"]
    used = {one.cost.device for one in (*pretrainings, *evaluations) if one.cost.device}
    return {
        "method": key.method,
        "tokenizer": key.tokenizer,
        "trunk": key.trunk,
        "seeds": len(by_seed),
        "pretraining_flops": flops,
        "flops_to_mim": flops / reference if flops and reference else None,
        "pretraining_wall_seconds": mean_of([one.cost.wall_seconds for one in pretrainings]),
        # Of rows whose seeds ran on unlike devices, a mean over some would pass for the row's.
        "gpu_hours": mean_of(gpus) if len(gpus) == len(pretrainings) else None,
        "tokenising_wall_seconds": tokenised,
        "tokenising_rows": rows,
        "tokenising_share_seconds": tokenised / rows if tokenised is not None and rows else None,
        "evaluation_wall_seconds": _mean_sum(by_seed, lambda one: one.cost.wall_seconds),
        "evaluation_flops": _mean_sum(by_seed, lambda one: one.cost.train_flops),
        # A method that is not pre-trained has nothing to set.
        "tuning_budget": budgets.get((key.method, key.tokenizer, key.trunk)),
        "devices": "; ".join(sorted(used)),
    }


def _gpu_hours(record: Record) -> float:
    """Each process of a training has a GPU to itself."""
    return record.cost.wall_seconds / 3600 * int(record.runtime.get("processes", 1))


def _mean_sum(by_seed: dict[int | None, list[Record]], of: Callable[[Record], float]) -> float | None:
    return mean_of([sum(map(of, records)) for records in by_seed.values()])


def _tokenising(row: Any) -> str:
    if pd.isna(row["tokenising_wall_seconds"]):
        return MISSING
    return f"{duration(row['tokenising_wall_seconds'])} ({integer(row['tokenising_rows'])})"


def _ratio(value: Any) -> str:
    return MISSING if pd.isna(value) else f"{value:.2f}"


def _hours(value: Any) -> str:
    return MISSING if pd.isna(value) else f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _figures(board: Board, runs: RowRuns) -> tuple[tuple[Figure, ...], tuple[str, ...]]:
    """A figure per default evaluation and trunk, a panel per tokenizer; a note for what was too much."""
    figures: list[Figure] = []
    left_out = 0
    keys = [key for key in runs.rows if _is_drawn(key)]
    methods = list(dict.fromkeys(key.method for key in keys if key.method != SCRATCH))
    drawn_ones = {SCRATCH, *methods[:MOST_METHODS]}
    keys = [key for key in keys if key.method in drawn_ones]
    for evaluation in [one.name for one in board.evaluations if one.is_default]:
        for trunk in dict.fromkeys(key.trunk for key in keys):
            of_trunk = [key for key in keys if key.trunk == trunk]
            panels = _panels(of_trunk, runs, evaluation)
            if not panels:
                continue
            if len(figures) == MOST_FIGURES:
                left_out += 1
                continue
            seeds = min(
                len(runs.tops(key, evaluation))
                for key in of_trunk
                if runs.flops(key) and runs.tops(key, evaluation)
            )
            figures.append(_figure(panels, evaluation, trunk, seeds=seeds))
    notes = [f"{left_out} more figures of this kind are not drawn."] if left_out else []
    if len(methods) > MOST_METHODS:
        notes.append(f"Methods beyond the first {MOST_METHODS} are not drawn: {len(methods) - MOST_METHODS}.")
    return tuple(figures), tuple(notes)


def _is_drawn(key: RowKey) -> bool:
    """True of the protocol's own settings, and of those for other epochs."""
    return not set(tried_values(key.variant)) - {"epochs"}


def _panels(keys: Sequence[RowKey], runs: RowRuns, evaluation: str) -> list[ScatterPanel]:
    panels = []
    floor = next((runs.mean(key, evaluation) for key in keys if key.method == SCRATCH), None)
    tokenizers = dict.fromkeys(key.tokenizer for key in keys if key.tokenizer)
    # Methods without a tokenizer stand beside those of every tokenizer.
    for tokenizer in tokenizers or [""]:
        spots = [
            spot
            for key in keys
            if key.tokenizer in (tokenizer, "") and (spot := _spot(key, runs, evaluation)) is not None
        ]
        if len(spots) > 1:
            front = pareto_front([(spot.x, spot.y) for spot in spots])
            panels.append(ScatterPanel(title=clean(tokenizer), spots=tuple(spots), front=front, floor=floor))
    return panels


def _spot(key: RowKey, runs: RowRuns, evaluation: str) -> Spot | None:
    flops, tops, mean = runs.flops(key), runs.tops(key, evaluation), runs.mean(key, evaluation)
    if not flops or mean is None:
        return None
    return Spot(
        method=key.method,
        has_tokens=bool(key.tokenizer),
        x=flops,
        y=mean,
        lowest=min(tops),
        highest=max(tops),
        is_hollow=bool(key.variant),
    )


def _marks_in_words(panels: Sequence[ScatterPanel]) -> str:
    spots = [spot for panel in panels for spot in panel.spots]
    ranges = "; lines up and down: the range of the seeds"
    hollow = "; hollow: trained for other epochs than the protocol's"
    return (
        f"Marks: means over seeds{ranges if any(spot.highest > spot.lowest for spot in spots) else ''}"
        f"{hollow if any(spot.is_hollow for spot in spots) else ''}."
    )


def _figure(panels: Sequence[ScatterPanel], evaluation: str, trunk: str, *, seeds: int) -> Figure:
    name = EVALUATION_NAMES.get(evaluation, clean(evaluation))
    support = (
        "which methods differ is said under the statistics, not by this line"
        if seeds >= ENOUGH_SEEDS
        else f"with fewer than {ENOUGH_SEEDS} seeds it describes these trainings and nothing else"
    )
    caption = (
        f"{name[0].upper()}{name[1:]}, top-1, against the training FLOPs of pre-training, {clean(trunk)}. "
        f"{_marks_in_words(panels)} Grey line: the rows that no other beats at the same or fewer FLOPs "
        f"(Pareto); it joins means, and {support}."
    )
    alone = dict.fromkeys(spot.method for panel in panels for spot in panel.spots if not spot.has_tokens)
    if alone and any(panel.title for panel in panels):
        names = ", ".join(map(method_name, alone))
        caption += f" {names}: without a tokenizer, and so the same in every panel."
    if any(panel.floor is not None for panel in panels):
        caption += " Dashed, or in words where it lies far below: without pre-training."
    words = "; ".join(
        f"{panel.title}: "
        + ", ".join(
            f"{method_name(spot.method)}{' (other epochs)' if spot.is_hollow else ''} "
            f"{spot.y:.2f} at {power_of_ten(spot.x)} FLOPs"
            for spot in panel.spots
        )
        for panel in panels
    )
    return drawn(
        lambda: draw_scatter(panels, x="pre-training FLOPs", y="top-1 (%)"),
        name=f"compute-{evaluation}-{trunk}",
        alt=f"{name} top-1 against pre-training FLOPs. {words}.",
        caption=caption,
    )
