"""What --set does to a selection: its plan, and the lines by which `plan`, `status` and `run` tell it."""

from __future__ import annotations

from argparse import Namespace

from benchmark.commands.options import check_asked_work_dir, read_selection
from benchmark.plan import Cell, Selection, make_plan, mark_modified
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.load import is_said, value_at
from protocols.reader import override_of
from protocols.schema import Protocol


def planned(protocol: Protocol, selection: Selection, *, given: str) -> list[Cell]:
    """The cells; an error that only --set causes names it. `given` is the protocol as the user wrote it."""
    try:
        return make_plan(protocol, selection)
    except HarnessError as error:
        if not protocol.deviations:
            raise
        make_plan(load_protocol(given), selection)  # what is wrong without --set too is said without it
        flags = " ".join(f"--set {one}" for one in protocol.deviations)
        raise type(error)(f"{flags}: {error}") from None


def chosen_cells(options: Namespace) -> tuple[Protocol, Selection, list[Cell]]:
    """The protocol with what --set changes, the selection, and its cells, those that --set moves marked."""
    protocol, selection = read_selection(options)
    plan = planned(protocol, selection, given=options.protocol)
    if options.set and protocol.deviations:
        plan = mark_modified(plan, load_protocol(options.protocol), selection)
    return protocol, selection, plan


def lines_of_set(options: Namespace, protocol: Protocol, selection: Selection) -> list[str]:
    """One line for each value that --set moves, and one for each --set that moves no cell."""
    if not options.set:
        return []
    original = load_protocol(options.protocol)
    lines = [
        f"modified: {one} (the protocol says {_said(original, override_of(one)[0])})"
        for one in protocol.deviations
    ]
    return lines + idle_lines(options, original, selection)


def idle_lines(options: Namespace, original: Protocol, selection: Selection) -> list[str]:
    """One line for each --set that leaves every cell of the selection as it is in `original`."""
    own = {cell.id for cell in make_plan(original, selection)}
    given = dict(override_of(text) for text in options.set)
    return [
        f"--set {path}={value} changes no cell of this selection"
        for path, value in given.items()
        if _ids_under(options.protocol, f"{path}={value}", selection) == own
    ]


def lines_under_title(options: Namespace, protocol: Protocol, selection: Selection) -> list[str]:
    """What `plan` and `status` say between their title and their table."""
    lines = lines_of_set(options, protocol, selection)
    check_asked_work_dir(options.work_dir)
    return lines if options.work_dir.exists() else [*lines, f"no such folder yet: {options.work_dir}"]


def _ids_under(name: str, override: str, selection: Selection) -> set[str] | None:
    """Ids of the selection's cells with this one value changed; None where it needs another beside it."""
    try:
        return {cell.id for cell in make_plan(load_protocol(name, overrides=[override]), selection)}
    except HarnessError:
        return None


def _said(original: Protocol, path: str) -> str:
    return _shown(value_at(original, path)) if is_said(original, path) else "nothing of it"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value)
