"""The tables that a protocol declares as views, filled from the board: every place, with its verdict.

A place is measured if the board has a run for it, of any seed. Without one it is `stale` or `modified` if a
run stands there that present code would make anew, or that changed what the protocol holds equal: its value
is in `seed_values` alone, never in `mean`, so that nothing compares it. Else it is `missing`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from leaderboard.further_rows import ShownView, listed_names, plugin_names, shown_views
from leaderboard.grids import MISSING
from leaderboard.lineage import TOKENISE, ended
from leaderboard.paper import ReportedRow, ReportedTable, paper
from leaderboard.plugin_methods import PluginFiles
from leaderboard.runs import Run
from leaderboard.statistics import mean_and_sd
from leaderboard.tables import Board
from leaderboard.verdicts import standard_error_of, verdict
from leaderboard.view_labels import column_labels, only_trunk, row_headers, row_label, row_texts
from leaderboard.view_layout import ViewColumn, ViewRow, changes_on, lay_out, own_value
from leaderboard.view_notes import notes_of
from leaderboard.view_table import PLACE_COLUMNS, ViewTable
from leaderboard.view_text import Show, views_sections, wide
from protocols.errors import HarnessError, nearest
from protocols.schema import Protocol
from protocols.views import View

__all__ = ["Show", "view_tables", "views_sections", "wide"]

OTHER_WORK = "as reported"
_Place = tuple[str, str, frozenset[tuple[str, str]], str, str]
# What a line also holds until it is one of the frame.
_SEEDS, _OPTIONS = "asked seeds", "options"


def view_tables(board: Board, protocol: Protocol) -> tuple[ViewTable, ...]:
    """One table for each view of `protocol` that is made of cells, in its order.

    Views that list a recipe are no tables of numbers: `leaderboard.recipe_tables` shows them. Which of a
    view's methods have rows, and which others join it, `leaderboard.further_rows` says.
    Raises HarnessError for a view that names a table which the paper does not have.
    """
    cells = _Cells.of(board)
    return tuple(
        _table(shown.name, shown.view, protocol, cells, not_run=not_run_note(shown, protocol))
        for shown in shown_views(board, protocol)
        if shown.view is not None
    )


def not_run_note(shown: ShownView, protocol: Protocol) -> str:
    """That some methods of a view have no rows because nothing of them was run, and how to run them."""
    if not shown.not_run:
        return ""
    places = [
        dict.fromkeys(("tokenizer", "trunk", "evaluation"), "") | {"method": one} for one in shown.not_run
    ]
    command = _command(shown.name, protocol, places, protocol.defaults.seeds, [], PluginFiles())
    return f"Not run, and so without rows: {listed_names(shown.not_run)}. To run: {command}"


@dataclass(frozen=True, kw_only=True)
class _Cells:
    """The board's evaluations by place and by what they are worth there, newest first; failures by row."""

    measured: Mapping[_Place, list[Run]]
    stale: Mapping[_Place, list[Run]]
    modified: Mapping[_Place, list[Run]]
    failed: frozenset[_Place]
    failed_tokenizers: frozenset[str]
    plugins: PluginFiles
    names: Mapping[str, str]

    @classmethod
    def of(cls, board: Board) -> _Cells:
        worth: dict[str, dict[_Place, list[Run]]] = {"board": {}, "stale": {}, "modified": {}}
        failed: set[_Place] = set()
        for run in sorted(board.cells, key=lambda run: ended(run.record), reverse=True):
            key = run.key
            # A trunk that classifies tokens is a part of the evaluation: `key` has none then.
            place = (key.method, key.tokenizer, _setting(key.variant), key.trunk, run.evaluation)
            if run.record.status == "failed" and run.standing == "board":
                failed.add(place)
            standing = "modified" if run.deviations else run.standing
            is_current = standing != "stale" or not run.differing
            if run.record.status == "done" and run.is_evaluation and is_current and standing in worth:
                worth[standing].setdefault(place, []).append(run)
        lost = board.failures
        lost = lost[(lost["stage"] == TOKENISE) & (lost["deviations"] == "")]
        return cls(
            measured=worth["board"],
            stale=worth["stale"],
            modified=worth["modified"],
            failed=frozenset(failed),
            failed_tokenizers=frozenset(lost["tokenizer"]),
            plugins=board.plugin_files,
            names=plugin_names(board),
        )

    def has_failed(self, place: _Place) -> bool:
        """True if what is missing there, or what it would be made from, has failed before."""
        return place in self.failed or (*place[:4], "") in self.failed or place[1] in self.failed_tokenizers


def _setting(variant: str) -> frozenset[tuple[str, str]]:
    """`cutting_point 30, epochs 13` as pairs, in whatever order they are tried."""
    return frozenset(
        (name, _plain(value))
        for name, _, value in (one.rpartition(" ") for one in variant.split(", "))
        if name
    )


