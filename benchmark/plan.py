"""From a protocol and a selection to ordered cells. Pure: no files, no torch.

A cell is one stage of one row. Its id is a hash of exactly what moves its numbers: the digests of the
slices it uses, its method's hyperparameters, its seed and its parents' ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal

from benchmark.cost import evaluation_flops, nearest_neighbour_flops, token_classification_flops
from benchmark.equal_compute import (
    check_equal_compute,
    pretraining_flops,
    resolve_method,
    resolve_tokenizer,
)
from benchmark.selection import Selection, joins_views, select
from methods import method_spec
from protocols.errors import HarnessError
from protocols.frozen import digest_of
from protocols.recipes import NearestNeighbours, TokenClassification
from protocols.schema import Protocol, slice_values
from protocols.views import ViewCells

Stage = Literal["tokenise", "pretrain", "finetune", "linear-probe", "knn", "token-classification"]
STAGES: tuple[Stage, ...] = (
    "tokenise",
    "pretrain",
    "finetune",
    "linear-probe",
    "knn",
    "token-classification",
)
PRETRAINING_PART = "pretraining"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One stage of one row. `slices` maps slice names to digests.

    `pretraining` are the values that a view tries in the place of the pre-training recipe's own.
    `part` is the part of the data whose tokens a tokenising cell makes with a tokenizer that its
    parent fitted; None for the pre-training images. `views` names the tables that need the cell.
    `is_modified` cells have values that the protocol without --set gives to none of its cells.
    """

    stage: Stage
    part: str | None = None
    method: str | None = None
    tokenizer: str | None = None
    trunk: str | None = None
    evaluation: str | None = None
    seed: int | None = None
    slices: tuple[tuple[str, str], ...]
    hyperparameters: tuple[tuple[str, Any], ...] = ()
    pretraining: tuple[tuple[str, Any], ...] = ()
    parents: tuple[str, ...] = ()
    train_flops: float = 0.0
    views: tuple[str, ...] = ()
    is_modified: bool = False

    @cached_property
    def id(self) -> str:
        """Readable parts, then 12 hex digits of the SHA-256 over all that moves this cell's numbers."""
        identity = {
            "stage": self.stage,
            "method": self.method,
            "seed": self.seed,
            "slices": dict(self.slices),
            "hyperparameters": dict(self.hyperparameters),
            "parents": list(self.parents),
        }
        if self.part is not None:
            identity["part"] = self.part
        seed = None if self.seed is None else f"s{self.seed}"
        name = self.evaluation or self.stage
        parts = [part for part in (name, self.method, self.tokenizer, self.trunk, self.part, seed) if part]
        return "-".join([*parts, digest_of(identity)[:12]])

    @property
    def row(self) -> str:
        """What a person calls it: method/tokenizer/trunk, and the seed."""
        parts = [part for part in (self.method, self.tokenizer, self.trunk, self.part) if part]
        return "/".join(parts) + (f" seed {self.seed}" if self.seed is not None else "")


def make_plan(protocol: Protocol, selection: Selection) -> list[Cell]:
    """All cells of the selection, parents before children, each once.

    Raises HarnessError for hyperparameters that the method's specification does not allow, and if no
    cell of the views fits the selection.
    """
    planner = _Planner(protocol)
    for seed in selection.seeds:
        if not selection.views:
            for cells in _everything(protocol, selection):
                planner.add(cells, seed)
        for view in selection.views:
            planner.view = view
            for cells in _cells_of(protocol, view, selection):
                planner.add(_narrowed(cells, selection), seed)
    _check_taken(planner.cells.values(), protocol, selection)
    if not planner.cells:
        raise HarnessError(
            f"no view of protocol {protocol.name} holds such a cell ({', '.join(selection.views)})"
            f"{_narrowing(selection)}; leave one of them out, or take every combination with --views none"
        )
    return [replace(cell, views=tuple(planner.needed_by[cell_id])) for cell_id, cell in planner.cells.items()]


