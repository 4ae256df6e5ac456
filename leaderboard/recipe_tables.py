"""The tables of hyperparameters (the paper's 7 and 8): what the protocol sets, beside what the paper prints.

One line for each value; a line of its own for each trunk, or group of trunks, where one of the two differs.
What the recipe holds and the paper does not print follows below. Nothing here is measured: the values are
those that every cell of the protocol runs with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from leaderboard.grids import MISSING, Column, Grid, clean
from leaderboard.paper import PrintedLine, PrintedRecipe, paper
from leaderboard.sections import Block, Section
from leaderboard.view_labels import trunk_name
from protocols.errors import HarnessError
from protocols.schema import Protocol, Source, Trunk
from protocols.views import View

RecipeVerdict = Literal[
    "same", "differs", "lost in the text", "assumed", "not printed", "no such trunk", "not set here"
]
NONE = "none"
LEFT_OUT = "left out of the protocol's file, and so not applied"
_ALL = "all"
_NOTES = {
    "differs": "differs: the protocol sets another value than the paper prints",
    "lost in the text": "lost in the text: the text at hand no longer holds the paper's value",
    "assumed": "assumed: the paper does not print it, and no source fixes it",
    "not printed": "not printed: the paper's table does not hold it; another source does",
    "no such trunk": "no such trunk: the paper prints a value for each trunk of its own, and this is none",
    "not set here": "not set here: no value of a protocol; the harness does not do it",
}


@dataclass(frozen=True, kw_only=True)
class RecipeLine:
    """One value on some trunks. `here` and `printed` are as a reader sees them; `source` says who set it."""

    name: str
    trunks: tuple[str, ...]
    here: str
    printed: str
    verdict: RecipeVerdict
    source: str
    note: str = ""


def recipe_sections(protocol: Protocol) -> tuple[Section, ...]:
    """A section for each view of `protocol` that lists a recipe, in its order."""
    return tuple(
        _section(name, view, protocol) for name, view in protocol.views.items() if view.recipe is not None
    )


def recipe_lines(protocol: Protocol, name: str) -> tuple[RecipeLine, ...]:
    """Every line of the table of the view called `name`, those that the paper prints first."""
    view = protocol.views[name]
    printed = _printed(name, view)
    by_trunk = {trunk: _Values(protocol, view, trunk) for trunk in protocol.trunks}
    listed = {line.value for line in printed.lines}
    first = next(iter(by_trunk.values()))
    unprinted = [
        PrintedLine(name=name.replace("_", " "), value=f"recipe.{name}", is_lost=True)
        for name in first.fields
        if f"recipe.{name}" not in listed
    ]
    return tuple(
        one
        for lines, is_printed in ((printed.lines, True), (unprinted, False))
        for line in lines
        for one in _grouped(line, by_trunk, is_printed=is_printed)
    )


class _Values:
    """The values of one trunk by SCOPE.FIELD, and where each stands in the protocol's file."""

    def __init__(self, protocol: Protocol, view: View, trunk: str) -> None:
        self._protocol, self._trunk = protocol, trunk
        self._scopes: dict[str, Any] = {"trunk": protocol.trunks[trunk], "data": protocol.data}
        self._paths = {"trunk": f"trunks.{trunk}", "data": "data", "recipe": "pretraining"}
        self._scopes["recipe"] = protocol.pretraining
        if view.recipe == "finetune":
            name = _fine_tuning(protocol, trunk)
            self._scopes["recipe"] = protocol.evaluation(name, trunk)
            self._paths["recipe"] = f"evaluations.{name}"

    @property
    def fields(self) -> list[str]:
        """The fields of the recipe that the file sets, but for what kind it is."""
        recipe = self._scopes["recipe"]
        return [name for name in type(recipe).model_fields if name in recipe.model_fields_set - {"kind"}]

    def value(self, where: str) -> Any:
        scope, _, field = where.partition(".")
        held = self._scopes[scope]
        if isinstance(held, Trunk) and field == "ffn_width":
            return int(held.width * held.mlp_ratio)
        if isinstance(held, Trunk) and field == "head_width":
            return held.width // held.heads
        return getattr(held, field)

    def sources(self, where: str) -> list[Source]:
        """Who says so; of a value that follows from two, both."""
        scope, _, field = where.partition(".")
        parts = {"ffn_width": ("width", "mlp_ratio"), "head_width": ("width", "heads")}.get(field, (field,))
        known = self._protocol.sources
        paths = [f"{self._paths[scope]}.{part}" for part in parts]
        found = [known.get(path) or known.get(f"{path}.{self._trunk}") for path in paths]
        return [source for source in found if source is not None]


def _fine_tuning(protocol: Protocol, trunk: str) -> str:
    for name in protocol.names("evaluations"):
        if protocol.evaluation(name, trunk).kind == "finetune":
            return name
    raise HarnessError(
        f"protocol {protocol.name} has a view of the fine-tuning recipe, and no evaluation of kind finetune"
    )