def _plain(value: object) -> str:
    """One text for equal values: a view may try 2 where a method's own value is 2.0."""
    try:
        return repr(float(str(value)))
    except ValueError:
        return str(value)


def _table(name: str, view: View, protocol: Protocol, cells: _Cells, *, not_run: str) -> ViewTable:
    layout = lay_out(protocol, view)
    reported = _reported(name, view)
    others = reported.others if reported else ()
    columns = column_labels(layout.columns, metrics=len(view.metrics))
    headers = row_headers(layout, has_epochs=bool(others))
    lines = _lines_of_others(reported, layout.columns, columns)
    texts = [_texts_of_other(row, headers) for row in others]
    numbers = reported.numbers() if reported else {}
    for index, row in enumerate(layout.rows):
        texts.append(row_texts(protocol, layout, index, headers, cells.names))
        place_of_row = {"row": len(others) + index, "row_label": row_label(layout, index, cells.names)}
        for position, column in enumerate(layout.columns):
            if (index, position) in layout.fed:
                place = {**place_of_row, "column": position, "column_label": columns[position]}
                value = _reported_number(protocol, row, column, reported, numbers)
                lines.append(place | _place(name, protocol, row, column, cells, value))
    frame = _frame(lines)
    return ViewTable(
        name=name,
        title=view.title,
        row_headers=headers,
        rows=tuple(texts),
        columns=columns,
        frame=frame,
        notes=notes_of(
            frame,
            source=f"{paper().source}, {_paper_name(view.reported)}" if view.reported else "",
            lost=reported.lost if reported else "",
            fill=_fill(name, protocol, lines, cells.plugins),
            has_dashes=len(frame) < len(texts) * len(columns),
            only_trunk=only_trunk(layout.columns),
            untokenised=listed_names(_untokenised(frame, cells), cells.names),
            not_run=not_run,
        ),
    )


def _untokenised(frame: pd.DataFrame, cells: _Cells) -> list[str]:
    """The methods with a measured row that was pre-trained without a tokenizer, if others have one."""
    measured = frame[frame["mean"].notna()]
    if not measured["tokenizer"].any():
        return []
    pretrained = {place[0] for place, runs in cells.measured.items() if any(run.pretraining for run in runs)}
    return [
        name for name in dict.fromkeys(measured[measured["tokenizer"] == ""]["method"]) if name in pretrained
    ]


def _reported(name: str, view: View) -> ReportedTable | None:
    if view.reported is None:
        return None
    tables = paper().tables
    if view.reported not in tables:
        raise HarnessError(
            f"view {name} asks for the reported numbers of {view.reported!r}, which leaderboard/paper.yaml "
            f"does not have; {nearest(view.reported, tables)}"
        )
    table: ReportedTable = tables[view.reported]
    return table


def _paper_name(table: str) -> str:
    return table.replace("table", "Table ") if table.startswith("table") else table


def _reported_number(
    protocol: Protocol,
    row: ViewRow,
    column: ViewColumn,
    table: ReportedTable | None,
    numbers: Mapping[Any, float],
) -> float | None:
    """What the paper reports of exactly this place; a table that names no trunk speaks of any."""
    if table is None:
        return None
    if any(name not in table.tried for name, _ in changes_on(protocol, row, column.trunk)):
        return None
    changes = dict(row.changes)
    setting = {
        name: changes.get(name, own_value(protocol, name, method=row.method, trunk=column.trunk))
        for name in table.tried
    }
    for trunk in (column.trunk, ""):
        key = (row.method, row.tokenizer, frozenset(setting.items()), trunk, column.evaluation, column.metric)
        if key in numbers:
            return numbers[key]
    return None


def _texts_of_other(row: ReportedRow, headers: Sequence[str]) -> tuple[str, ...]:
    texts = {"method": f"{row.work}, {OTHER_WORK}", "epochs": str(row.epochs or MISSING)}
    return tuple(texts.get(header, MISSING) for header in headers)


