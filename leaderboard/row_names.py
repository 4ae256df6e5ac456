"""The names by which rows of a board are given, and the commands that measure them.

A row is METHOD/TOKENIZER/TRUNK, with @NAME=VALUE,... for what a view tries; METHOD/TRUNK of a method that
has no tokenizer, such as scratch; or tokens/TOKENIZER for tokens alone. The trunk may be left out where the
protocol has one.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence

from leaderboard.imported import PREFIX
from leaderboard.lineage import SCRATCH
from leaderboard.runs import RowKey
from leaderboard.tables import Board
from leaderboard.view_layout import changes_on, lay_out, own_value
from protocols.errors import HarnessError, nearest, unknown
from protocols.schema import Protocol

TOKENS = "tokens"


def row_name(key: RowKey) -> str:
    """The name by which a row can be given."""
    if not key.method:
        return f"{TOKENS}/{key.tokenizer}"
    name = "/".join(part for part in (key.method, key.tokenizer, key.trunk) if part)
    tried = ",".join("=".join(value.rsplit(" ", 1)) for value in key.variant.split(", ") if value)
    return f"{name}@{tried}" if tried else name


def row_key(protocol: Protocol, board: Board, name: str) -> RowKey:
    """The row called `name`. Raises HarnessError if neither the protocol nor the board has one."""
    stem, _, tried = name.lower().partition("@")
    parts = [part for part in stem.split("/") if part]
    method, rest = (parts[0], parts[1:]) if parts else ("", [])
    if method.startswith(PREFIX):
        raise HarnessError(
            f"{name!r} is of imported weights: nothing proves how they were pre-trained, and so they are "
            "compared with no row; the command report shows what was measured of them"
        )
    known = {run.key for run in board.cells}
    if method == TOKENS and len(rest) == 1 and not tried:
        if rest[0] not in protocol.names("tokenizers"):
            raise unknown("tokenizer", rest[0], protocol.names("tokenizers"))
        return RowKey(trunk="", tokenizer=rest[0], method="")
    without = _without_tokenizer(protocol, known)
    names = 1 if method in without else 2
    if len(rest) == names - 1 and len(protocol.trunks) == 1:
        rest = [*rest, *protocol.trunks]
    if len(rest) != names or (names == 1 and rest[0] in protocol.names("tokenizers")):
        raise HarnessError(
            f"{name!r} is no row; a row is METHOD/TOKENIZER/TRUNK, METHOD/TRUNK where the method has no "
            f"tokenizer ({', '.join(sorted(without))}), or {TOKENS}/TOKENIZER; "
            + nearest(name, _row_names(protocol, board))
        )
    # Plug-in methods and tokenizers stand in no protocol, but on its board.
    for kind, given, others in (
        ("method", method, {key.method for key in known}),
        ("tokenizer", rest[0] if names == 2 else "", {key.tokenizer for key in known}),
        ("trunk", rest[-1], {key.trunk for key in known}),
    ):
        names_of_kind = {*protocol.names(f"{kind}s"), *others} - {""}
        if given and given not in names_of_kind:
            raise unknown(kind, given, names_of_kind)
    key = RowKey(trunk=rest[-1], tokenizer=rest[0] if names == 2 else "", method=method)
    return key if not tried else _variant(key, name, tried, protocol)


def _without_tokenizer(protocol: Protocol, known: Collection[RowKey]) -> set[str]:
    """The methods whose rows have none, as views of the protocol or rows of the board show them."""
    in_views = {
        method
        for view in protocol.views.values()
        for cells in view.cells
        if not cells.tokenizers
        for method in cells.methods
    }
    return {SCRATCH, *in_views, *(key.method for key in known if key.method and not key.tokenizer)}


def _variant(key: RowKey, name: str, tried: str, protocol: Protocol) -> RowKey:
    """`key` with the values that a view of the protocol tries. Raises HarnessError if none tries them."""
    wanted = {tuple(part.strip() for part in value.partition("=")[::2]) for value in tried.split(",")}
    own = {
        (one, value)
        for one, value in wanted
        if str(own_value(protocol, one, method=key.method, trunk=key.trunk)) == value
    }
    if wanted == own:
        return key
    there: set[str] = set()
    for _, other in _tried_rows(protocol, key):
        if _values(other) == {f"{one} {value}" for one, value in wanted - own}:
            return other
        there.add(row_name(other))
    raise HarnessError(f"no view of protocol {protocol.name} tries {name!r}; {nearest(name, there)}")


def _tried_rows(protocol: Protocol, key: RowKey) -> Iterator[tuple[str, RowKey]]:
    """The rows of that method, tokenizer and trunk that views try, each with the view's name."""
    for view_name, view in protocol.views.items():
        for row in lay_out(protocol, view).rows if view.cells else ():
            changes = changes_on(protocol, row, key.trunk)
            if changes and (row.method, row.tokenizer) == (key.method, key.tokenizer):
                variant = ", ".join(f"{name} {value}" for name, value in sorted(changes))
                yield view_name, key._replace(variant=variant)