def _narrowing(selection: Selection) -> str:
    """The options that name something of their own, as they were given."""
    given = [f"--{kind} {' '.join(getattr(selection, kind))}" for kind in sorted(selection.narrowed)]
    return f" for {' '.join(given)}" if given else ""


def _check_taken(cells: Iterable[Cell], protocol: Protocol, selection: Selection) -> None:
    """HarnessError for a name that the options give and no cell of the views takes: nothing goes unsaid."""
    planned = list(cells)
    if not planned or not selection.views:
        return
    for kind in sorted(selection.narrowed):
        taken = {getattr(cell, kind.removesuffix("s")) for cell in planned}
        idle = [name for name in getattr(selection, kind) if name not in taken]
        if idle:
            raise HarnessError(
                f"--{kind} {' '.join(idle)}: no view of protocol {protocol.name} that is taken here "
                f"({', '.join(selection.views)}) holds such a cell beside the other options; leave it out, "
                "name other --views, or take every combination with --views none"
            )


def mark_modified(plan: Iterable[Cell], original: Protocol, selection: Selection) -> list[Cell]:
    """`plan`, made under --set, with those cells marked that `original`, the protocol without it, has not.

    A cell that --set does not touch, or brings to what a view tries anyway, is one of the protocol's own.
    """
    own = {cell.id for cell in make_plan(original, selection)}
    if original.views:
        everything = select(original, methods=["all-known"], seeds=selection.seeds, views=["all"])
        own |= {cell.id for cell in make_plan(original, everything)}
    return [replace(cell, is_modified=cell.id not in own) for cell in plan]


def _everything(protocol: Protocol, selection: Selection) -> list[ViewCells]:
    """What is taken without views: the methods' rows, then evaluations of tokens alone."""
    of_tokens = tuple(name for name in selection.evaluations if name in protocol.token_evaluations)
    of_rows = tuple(name for name in selection.evaluations if name not in of_tokens)
    taken = []
    if of_rows:
        taken.append(
            ViewCells(
                methods=selection.methods,
                tokenizers=selection.tokenizers,
                trunks=selection.trunks,
                evaluations=of_rows,
            )
        )
    elif selection.narrowed & {"methods", "trunks"}:
        idle = " and ".join(f"--{kind}" for kind in sorted(selection.narrowed & {"methods", "trunks"}))
        raise HarnessError(
            f"{idle}: {', '.join(of_tokens)} take tokens alone; leave it out, or name other --evaluations"
        )
    if of_tokens and ("evaluations" in selection.narrowed or not selection.narrowed & {"methods", "trunks"}):
        taken.append(ViewCells(tokenizers=selection.tokenizers, evaluations=of_tokens))
    return taken


def _cells_of(protocol: Protocol, view: str, selection: Selection) -> Iterator[ViewCells]:
    """What `view` names, and methods and tokenizers of plug-ins that join it."""
    found = protocol.views[view]
    yield from found.cells
    if found.takes_plugins:
        beside = next(cells for cells in found.cells if cells.methods and cells.tokenizers)
        joining = [name for name in selection.tokenizers if name not in protocol.names("tokenizers")]
        if joining:
            yield beside.model_copy(update={"tokenizers": tuple(joining)})
        all_of_them = beside.model_copy(update={"tokenizers": (*beside.tokenizers, *joining)})
        held = {method for cells in found.cells for method in cells.methods}
        for method in selection.methods:
            if method not in held and joins_views(method, protocol):
                yield all_of_them.taken_by(method, uses_tokens=method_spec(method).uses_tokens)