def _lines_of_others(
    table: ReportedTable | None, columns: Sequence[ViewColumn], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """The places of what other works report of their own: nothing is measured there."""
    if table is None:
        return []
    lines = []
    for index, row in enumerate(table.others):
        for column, value in zip(table.columns, row.values, strict=True):
            named = ViewColumn(column.trunk or "", column.evaluation, column.metric)
            if value is None or named not in columns:
                continue
            position = columns.index(named)
            lines.append(
                {
                    "row": index, "column": position, "row_label": f"{row.work}, {OTHER_WORK}",
                    "column_label": labels[position], "method": row.work, "variant": "", "tokenizer": "",
                    **named._asdict(), "is_ours": False, "seeds": 0, "reported": value, "verdict": "",
                    "seed_values": "", "cell_ids": "", "command": "",
                }
            )  # fmt: skip
    return lines


def _place(
    view: str,
    protocol: Protocol,
    row: ViewRow,
    column: ViewColumn,
    cells: _Cells,
    reported: float | None,
) -> dict[str, Any]:
    changes = changes_on(protocol, row, column.trunk)
    setting = frozenset((name, _plain(value)) for name, value in changes)
    place = (row.method, row.tokenizer, setting, column.trunk, column.evaluation)
    measured = _by_seed(cells.measured.get(place, ()), column.metric)
    found, said = measured, ""
    if not found:
        found, said = _by_seed(cells.stale.get(place, ()), column.metric), "stale"
    if not found:
        found, said = _by_seed(cells.modified.get(place, ()), column.metric), "modified"
    options = ["--redo-stale"] if found and said == "stale" else []
    if not found:
        said = "missing"
        options = ["--redo-failed"] if cells.has_failed(place) else []
    line: dict[str, Any] = {
        "method": row.method,
        "variant": ", ".join(f"{name} {value}" for name, value in changes),
        "tokenizer": row.tokenizer,
        **column._asdict(),
        "is_ours": True,
        "reported": reported,
        "verdict": said,
        "seed_values": "; ".join(f"{seed}: {_value(run, column.metric):.2f}" for seed, run in found.items()),
        "cell_ids": "; ".join(run.record.cell_id for run in measured.values()),
        "seeds": len(measured),
    }
    if measured:
        values = [_value(run, column.metric) for run in measured.values()]
        mean, sd = mean_and_sd(values)
        error = standard_error_of(sd, len(values))
        line |= {"mean": mean, "sd": sd, "standard_error": error}
        line["images"] = max(run.record.metrics[column.metric].n for run in measured.values())
        line["variant"] = next(iter(measured.values())).key.variant
        if reported is not None:
            line["difference"] = mean - reported
            line["verdict"] = verdict(mean, reported, standard_error=error)
    # What was modified is run as the protocol has it, on its seeds.
    seeds = list(found) if found and said != "modified" else list(protocol.defaults.seeds)
    line |= {"command": _command(view, protocol, [line], seeds, options, cells.plugins)}
    return line | {_SEEDS: seeds, _OPTIONS: options}


def _by_seed(runs: Iterable[Run], metric: str) -> dict[int | None, Run]:
    """The newest of each seed that measured it, by seed."""
    newest: dict[int | None, Run] = {}
    for run in runs:
        if metric in run.record.metrics:
            newest.setdefault(run.record.seed, run)
    return dict(sorted(newest.items(), key=lambda item: -1 if item[0] is None else item[0]))


def _value(run: Run, metric: str) -> float:
    return run.record.metrics[metric].value


def _command(
    view: str,
    protocol: Protocol,
    places: Sequence[Mapping[str, Any]],
    seeds: Iterable[int | None],
    options: Iterable[str],
    plugins: PluginFiles,
) -> str:
    """What runs those places of a view, and with them whatever else it tries in their rows."""
    parts = ["python", "run_benchmark.py", "--protocol", protocol.argument]
    parts += plugins.words(*([str(place[name]) for place in places] for name in ("method", "tokenizer")))
    # A table of plug-ins alone stands in no protocol.
    parts += ["--views", view] if view in protocol.views else []
    for flag, name in (("methods", "method"), ("tokenizers", "tokenizer"), ("trunks", "trunk"),
                       ("evaluations", "evaluation")):  # fmt: skip
        values = dict.fromkeys(str(place[name]) for place in places if place[name])
        parts += [f"--{flag}", *values] if values else []
    known = sorted(seed for seed in seeds if seed is not None)
    return shlex.join([*parts, *(["--seeds", *map(str, known)] if known else []), *options])


def _fill(
    view: str, protocol: Protocol, lines: Sequence[Mapping[str, Any]], plugins: PluginFiles
) -> dict[str, tuple[str, ...]]:
    """For each verdict that asks for cells to be run, the commands that run all of them."""
    commands: dict[str, tuple[str, ...]] = {}
    for said in ("missing", "stale", "modified"):
        # Tokens alone have no method and no trunk: an option that names some would leave them out.
        for is_of_tokens in (False, True):
            places = [
                line for line in lines if line["verdict"] == said and (line["method"] == "") == is_of_tokens
            ]
            if places:
                seeds = {seed for place in places for seed in place[_SEEDS]}
                options = dict.fromkeys(option for place in places for option in place[_OPTIONS])
                command = _command(view, protocol, places, seeds, options, plugins)
                commands[said] = (*commands.get(said, ()), command)
    return commands


def _frame(lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    numbers = ("mean", "sd", "standard_error", "reported", "difference")
    kinds = {name: "float64" if name in numbers else "object" for name in PLACE_COLUMNS}
    kinds |= {"row": "int64", "column": "int64", "seeds": "int64", "images": "Int64", "is_ours": "bool"}
    filled = [
        {name: line.get(name, math.nan if name in numbers else None) for name in PLACE_COLUMNS}
        for line in lines
    ]
    return pd.DataFrame(filled, columns=list(PLACE_COLUMNS)).astype(kinds)
