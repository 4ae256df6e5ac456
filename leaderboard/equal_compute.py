"""The equal-compute track: each method's epochs scaled to one method's FLOPs, beside equal epochs.

The view `equal-compute` of a protocol says which epochs, and to whose FLOPs they were scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from leaderboard.grids import (
    EVALUATION_NAMES,
    MISSING,
    Column,
    Grid,
    clean,
    integer,
    method_name,
    percent,
    signed,
    text,
)
from leaderboard.page_rows import merged
from leaderboard.row_runs import RowRuns
from leaderboard.runs import RowKey
from leaderboard.sections import Block
from leaderboard.statistics import mean_and_sd
from leaderboard.view_table import ViewTable
from protocols.schema import Protocol

VIEW_NAME = "equal-compute"
_TEXTS = {"method", "tokenizer", "trunk", "reference"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method's row at the protocol's epochs, and at those that spend the reference's FLOPs."""

    own: RowKey
    scaled: RowKey
    epochs: int
    reference: str


def equal_compute_blocks(runs: RowRuns, protocol: Protocol, tables: Sequence[ViewTable]) -> tuple[Block, ...]:
    """A block for every evaluation of the view; none if the protocol has no such view."""
    view = protocol.views.get(VIEW_NAME)
    if view is None:
        return ()
    entries: dict[str, list[Entry]] = {}
    for cells in view.cells:
        if cells.equal_compute_to is None:
            continue
        (epochs,) = cells.pretraining["epochs"]
        variant = "" if epochs == protocol.pretraining.epochs else f"epochs {epochs}"
        for evaluation in cells.evaluations:
            entries.setdefault(evaluation, []).extend(
                Entry(
                    own=own,
                    scaled=own._replace(variant=variant),
                    epochs=int(epochs),
                    reference=cells.equal_compute_to,
                )
                for trunk in cells.trunks
                for tokenizer in cells.tokenizers
                for own in [RowKey(trunk=trunk, tokenizer=tokenizer, method=name) for name in cells.methods]
            )
    commands = _commands(tables)
    return tuple(
        _block(evaluation, _in_order(of_it, runs, protocol), runs, protocol, commands)
        for evaluation, of_it in entries.items()
    )


def _in_order(entries: Sequence[Entry], runs: RowRuns, protocol: Protocol) -> list[Entry]:
    """As rows stand on the board: by trunk, tokenizer, then method; the reference itself among them."""
    methods = [*protocol.names("methods")]
    by_row = {entry.own: entry for entry in entries}
    for entry in entries:
        itself = entry.own._replace(method=entry.reference)
        # The view may leave out the method whose epochs need no scaling.
        by_row.setdefault(
            itself,
            Entry(own=itself, scaled=itself, epochs=protocol.pretraining.epochs, reference=entry.reference),
        )
    trunks, tokenizers = list(protocol.trunks), list(protocol.tokenizers)
    return sorted(
        by_row.values(),
        key=lambda one: (
            trunks.index(one.own.trunk), tokenizers.index(one.own.tokenizer), methods.index(one.own.method)
        ),
    )  # fmt: skip


