"""Methods beyond those that a protocol runs by default: which tables they join, what is said of the others.

A protocol may list further methods, and plug-ins bring methods and tokenizers that none lists. A table has
rows of them once there is a record, whatever came of it; before, a line says how to run what is listed. So a
board of the protocol's own methods lacks nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from leaderboard.grids import method_name, plugin_method_name
from leaderboard.lineage import SCRATCH
from leaderboard.tables import Board
from protocols.schema import Protocol
from protocols.views import View, ViewCells

PLUGINS_VIEW, PLUGINS_TITLE = "plug-ins", "Methods of plug-ins beside the protocol's"


@dataclass(frozen=True, kw_only=True)
class ShownView:
    """A view as a board shows it: its cells are of methods that have rows; `not_run` are those without.

    `view` is None where all that it would add are methods without a record.
    """

    name: str
    view: View | None
    not_run: tuple[str, ...] = ()


def shown_views(board: Board, protocol: Protocol) -> tuple[ShownView, ...]:
    """The views of `protocol` that are made of cells, in its order, as the records fill them.

    Methods and tokenizers that the protocol does not list join the views that take them. If it has none, the
    methods of plug-ins stand in a table of their own, beside whatever else the board has.
    """
    recorded = _Recorded.of(board)
    views = {name: view for name, view in protocol.views.items() if view.cells}
    found = [_shown(name, view, protocol, recorded) for name, view in views.items()]
    is_taken = any(view.takes_plugins for view in views.values()) or PLUGINS_VIEW in protocol.views
    if not is_taken and set(board.plugins) - set(protocol.names("methods")):
        found.append(ShownView(name=PLUGINS_VIEW, view=_of_plugins(board, recorded)))
    return tuple(found)


def plugin_names(board: Board) -> dict[str, str]:
    """How each method of a plug-in is called: `Ring MIM (plug-in ring_mim.py)`."""
    return {
        name: plugin_method_name(name, title=one.title, plugin=one.plugin)
        for name, one in board.plugins.items()
    }


def listed_names(methods: Iterable[str], names: Mapping[str, str] | None = None) -> str:
    """`SplitMask, MaskFeat and BEiT v2`; nothing of none. `names` are those of plug-ins' methods."""
    *others, last = [(names or {}).get(one, method_name(one)) for one in methods] or [""]
    return f"{', '.join(others)} and {last}" if others else last


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    """What there are records of, in the board's order: methods, and tokenizers each with its methods."""

    methods: tuple[str, ...]
    on_tokenizer: Mapping[str, tuple[str, ...]]
    plugins: frozenset[str]

    @classmethod
    def of(cls, board: Board) -> _Recorded:
        rows = dict.fromkeys((run.key.method, run.key.tokenizer) for run in board.cells if run.key.method)
        tokenizers = dict.fromkeys(tokenizer for _, tokenizer in rows if tokenizer)
        return cls(
            methods=tuple(dict.fromkeys(method for method, _ in rows)),
            on_tokenizer={
                one: tuple(method for method, tokenizer in rows if tokenizer == one) for one in tokenizers
            },
            plugins=frozenset(board.plugins),
        )

    def uses_tokens(self, method: str) -> bool:
        """False for a method of which no record has a tokenizer."""
        return any(method in methods for methods in self.on_tokenizer.values())


def _shown(name: str, view: View, protocol: Protocol, recorded: _Recorded) -> ShownView:
    listed, tokenizers = protocol.names("methods"), protocol.names("tokenizers")
    named = dict.fromkeys(method for cells in view.cells for method in cells.methods)
    further = [method for method in named if method not in protocol.defaults.methods]
    not_run = [method for method in further if method not in recorded.methods]
    # In the protocol's order, whatever the view's.
    not_run.sort(key=[*listed, *further].index)
    kept = [part for cells in view.cells for part in _recorded_part(cells, not_run, recorded)]
    if view.takes_plugins:
        joined = [
            method
            for method in recorded.methods
            if method not in listed or (method in recorded.plugins and method not in named)
        ]
        joining = [one for one in recorded.on_tokenizer if one not in tokenizers]
        if not (joined or joining) and len(not_run) == len(further):
            # What remains are rows that other tables have.
            return ShownView(name=name, view=None, not_run=tuple(not_run))
        beside = next(cells for cells in view.cells if cells.methods and cells.tokenizers)
        for tokenizer in joining:
            methods = tuple(one for one in beside.methods if one in recorded.on_tokenizer[tokenizer])
            if methods:
                kept.append(beside.model_copy(update={"methods": methods, "tokenizers": (tokenizer,)}))
        for method in joined:
            own = [one for one in joining if method in recorded.on_tokenizer[one]]
            cells = beside.model_copy(update={"tokenizers": (*beside.tokenizers, *own)})
            kept.append(cells.taken_by(method, uses_tokens=recorded.uses_tokens(method)))
    shown = view.model_copy(update={"cells": tuple(kept)})
    return ShownView(name=name, view=shown, not_run=tuple(not_run))


def _recorded_part(cells: ViewCells, not_run: Collection[str], recorded: _Recorded) -> Iterator[ViewCells]:
    """`cells` without what was not run; methods without a tokenizer, which need none named, by themselves."""
    methods = [method for method in cells.methods if method not in not_run]
    alone = [
        method
        for method in methods
        if cells.tokenizers
        and method != SCRATCH
        and method in recorded.methods
        and not recorded.uses_tokens(method)
    ]
    others = tuple(method for method in methods if method not in alone)
    # Cells that name no method are of tokens alone.
    if others or not cells.methods:
        yield cells if others == cells.methods else cells.model_copy(update={"methods": others})
    for method in alone:
        yield cells.taken_by(method, uses_tokens=False)


def _of_plugins(board: Board, recorded: _Recorded) -> View:
    """A table of every method on the board, in the evaluations that some plug-in's method was measured in."""
    runs = [run for run in board.cells if run.key.method in board.plugins]
    evaluations = tuple(dict.fromkeys(run.evaluation for run in runs if run.evaluation))
    cells = []
    for uses_tokens in (False, True):
        methods = tuple(one for one in recorded.methods if recorded.uses_tokens(one) == uses_tokens)
        if methods:
            cells.append(
                ViewCells(
                    methods=methods,
                    tokenizers=tuple(recorded.on_tokenizer) if uses_tokens else (),
                    trunks=tuple(dict.fromkeys(run.key.trunk for run in runs)),
                    evaluations=evaluations or tuple(one.name for one in board.evaluations),
                )
            )
    return View(title=PLUGINS_TITLE, cells=tuple(cells))