def _printed(name: str, view: View) -> PrintedRecipe:
    """The paper's table of that recipe. HarnessError if the view asks for another one's numbers."""
    known = {table: one for table, one in paper().recipes.items() if one.recipe == view.recipe}
    if view.reported is not None and view.reported not in known:
        raise HarnessError(
            f"view {name} lists the recipe of {view.recipe} and asks for the reported values of "
            f"{view.reported!r}; leaderboard/paper.yaml prints them in {', '.join(known)}"
        )
    return next(iter(known.values()))


def _grouped(line: PrintedLine, by_trunk: dict[str, _Values], *, is_printed: bool) -> Iterator[RecipeLine]:
    """The line for all trunks, or for each group of them that agrees."""
    alike: dict[RecipeLine, list[str]] = {}
    for trunk, values in by_trunk.items():
        alike.setdefault(_of_trunk(line, trunk, values, is_printed=is_printed), []).append(trunk)
    for one, trunks in alike.items():
        yield replace(one, trunks=tuple(trunks))


def _of_trunk(line: PrintedLine, trunk: str, values: _Values, *, is_printed: bool) -> RecipeLine:
    printed = line.of_trunk(trunk)
    sources = values.sources(line.value) if line.value else []
    is_assumed = any(source.assumed for source in sources)
    verdict: RecipeVerdict
    if line.value is None:
        verdict = "not set here"
    elif not is_printed:
        verdict = "assumed" if is_assumed else "not printed"
    elif line.is_lost:
        verdict = "lost in the text"
    elif printed is None:
        verdict = "no such trunk"
    else:
        is_same = _plain(values.value(line.value)) == _plain(
            line.means if line.means is not None else printed
        )
        verdict = "same" if is_same else "differs"
    marked = "; ".join(dict.fromkeys(source.source for source in sources))
    if line.value is not None and not marked:
        marked = LEFT_OUT
    return RecipeLine(
        name=line.name,
        trunks=(),
        here=_text(values.value(line.value)) if line.value else MISSING,
        printed=_printed_text(line, printed) if is_printed else MISSING,
        verdict=verdict,
        source=f"assumed: {marked}" if is_assumed else marked,
        note=line.note,
    )


def _printed_text(line: PrintedLine, printed: Any) -> str:
    if line.is_lost:
        return "lost"
    # Of a trunk that the paper does not have, what it prints of its own.
    return _text(printed) if printed is not None else "/".join(map(_text, line.per_trunk.values()))


def _plain(value: Any) -> Any:
    """One form for equal values: lists and tuples, 10 and 10.0, nothing and `none`."""
    if isinstance(value, (list, tuple)):
        return tuple(map(float, value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return NONE if value is None else value


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:g}"
    return NONE if value is None else clean(str(value))


def _section(name: str, view: View, protocol: Protocol) -> Section:
    lines = recipe_lines(protocol, name)
    columns = ("hyperparameter", "trunk", "here", "paper", "verdict")
    rows = tuple(
        (line.name, _trunks(line.trunks, protocol), line.here, line.printed, line.verdict) for line in lines
    )
    frame = pd.DataFrame(
        [(*row, line.source, line.note) for row, line in zip(rows, lines, strict=True)],
        columns=[*columns, "source", "note"],
        dtype="object",
    )
    block = Block(
        name=name,
        caption=f"{view.title}: {protocol.name}, version {protocol.version}, and {paper().source}",
        grid=Grid(tuple(Column(column, False) for column in columns), rows),
        frame=frame,
        notes=_sources(lines, protocol),
        red=frozenset(
            (row, column)
            for row, line in enumerate(lines)
            # Another protocol than the paper's is another on purpose.
            if line.verdict == "differs" and view.reported is not None
            for column in range(len(columns))
        ),
    )
    given = {line.verdict for line in lines}
    notes = [f"{text[0].upper()}{text[1:]}." for verdict, text in _NOTES.items() if verdict in given]
    return Section(name=name, title=view.title, blocks=(block,), notes=tuple(notes))


def _trunks(trunks: Sequence[str], protocol: Protocol) -> str:
    return _ALL if len(trunks) == len(protocol.trunks) else ", ".join(map(trunk_name, trunks))


def _sources(lines: Iterable[RecipeLine], protocol: Protocol) -> tuple[str, ...]:
    """Who says so, for every value that is not as printed; what the paper itself means is said first."""
    notes = []
    for line in lines:
        where = "" if len(line.trunks) == len(protocol.trunks) else f" ({_trunks(line.trunks, protocol)})"
        if line.note:
            notes.append(f"{line.name}{where}: {line.note}")
        if line.verdict != "same" and line.source:
            notes.append(f"{line.name}{where}, {line.here}: {clean(line.source)}")
    return tuple(notes)
