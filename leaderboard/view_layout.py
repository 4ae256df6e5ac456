"""Which rows and columns a view's table has, by one rule from the cells that the protocol declares.

Rows, in this order: for each of the view's `cells`, each tokenizer (none first, for a trunk that is not
pre-trained), in it each method, in it each combination of the values that the cells try. A value that the
protocol sets anyway is tried too: its row stands among the others, with the numbers of the protocol's own
setting. Cells that name the same row share it.

Columns: each trunk, in it each evaluation, in it each metric of the view. A place that no cell feeds, such
as a linear probe that a view does not ask of scratch, is no place of the table: it is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from leaderboard.lineage import SCRATCH
from protocols.schema import Protocol
from protocols.views import View, ViewCells

CUTTING_POINT = "cutting_point"
Values = tuple[tuple[str, Any], ...]


class ViewRow(NamedTuple):
    """A row; texts are empty for what it does not have. `changes` are the tried values that count.

    Those are the values that are not the protocol's own on one of the trunks at least, by name.
    """

    method: str
    tokenizer: str
    changes: Values


class ViewColumn(NamedTuple):
    """A column; the trunk is empty where tokens alone are classified."""

    trunk: str
    evaluation: str
    metric: str


@dataclass(frozen=True, kw_only=True)
class ViewLayout:
    """`fed` are the places (row, column) that a cell of the view feeds.

    `tried` names every value that the view tries, in its order; `trials` has those of each row, also
    where a value is the protocol's own.
    """

    rows: tuple[ViewRow, ...]
    columns: tuple[ViewColumn, ...]
    fed: frozenset[tuple[int, int]]
    tried: tuple[str, ...]
    trials: tuple[Mapping[str, Any], ...]


def lay_out(protocol: Protocol, view: View) -> ViewLayout:
    """The table of `view`."""
    rows: dict[ViewRow, dict[str, Any]] = {}
    feeding: list[tuple[ViewRow, ViewCells]] = []
    for cells in view.cells:
        for row, trial in _rows(protocol, cells):
            rows.setdefault(row, {}).update(trial)
            feeding.append((row, cells))
    columns = _columns(view)
    row_at = {row: index for index, row in enumerate(rows)}
    column_at = {column: index for index, column in enumerate(columns)}
    fed = {
        (row_at[row], column_at[ViewColumn(trunk, evaluation, metric)])
        for row, cells in feeding
        for trunk, evaluation, metric in product(cells.trunks or ("",), cells.evaluations, view.metrics)
    }
    return ViewLayout(
        rows=tuple(rows),
        columns=columns,
        fed=frozenset(fed),
        tried=tuple(dict.fromkeys(name for cells in view.cells for name in _tried(cells))),
        trials=tuple(rows.values()),
    )


def own_value(protocol: Protocol, name: str, *, method: str, trunk: str) -> Any:
    """What the protocol sets: of the method's own, else of the pre-training recipe; None if neither."""
    # Of a plug-in's method the protocol sets nothing.
    if method in protocol.names("methods") and trunk:
        values = protocol.method_values(method, trunk)
        if name in values:
            return values[name]
    return getattr(protocol.pretraining, name, None) if method != SCRATCH else None


def changes_on(protocol: Protocol, row: ViewRow, trunk: str) -> Values:
    """The tried values of `row` that are not the protocol's own on `trunk`."""
    return tuple(
        (name, value)
        for name, value in row.changes
        if own_value(protocol, name, method=row.method, trunk=trunk) != value
    )


def shown_reconstruction_ratio(cutting_point: int, *, patches: int) -> str:
    """The share of the sequence that is predicted, to two decimals, as the paper's Table 6 prints it.

    Its five rows come out if the class token counts on both sides: 98 of 197 slots leave 0.50. Of the
    patches alone it would be 0.51.
    """
    return f"{1 - cutting_point / (1 + patches):.2f}"


def _tried(cells: ViewCells) -> dict[str, tuple[Any, ...]]:
    return {**cells.hyperparameters, **cells.pretraining}


def _rows(protocol: Protocol, cells: ViewCells) -> Iterator[tuple[ViewRow, dict[str, Any]]]:
    tried = _tried(cells)
    for tokenizer, method in product(("", *cells.tokenizers), cells.methods or ("",)):
        is_trained_on_tokens = method != SCRATCH and bool(cells.tokenizers)
        if is_trained_on_tokens != bool(tokenizer):
            continue
        for values in product(*tried.values()) if method != SCRATCH else ((),):
            trial = dict(zip(tried, values, strict=False))
            changes = tuple(
                (name, trial[name])
                for name in sorted(trial)
                if any(
                    own_value(protocol, name, method=method, trunk=one) != trial[name] for one in cells.trunks
                )
            )
            yield ViewRow(method, tokenizer, changes), trial


def _columns(view: View) -> tuple[ViewColumn, ...]:
    evaluations: dict[str, dict[str, None]] = {}
    for cells in view.cells:
        for trunk in cells.trunks or ("",):
            evaluations.setdefault(trunk, {}).update(dict.fromkeys(cells.evaluations))
    return tuple(
        ViewColumn(trunk, evaluation, metric)
        for trunk, named in evaluations.items()
        for evaluation in named
        for metric in view.metrics
    )
