"""The page's tables of rows that open: what each place shows, how it sorts, and what stands behind a row."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from leaderboard.grids import EVALUATION_NAMES, MISSING, PLUS_MINUS, clean, percent, signed
from leaderboard.page_configurations import Configurations
from leaderboard.plugin_methods import PluginFiles
from leaderboard.record import RECORD_NAME, Record
from leaderboard.runs import Run
from leaderboard.tables import Board
from leaderboard.view_table import ViewTable
from protocols.schema import Protocol

LOG_NAME = "log"
_UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}


@dataclass(frozen=True, kw_only=True)
class Link:
    """`href` is relative to the page, or a place on it."""

    text: str
    href: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One seed of one place: what was measured, and the files that say how."""

    place: str
    seed: str
    value: str
    links: tuple[Link, ...]
    configuration: str = ""


@dataclass(frozen=True, kw_only=True)
class Detail:
    """What opens below a row. `lacking` are sentences on what is not measured; `commands` run the row."""

    anchor: str
    title: str
    measurements: tuple[Measurement, ...]
    lacking: tuple[str, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Place:
    """One place of a view: texts to show, numbers to sort by; `kind` is its verdict, empty if it has none."""

    kind: str
    measured: str
    seeds: str
    reported: str
    difference: str
    verdict: str
    orders: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class PageRow:
    headers: tuple[str, ...]
    places: tuple[Place, ...]
    detail: Detail | None
    is_ours: bool = True


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """A view as the page shows it. Without `has_reported` there is one thing to show, and no choice of it."""

    name: str
    title: str
    row_headers: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[PageRow, ...]
    has_reported: bool
    notes: tuple[str, ...]


class Sources:
    """Finds what stands behind a place: the runs by cell id, their files, their configurations.

    The page links to files in `cells_dir` unless `page_dir` is None: then it lies elsewhere. `merged` are the
    ids of cells that were not made here.
    """

    def __init__(
        self,
        board: Board,
        protocol: Protocol,
        *,
        cells_dir: Path,
        page_dir: Path | None,
        merged: Collection[str] = (),
    ) -> None:
        self._runs = {run.record.cell_id: run for run in board.cells}
        self._cells_dir = cells_dir
        self._merged = merged
        self._seen = None if page_dir is None else Path(os.path.relpath(cells_dir, page_dir)).as_posix()
        self.protocol = protocol
        self.configurations = Configurations()
        # Many places share a cell, and many cells a parent.
        self._files_of: dict[str, tuple[str, ...]] = {}
        self._of_run: dict[str, tuple[tuple[Link, ...], str]] = {}

    def run(self, cell_id: str) -> Run | None:
        """The run of that cell; None if there is no record of it."""
        return self._runs.get(cell_id)

    def is_merged(self, cell_id: str) -> bool:
        """True if the cell came in a bundle."""
        return cell_id in self._merged

    def measurement(self, run: Run, *, place: str, metric: str = "top1_percent") -> Measurement:
        """The line of one seed."""
        measured = run.record.metrics.get(metric) if run.record.status == "done" else None
        if run.record.cell_id not in self._of_run:
            behind = _made_from(run)
            self._of_run[run.record.cell_id] = (
                tuple(self._links(run, behind)),
                self.configurations.anchor(behind),
            )
        links, configuration = self._of_run[run.record.cell_id]
        return Measurement(
            place=place,
            seed=MISSING if run.record.seed is None else str(run.record.seed),
            value=percent(measured.value if measured else None)
            + _standing(run)
            + (" (merged)" if self.is_merged(run.record.cell_id) else ""),
            links=links,
            configuration=configuration,
        )

    def _links(self, run: Run, behind: Sequence[Record]) -> Iterable[Link]:
        if self._seen is None:
            return
        for record in behind:
            about = "" if record is run.record else f"{record.stage} "
            for name in self._files(record.cell_id):
                text = "record" if name == RECORD_NAME else name
                yield Link(text=f"{about}{text}", href=f"{self._seen}/{record.cell_id}/{name}")

    def _files(self, cell_id: str) -> tuple[str, ...]:
        if cell_id not in self._files_of:
            # A record that came from another lab came without its log.
            has_log = os.path.isfile(os.path.join(self._cells_dir, cell_id, LOG_NAME))
            self._files_of[cell_id] = (RECORD_NAME, LOG_NAME) if has_log else (RECORD_NAME,)
        return self._files_of[cell_id]


def _made_from(run: Run) -> list[Record]:
    parents = [one for one in (run.pretraining, run.tokenising) if one is not None]
    return [run.record, *(one for one in parents if one.cell_id != run.record.cell_id)]


def _standing(run: Run) -> str:
    return "" if run.standing == "board" else f" ({run.standing})"


def board_details(board: Board, rows: pd.DataFrame, sources: Sources) -> list[Detail]:
    """What opens below each row of the main table."""
    by_row: dict[tuple[str, ...], list[Run]] = {}
    for run in board.cells:
        if run.standing == "board" and run.is_evaluation and not run.is_of_tokens:
            by_row.setdefault(tuple(run.key), []).append(run)
    names = ["trunk", "tokenizer", "method", "variant"]
    details = []
    for number, row in enumerate(rows[names].itertuples(index=False)):
        runs = by_row.get(tuple(row), [])
        evaluations = list(dict.fromkeys(run.evaluation for run in runs))
        seeds = sorted({run.record.seed for run in runs if run.record.seed is not None})
        details.append(
            Detail(
                anchor=f"board-row-{number}",
                title=", ".join(clean(part) for part in (row.method, row.tokenizer, row.trunk) if part),
                measurements=tuple(
                    sources.measurement(
                        run, place=EVALUATION_NAMES.get(run.evaluation, clean(run.evaluation))
                    )
                    for run in runs
                ),
                lacking=(),
                commands=(
                    row_command(
                        sources.protocol,
                        row,
                        evaluations=evaluations,
                        seeds=seeds,
                        plugins=board.plugin_files,
                    ),
                ),
            )
        )
    return details


def row_command(
    protocol: Protocol,
    row: Any,
    *,
    evaluations: Sequence[str],
    seeds: Sequence[int],
    plugins: PluginFiles,
) -> str:
    """The command that makes one row of the main table, with everything that it is made from."""
    chosen = {
        "--methods": [row.method],
        "--tokenizers": [row.tokenizer] if row.tokenizer else [],
        "--trunks": [row.trunk],
        "--evaluations": list(evaluations),
        "--seeds": [str(seed) for seed in seeds],
    }
    parts = ["python", "run_benchmark.py", "--protocol", protocol.argument]
    parts += plugins.words([row.method], [row.tokenizer])
    for option, values in chosen.items():
        parts += [option, *values] if values else []
    return shlex.join(parts)


def page_table(table: ViewTable, sources: Sources) -> PageTable:
    """The view with everything that the page shows of it, in its own order."""
    places: dict[int, dict[int, dict[str, Any]]] = {}
    for line in table.frame.to_dict("records"):
        places.setdefault(int(line["row"]), {})[int(line["column"])] = line
    rows = []
    for number, headers in enumerate(table.rows):
        lines = places.get(number, {})
        is_ours = all(bool(line["is_ours"]) for line in lines.values())
        rows.append(
            PageRow(
                headers=tuple(map(clean, headers)),
                places=tuple(_place(lines.get(column), sources) for column in range(len(table.columns))),
                detail=_detail(table, number, headers, lines, sources) if is_ours and lines else None,
                is_ours=is_ours,
            )
        )
    return PageTable(
        name=table.name,
        title=clean(table.title),
        row_headers=tuple(map(clean, table.row_headers)),
        columns=tuple(map(clean, table.columns)),
        rows=tuple(rows),
        has_reported=bool(table.frame["reported"].notna().any()),
        notes=tuple(map(clean, table.notes)),
    )


def _place(line: Mapping[str, Any] | None, sources: Sources) -> Place:
    if line is None:
        return Place(kind="", measured=MISSING, seeds="", reported="", difference="", verdict="", orders={})
    mean, deviation, verdict = line["mean"], line["sd"], clean(str(line["verdict"] or ""))
    shown = percent(mean) if pd.isna(deviation) else f"{percent(mean)} {PLUS_MINUS} {percent(deviation)}"
    if pd.isna(mean) and verdict:
        # Of what is stale or modified the seeds' own numbers are shown, and no mean that invites comparison.
        shown = ", ".join(value for _, value in _seed_values(line)) or verdict
    orders = {name: line[column] for name, column in _ORDERS.items()}
    seeds = 0 if pd.isna(line["seeds"]) else int(line["seeds"])
    merged = sum(map(sources.is_merged, _cell_ids(line)))
    counted = f"{seeds} {'seed' if seeds == 1 else 'seeds'}{f', {merged} merged' if merged else ''}"
    return Place(
        kind=verdict,
        measured=shown,
        seeds=counted if seeds and not pd.isna(mean) else "",
        reported="" if pd.isna(line["reported"]) else f"{line['reported']:.1f}",
        difference="" if pd.isna(line["difference"]) else signed(line["difference"]),
        verdict=verdict,
        orders={name: "" if pd.isna(value) else f"{value:.6f}" for name, value in orders.items()},
    )


_ORDERS = {"measured": "mean", "reported": "reported", "difference": "difference"}


def _detail(
    table: ViewTable,
    number: int,
    headers: Sequence[str],
    lines: Mapping[int, Mapping[str, Any]],
    sources: Sources,
) -> Detail:
    measurements: list[Measurement] = []
    lacking: dict[str, list[str]] = {}
    for _, line in sorted(lines.items()):
        place = clean(str(line["column_label"]))
        runs = [sources.run(cell_id) for cell_id in _cell_ids(line)]
        metric = str(line["metric"])
        measurements += [sources.measurement(run, place=place, metric=metric) for run in runs if run]
        if line["verdict"] in ("missing", "stale", "modified"):
            values = "; ".join(f"seed {seed}: {value}" for seed, value in _seed_values(line))
            said = f"{place} ({values})" if values and not runs else place
            lacking.setdefault(str(line["verdict"]), []).append(said)
    return Detail(
        anchor=f"{table.name}-row-{number}",
        title=", ".join(clean(one) for one in headers if one and one != MISSING),
        measurements=tuple(measurements),
        lacking=tuple(f"{verdict}: {', '.join(places)}" for verdict, places in lacking.items()),
        commands=merged(str(line["command"]) for line in lines.values() if line["command"]),
    )


def merged(commands: Iterable[str]) -> tuple[str, ...]:
    """The same commands, those of one view and one set of options as one: its values are all of theirs.

    Such a command may name more places than its parts, but `--views` keeps it to those of the view.
    """
    groups: dict[tuple[str, ...], dict[str, dict[str, None]]] = {}
    for command in commands:
        options: dict[str, dict[str, None]] = {}
        given = options.setdefault("", {})
        for part in shlex.split(command):
            if part.startswith("--"):
                given = options.setdefault(part, {})
            else:
                given[part] = None
        group = groups.setdefault(tuple(options), {})
        for option, values in options.items():
            group.setdefault(option, {}).update(values)
    return tuple(
        shlex.join(part for option, values in group.items() for part in (option, *values) if part)
        for group in groups.values()
    )


def _cell_ids(line: Mapping[str, Any]) -> list[str]:
    return [cell_id for cell_id in str(line["cell_ids"] or "").split("; ") if cell_id]


def _seed_values(line: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Seed and value, of `0: 74.61; 1: 74.48`."""
    pairs = (one.partition(": ") for one in str(line["seed_values"] or "").split("; ") if one)
    return [(clean(seed), clean(value)) for seed, _, value in pairs]


def order_of(cell: str) -> str:
    """The number by which a cell of a column of numbers sorts: what it shows first, empty if it shows none.

    Taken from the text, so that what reads as equal sorts as equal.
    """
    parts = re.fullmatch(r"(?:([\d,]+)h)?(?:(\d+)m)?(?:([\d.]+)s)?", cell)
    if parts and cell:
        given = zip(parts.groups(), _SECONDS.values(), strict=True)
        return f"{sum(float(part.replace(',', '')) * size for part, size in given if part):g}"
    number = re.match(r"([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)([kMG]?)", cell)
    if number is None:
        return ""
    return repr(float(number[1].replace(",", "")) * _UNITS.get(number[2], 1.0))