def _narrowed(cells: ViewCells, selection: Selection) -> ViewCells | None:
    """`cells` without what the selection leaves out; None if nothing remains.

    Methods are those of the selection even where it names none of its own: a view may hold further ones.
    """
    if not cells.methods and selection.narrowed & {"methods", "trunks"}:
        return None  # tokens alone belong to no method and no trunk
    kept: dict[str, tuple[str, ...]] = {}
    for kind in ("methods", "tokenizers", "trunks", "evaluations"):
        names: tuple[str, ...] = getattr(cells, kind)
        if (kind in selection.narrowed or kind == "methods") and names:
            names = tuple(name for name in names if name in getattr(selection, kind))
            if not names:
                return None
        kept[kind] = names
    return cells.model_copy(update=kept)


class _Planner:
    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.digests = protocol.slices
        self.cells: dict[str, Cell] = {}
        self.view: str | None = None
        self.needed_by: dict[str, dict[str, None]] = {}

    def add(self, cells: ViewCells | None, seed: int) -> None:
        """Every combination that `cells` names, for one seed."""
        if cells is None:
            return
        if not cells.methods:
            for source, evaluation in product(cells.tokenizers, cells.evaluations):
                self.token_classification(evaluation, source, seed)
        names, values = list(cells.hyperparameters), list(cells.hyperparameters.values())
        recipes = list(cells.pretraining.values())
        for method in cells.methods:
            spec = method_spec(method)
            tries = bool(names or recipes)
            if (spec.pretrains and spec.uses_tokens and not cells.tokenizers) or (
                tries and not spec.pretrains
            ):
                raise HarnessError(
                    f"view {self.view} of protocol {self.protocol.name} names method {method} "
                    + (
                        "without a tokenizer to pre-train on"
                        if spec.pretrains
                        else "with values to try, of which it has none"
                    )
                )
        for trunk, method in product(cells.trunks, cells.methods):
            spec = method_spec(method)
            tokenizers = cells.tokenizers if spec.pretrains and spec.uses_tokens else (None,)
            for tokenizer, tried, trial in product(tokenizers, product(*recipes), product(*values)):
                recipe = dict(zip(cells.pretraining, tried, strict=True))
                if cells.equal_compute_to is not None and spec.pretrains:
                    check_equal_compute(
                        self.protocol, cells, view=self.view, method=method, tokenizer=tokenizer, trunk=trunk
                    )
                self.row(
                    method,
                    tokenizer,
                    trunk,
                    seed,
                    cells.evaluations,
                    dict(zip(names, trial, strict=True)),
                    recipe,
                )

    def row(
        self,
        method: str,
        tokenizer: str | None,
        trunk: str,
        seed: int,
        evaluations: tuple[str, ...],
        trial: Mapping[str, Any],
        recipe: Mapping[str, Any],
    ) -> None:
        parents: tuple[str, ...] = ()
        if method_spec(method).pretrains:
            parents = (self.pretrain(method, tokenizer, trunk, seed, trial, recipe),)
        for evaluation in evaluations:
            self.evaluation(evaluation, method, tokenizer, trunk, seed, parents)

    def tokenise(self, tokenizer: str, part: str | None = None) -> str:
        """Tokens of the pre-training images, or of another part with the tokenizer fitted on those."""
        config = resolve_tokenizer(self.protocol, tokenizer)
        slices = self._slices("data", *(name for name in [f"tokenizer:{tokenizer}"] if name in self.digests))
        if len(slices) == 1:  # a plug-in's, that the protocol does not list: all of its values are its own
            slices += ((f"tokenizer:{tokenizer}", digest_of(config)),)
        return self._add(
            Cell(
                stage="tokenise",
                part=part,
                tokenizer=tokenizer,
                slices=slices,
                hyperparameters=tuple(sorted(config.items())),
                parents=() if part is None else (self.tokenise(tokenizer),),
            )
        )

    def token_classification(self, name: str, tokenizer: str, seed: int) -> None:
        recipe = self.protocol.evaluation(name, None)
        if not isinstance(recipe, TokenClassification):
            raise HarnessError(
                f"evaluation {name} of protocol {self.protocol.name} needs a method and a trunk"
            )
        slices = ["data", f"evaluation:{name}"]
        if recipe.trunk is not None:
            slices.append(f"trunk:{recipe.trunk}")
        # Tokens lie on the patches of every trunk alike: any of them tells how many there are.
        trunk = self.protocol.trunk_spec(recipe.trunk or self.protocol.defaults.trunks[0], drop_path=0.0)
        data = self.protocol.data
        seen, labelled = data.pretraining, data.training
        is_tokenised = labelled.split == seen.split and (
            seen.start <= labelled.start and labelled.start + labelled.count <= seen.start + seen.count
        )
        labelled_part = None if is_tokenised else "training"
        self._add(
            Cell(
                stage="token-classification",
                tokenizer=tokenizer,
                trunk=recipe.trunk,
                evaluation=name,
                seed=seed,
                slices=self._slices(*slices),
                parents=(
                    self.tokenise(tokenizer, labelled_part),
                    self.tokenise(tokenizer, recipe.evaluated_part),
                ),
                train_flops=token_classification_flops(recipe, trunk),
            )
        )

    def pretrain(
        self,
        method: str,
        tokenizer: str | None,
        trunk: str,
        seed: int,
        trial: Mapping[str, Any],
        tried: Mapping[str, Any],
    ) -> str:
        own = slice_values(self.protocol.pretraining)
        changes = {name: value for name, value in tried.items() if own.get(name) != value}
        recipe = self.protocol.pretraining_with(changes)
        spec, resolved = resolve_method(self.protocol, method, trunk, trial, recipe)
        flops = pretraining_flops(self.protocol, method, tokenizer, spec, resolved, recipe)
        slices = dict(self._slices("data", f"trunk:{trunk}", "pretraining"))
        slices["pretraining"] = digest_of(slice_values(recipe))
        return self._add(
            Cell(
                stage="pretrain",
                method=method,
                tokenizer=tokenizer,
                trunk=trunk,
                seed=seed,
                slices=tuple(slices.items()),
                hyperparameters=tuple(sorted(resolved.items())),
                pretraining=tuple(sorted(changes.items())),
                parents=() if tokenizer is None else (self.tokenise(tokenizer),),
                train_flops=flops,
            )
        )

    def evaluation(
        self, name: str, method: str, tokenizer: str | None, trunk: str, seed: int, parents: tuple[str, ...]
    ) -> None:
        recipe = self.protocol.evaluation(name, trunk)
        assert not isinstance(recipe, TokenClassification)  # the schema refuses it beside methods
        spec = self.protocol.trunk_spec(trunk, drop_path=0.0)
        slices = ["data", f"trunk:{trunk}", f"evaluation:{self.protocol.evaluation_key(name, trunk)}"]
        transfer_set = getattr(recipe, "transfer_set", None)
        if isinstance(recipe, NearestNeighbours):
            evaluated = self.protocol.data.parts[recipe.evaluated_part].count
            flops = nearest_neighbour_flops(recipe, spec, evaluated_images=evaluated)
        else:
            flops = evaluation_flops(recipe, spec)
        if transfer_set is not None:
            slices.append(f"transfer_set:{transfer_set}")
        self._add(
            Cell(
                stage=recipe.kind,
                method=method,
                tokenizer=tokenizer,
                trunk=trunk,
                evaluation=name,
                seed=seed,
                slices=self._slices(*slices),
                parents=parents,
                train_flops=flops,
            )
        )

    def _slices(self, *names: str) -> tuple[tuple[str, str], ...]:
        return tuple((name, self.digests[name]) for name in sorted(names))

    def _add(self, cell: Cell) -> str:
        cell_id = cell.id
        self.cells.setdefault(cell_id, cell)
        views = self.needed_by.setdefault(cell_id, {})
        if self.view is not None:
            views[self.view] = None
        return cell_id