def _values(key: RowKey) -> set[str]:
    return {value for value in key.variant.split(", ") if value}


def is_same_row(key: RowKey, other: RowKey) -> bool:
    """True for one row, in whatever order its tried values are named."""
    return key._replace(variant="") == other._replace(variant="") and _values(key) == _values(other)


def row_command(
    key: RowKey, protocol: Protocol, board: Board, *, start: str, evaluations: Sequence[str] = ()
) -> str:
    """What measures the row, in the protocol's evaluations if none are named; `start` ends with the protocol.

    Empty if no command does: what a view tries is measured in what that view asks for.
    """
    start = " ".join([start, *map(shlex.quote, board.plugin_files.words([key.method], [key.tokenizer]))])
    view = ""
    if key.variant or evaluations:
        # Studies are run only if their view is named; what no view asks for, only without any.
        asking = (name for name in protocol.views if _asks(protocol, name, key, evaluations))
        view = next(asking, "" if key.variant else "none")
        if not view:
            return ""
    chosen = {
        "--views": [view],
        "--methods": [key.method],
        "--tokenizers": [key.tokenizer],
        "--trunks": [key.trunk],
        "--evaluations": evaluations,
    }
    return " ".join(
        [start, *(f"{flag} {shlex.join(values)}" for flag, values in chosen.items() if any(values))]
    )


def _asks(protocol: Protocol, view: str, key: RowKey, evaluations: Sequence[str]) -> bool:
    """True if cells of `view` measure the row in all `evaluations`; of tokens alone whatever their trunk."""
    if not protocol.views[view].cells:
        return False
    layout = lay_out(protocol, protocol.views[view])
    for index, row in enumerate(layout.rows):
        changes = changes_on(protocol, row, key.trunk) if key.method else row.changes
        variant = ", ".join(f"{name} {value}" for name, value in sorted(changes))
        if (row.method, row.tokenizer) == (key.method, key.tokenizer) and is_same_row(
            key._replace(variant=variant), key
        ):
            columns = [column for place, column in enumerate(layout.columns) if (index, place) in layout.fed]
            found = {one.evaluation for one in columns if not key.method or one.trunk == key.trunk}
            return bool(found) and found >= set(evaluations)
    return False


def _row_names(protocol: Protocol, board: Board) -> set[str]:
    names = {row_name(run.key) for run in board.cells}
    without = _without_tokenizer(protocol, [run.key for run in board.cells])
    for method in protocol.names("methods"):
        tokenizers = [""] if method in without else protocol.names("tokenizers")
        names |= {
            row_name(RowKey(trunk=trunk, tokenizer=tokenizer, method=method))
            for tokenizer in tokenizers
            for trunk in protocol.trunks
        }
    return names