def _block(
    evaluation: str, entries: Sequence[Entry], runs: RowRuns, protocol: Protocol, commands: dict[Any, str]
) -> Block:
    frame = pd.DataFrame([_line(entry, evaluation, runs, protocol) for entry in entries])
    frame = frame.astype({name: "float64" for name in frame if name not in _TEXTS})
    several_trunks = frame["trunk"].nunique() > 1
    columns = [
        Column("method", False), Column("tokenizer", False), *([Column("trunk", False)] * several_trunks),
        Column("FLOPs", True), Column("top-1", True), Column("eq. epochs", True), Column("eq. FLOPs", True),
        Column("eq. top-1", True), Column("change", True),
    ]  # fmt: skip
    grid = Grid(
        columns=tuple(columns), rows=tuple(_texts(row, several_trunks) for row in frame.to_dict("records"))
    )
    name = EVALUATION_NAMES.get(evaluation, clean(evaluation))
    reference = ", ".join(dict.fromkeys(method_name(entry.reference) for entry in entries))
    seeds = int(frame[["seeds", "scaled_seeds"]].min().min())
    notes = [
        f"FLOPs: of training in pre-training, as a multiple of {reference}'s in the protocol's "
        f"{protocol.pretraining.epochs} epochs, on the same tokens and trunk; top-1 beside it: every method "
        "in those epochs. Under eq.: in the epochs that spend the same FLOPs. Epochs are whole numbers, so "
        "the FLOPs agree as far as rounding lets them. Every other value, the warm-up included, is the "
        "protocol's; the schedule ends with the last epoch.",
        f"Top-1: mean over seeds, {_seed_words(frame)}, of a row the same on both sides where it has any in "
        "common. Change: of these means, in points.",
    ]
    if seeds < 3:
        notes.append("Fewer than three seeds in some row: nothing is said about methods.")
    missing = [
        commands[place]
        for entry in entries
        if not runs.tops(entry.scaled, evaluation) and (place := (*entry.scaled, evaluation)) in commands
    ]
    notes += [f"Missing; to fill: {command}" for command in merged(missing)]
    return Block(
        name=f"{VIEW_NAME}-{evaluation}",
        caption=f"Equal epochs beside equal compute: {name}",
        grid=grid,
        frame=frame,
        notes=tuple(notes),
    )


def _line(entry: Entry, evaluation: str, runs: RowRuns, protocol: Protocol) -> dict[str, Any]:
    reference = runs.flops(entry.own._replace(method=entry.reference))
    line: dict[str, Any] = {
        "method": entry.own.method,
        "tokenizer": entry.own.tokenizer,
        "trunk": entry.own.trunk,
        "reference": entry.reference,
    }
    scores = [runs.scores.get((key, evaluation), {}) for key in (entry.own, entry.scaled)]
    # Of unlike seeds a change would be theirs, too.
    shared = scores[0].keys() & scores[1].keys()
    for prefix, key, epochs, by_seed in (
        ("", entry.own, protocol.pretraining.epochs, scores[0]),
        ("scaled_", entry.scaled, entry.epochs, scores[1]),
    ):
        flops = runs.flops(key)
        tops = [top for seed, top in by_seed.items() if seed in shared or not shared]
        mean, deviation = mean_and_sd(tops) if tops else (None, None)
        line |= {
            f"{prefix}epochs": epochs,
            f"{prefix}flops": flops,
            f"{prefix}flops_ratio": flops / reference if flops and reference else None,
            f"{prefix}top1_percent": mean,
            f"{prefix}top1_sd": deviation,
            f"{prefix}seeds": len(tops),
        }
    line["change"] = line["scaled_top1_percent"] - line["top1_percent"] if shared else None
    return line


def _texts(row: Any, several_trunks: bool) -> tuple[str, ...]:
    return (
        method_name(row["method"]),
        text(row["tokenizer"]),
        *([text(row["trunk"])] * several_trunks),
        _ratio(row["flops_ratio"]),
        percent(row["top1_percent"]),
        integer(row["scaled_epochs"]),
        _ratio(row["scaled_flops_ratio"]),
        percent(row["scaled_top1_percent"]),
        signed(row["change"]),
    )


def _ratio(value: Any) -> str:
    return MISSING if pd.isna(value) else f"{value:.2f}"


def _seed_words(frame: pd.DataFrame) -> str:
    """How many seeds are behind the means: one number, or from the fewest to the most."""
    counts = sorted({int(count) for name in ("seeds", "scaled_seeds") for count in frame[name]} - {0})
    if not counts:
        return "none yet"
    return f"{counts[0]} each" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _commands(tables: Sequence[ViewTable]) -> dict[Any, str]:
    """(trunk, tokenizer, method, variant, evaluation) -> the command that fills the place."""
    found: dict[Any, str] = {}
    for table in tables:
        if table.name == VIEW_NAME:
            for place in table.frame.to_dict("records"):
                names = ("trunk", "tokenizer", "method", "variant", "evaluation")
                if place["command"]:
                    found[tuple(place[name] for name in names)] = place["command"]
    return found
