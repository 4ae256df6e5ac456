"""A protocol: everything that is held equal, in named slices, and around them what moves no number.

Units are in the field names or docstrings: sizes in pixels or patches. Nothing here knows paths,
devices or worker counts: those are runtime (benchmark/runtime.py) and are never hashed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from protocols.errors import HarnessError, unknown
from protocols.frozen import (
    Depth,
    DropRate,
    Frozen,
    FrozenDict,
    ImageCount,
    Name,
    Named,
    Names,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveTriple,
    Scalar,
    Seeds,
    Side,
    Triple,
    Trunkwise,
    digest_of,
)
from protocols.recipes import AnyEvaluation, Evaluation, PreTraining, TokenClassification
from protocols.views import View, ViewCells


class TrunkSpec(Frozen):
    """A vision transformer as built: the protocol's trunk at one image size and one drop-path rate."""

    image_size: Side
    patch_size: Side
    width: Side
    depth: Depth
    heads: Side
    mlp_ratio: PositiveFloat = 4.0
    layer_scale: PositiveFloat = 0.1
    drop_path: DropRate = 0.0

    @model_validator(mode="after")
    def _divisible(self) -> TrunkSpec:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """N: patches of one image, the class token not counted."""
        return self.grid**2


class Trunk(Frozen):
    """Sizes of one trunk; the image size is the data's and the drop-path rate is the recipe's."""

    patch_size: Side
    width: Side
    depth: Depth
    heads: Side
    mlp_ratio: PositiveFloat
    layer_scale: PositiveFloat


class Part(Frozen):
    """A fixed, contiguous range of one split of the data set, in the data set's own order."""

    split: Literal["train", "test"]
    start: NonNegativeInt = 0
    count: ImageCount


class Data(Frozen):
    """Which images serve what. `validation` serves choices; `test` serves reported numbers alone.

    A protocol that makes no choices of its own may have no `validation` images.
    """

    name: str
    image_size: Side
    mean: Triple
    std: PositiveTriple
    pretraining: Part
    training: Part
    validation: Part | None = None
    test: Part

    @property
    def parts(self) -> dict[str, Part]:
        """The parts by name, those that the protocol has."""
        named = {name: getattr(self, name) for name in ("pretraining", "training", "validation", "test")}
        return {name: part for name, part in named.items() if part is not None}

    @model_validator(mode="after")
    def _held_out(self) -> Data:
        for seen in ("pretraining", "training"):
            for held_out in ("validation", "test"):
                if held_out in self.parts:
                    _check_apart(**{held_out: self.parts[held_out], seen: self.parts[seen]})
        return self


class TransferSet(Frozen):
    """Another data set that an evaluation trains and measures on, at the size and scale of `data`."""

    name: str
    training: Part
    test: Part

    @model_validator(mode="after")
    def _held_out(self) -> TransferSet:
        _check_apart(test=self.test, training=self.training)
        return self


class Source(Frozen):
    """Where a value comes from. `assumed` marks a value that no source fixes, with the reason."""

    source: str
    assumed: bool = False
    alternatives: Annotated[tuple[Scalar, ...], Field(strict=False)] = ()


class Defaults(Frozen):
    """What an absent option means. Outside every digest.

    `all` means the same but for evaluations, of which it means every one of the protocol. Without `views`
    an absent option means every view that is no study.
    """

    methods: Names
    tokenizers: Names
    trunks: Names
    evaluations: Names
    seeds: Seeds
    views: Names | None = None


class Spending(Frozen):
    """Accelerators and hours that one cell of a stage took, as a paper reports it."""

    accelerators: PositiveInt
    hours: PositiveFloat


class ReportedCost(Frozen):
    """What a paper says that its own runs cost, by stage and trunk. Outside every digest."""

    source: str
    accelerator: str
    stages: Named[Named[Spending]]


class Protocol(Frozen):
    """One protocol: named slices that move numbers, and around them what does not.

    `methods` and `tokenizers` hold the hyperparameters that are an adapter's own; their names, types
    and ranges are declared by the adapters' specifications and checked by the planner. Keys of
    `methods` and `evaluations` are NAME, or NAME@TRUNK where some value differs between trunks: ask
    `method_values` and `evaluation`. `file` is set by `load_protocol` for one that was named by its file.
    """

    name: Name
    version: PositiveInt
    summary: str
    defaults: Defaults
    data: Data
    transfer_sets: Named[TransferSet] = FrozenDict()
    trunks: Named[Trunk]
    tokenizers: Named[Named[Scalar]]
    methods: Trunkwise[Named[Scalar]]
    pretraining: PreTraining
    evaluations: Trunkwise[Evaluation]
    views: Named[View] = FrozenDict()
    reported_cost: ReportedCost | None = None
    sources: Annotated[dict[str, Source], AfterValidator(FrozenDict)] = FrozenDict()
    deviations: tuple[str, ...] = ()
    file: str = ""

    @property
    def argument(self) -> str:
        """What --protocol takes to mean this protocol: its file as it was given, or else its name."""
        return self.file or self.name

    @model_validator(mode="after")
    def _names_exist(self) -> Protocol:
        if self.name == "tokens":
            raise ValueError("name 'tokens' is taken by the folder of the token stores")
        self._know("defaults", self.defaults)
        for name in self.defaults.views or ():
            if name not in self.views:
                raise ValueError(f"defaults.views names {name!r}, which views does not define")
        for name, view in self.views.items():
            for position, cells in enumerate(view.cells):
                self._know(f"views.{name}.cells.{position}", cells)
                self._try_recipes(f"views.{name}.cells.{position}", cells)
                if bool(cells.methods) != bool(cells.trunks):
                    raise ValueError(
                        f"views.{name}.cells.{position} needs both methods and trunks, or neither of them "
                        "where the tokens alone are evaluated"
                    )
                of_tokens = [one for one in cells.evaluations if one in self.token_evaluations]
                if cells.methods and of_tokens:
                    raise ValueError(
                        f"views.{name}.cells.{position}.evaluations names {of_tokens[0]!r}, which takes "
                        "tokens alone: give it cells of its own, without methods and trunks"
                    )
        for name, evaluation in self.evaluations.items():
            transfer_set = getattr(evaluation, "transfer_set", None)
            if transfer_set is not None and transfer_set not in self.transfer_sets:
                raise ValueError(f"evaluations.{name} names {transfer_set!r}, which is no transfer set")
            if "@" in name and isinstance(evaluation, TokenClassification):
                raise ValueError(
                    f"evaluations.{name} takes tokens alone and belongs to no trunk: give one value"
                )
            trunk = getattr(evaluation, "trunk", None)
            if trunk is not None and trunk not in self.trunks:
                raise ValueError(f"evaluations.{name} names {trunk!r}, which trunks does not define")
            if transfer_set is not None and self.transfer_sets[transfer_set].name == self.data.name:
                held_out = {f"transfer_sets.{transfer_set}.test": self.transfer_sets[transfer_set].test}
                _check_apart(**held_out, pretraining=self.data.pretraining)
            if evaluation.evaluated_part == "validation" and self.data.validation is None:
                raise ValueError(f"evaluations.{name} asks for validation images; data has none")
        return self

    def _know(self, where: str, naming: Defaults | ViewCells) -> None:
        for kind in ("methods", "tokenizers", "trunks", "evaluations"):
            for name in getattr(naming, kind):
                if name not in self.names(kind):
                    raise ValueError(f"{where}.{kind} names {name!r}, which {kind} does not define")

    def _try_recipes(self, where: str, cells: ViewCells) -> None:
        if cells.pretraining and not cells.methods:
            raise ValueError(f"{where}.pretraining needs methods to pre-train")
        if cells.equal_compute_to is not None and cells.equal_compute_to not in self.names("methods"):
            raise ValueError(
                f"{where}.equal_compute_to names {cells.equal_compute_to!r}, which methods does not define"
            )
        for field, values in cells.pretraining.items():
            if field not in PreTraining.model_fields:
                raise ValueError(f"{where}.pretraining names {field!r}, which no pre-training recipe has")
            for value in values:
                try:
                    self.pretraining_with({field: value})
                except ValidationError as error:
                    message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
                    raise ValueError(f"{where}.pretraining.{field} tries {value!r}: {message}") from None

    def pretraining_with(self, changes: Mapping[str, Any]) -> PreTraining:
        """The pre-training recipe with `changes` in the place of its own values, checked as a file's are."""
        values = self.pretraining.model_dump(mode="json", exclude_unset=True)
        return PreTraining.model_validate({**values, **changes})

    def names(self, kind: str) -> tuple[str, ...]:
        """The names that `kind` (methods, tokenizers, trunks, evaluations) defines, in the file's order."""
        return tuple(dict.fromkeys(name.partition("@")[0] for name in getattr(self, kind)))

    def method_values(self, name: str, trunk: str) -> Mapping[str, Any]:
        """The hyperparameters that this protocol sets for the method `name` on `trunk`."""
        values: Mapping[str, Any] = self.methods[self.method_key(name, trunk)]
        return values

    def method_key(self, name: str, trunk: str) -> str:
        """NAME, or NAME@TRUNK where a hyperparameter differs between trunks: the slice is `method:KEY`."""
        return self._key("methods", name, trunk)

    def evaluation(self, name: str, trunk: str | None) -> AnyEvaluation:
        """The recipe of the evaluation `name` on `trunk`."""
        recipe: AnyEvaluation = self.evaluations[self.evaluation_key(name, trunk)]
        return recipe

    @property
    def token_evaluations(self) -> tuple[str, ...]:
        """The evaluations of tokens alone, which belong to no method and no trunk, in the file's order."""
        return tuple(
            name for name, recipe in self.evaluations.items() if isinstance(recipe, TokenClassification)
        )

    def evaluation_key(self, name: str, trunk: str | None) -> str:
        """NAME, or NAME@TRUNK where the recipe differs between trunks: the slice is `evaluation:KEY`."""
        return self._key("evaluations", name, trunk)

    def _key(self, kind: str, name: str, trunk: str | None) -> str:
        known = getattr(self, kind)
        key = name if name in known else f"{name}@{trunk}"
        if key not in known:
            raise unknown(f"{kind[:-1]} of protocol {self.name}", name, self.names(kind))
        return key

    def deviations_of(self, slices: Iterable[str]) -> tuple[str, ...]:
        """The deviations that changed a value of one of `slices`."""
        found = []
        for text in self.deviations:
            path = text.partition("=")[0]
            if any(_holds(name, path) for name in slices):
                found.append(text)
        return tuple(found)

    def slice(self, name: str) -> Mapping[str, Any]:
        """The values of one slice as plain JSON types, as the file sets them.

        Names: `data`, `pretraining`, and KIND:NAME for the kinds trunk, tokenizer, method, evaluation
        and transfer_set. Raises HarnessError for a slice that the protocol does not have. A field that
        the file leaves out is in no digest, so that a field more in the schema changes no protocol:
        its default means "not applied" and must never change.
        """
        slices = self._slices()
        if name not in slices:
            raise unknown(f"slice of protocol {self.name}", name, slices)
        value = slices[name]
        return slice_values(value) if isinstance(value, BaseModel) else dict(value)

    def _slices(self) -> dict[str, Frozen | Mapping[str, Any]]:
        slices: dict[str, Frozen | Mapping[str, Any]] = {"data": self.data, "pretraining": self.pretraining}
        for kind in ("transfer_set", "trunk", "tokenizer", "method", "evaluation"):
            slices |= {f"{kind}:{name}": value for name, value in getattr(self, kind + "s").items()}
        return slices

    @property
    def slices(self) -> dict[str, str]:
        """Slice name -> SHA-256 of its canonical JSON."""
        return {name: digest_of(self.slice(name)) for name in self._slices()}

    @property
    def digest(self) -> str:
        """SHA-256 over all slices: equal for two protocols only if they hold the same things equal."""
        return digest_of(self.slices)

    def trunk_spec(self, trunk: str, *, drop_path: float) -> TrunkSpec:
        """The trunk named `trunk` at this protocol's image size. Raises HarnessError if unknown."""
        if trunk not in self.trunks:
            raise unknown("trunk", trunk, self.trunks)
        try:
            return TrunkSpec(**dict(self.trunks[trunk]), image_size=self.data.image_size, drop_path=drop_path)
        except ValidationError as error:
            message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise HarnessError(f"protocol {self.name}, trunk {trunk}: {message}") from None


def slice_values(values: BaseModel) -> dict[str, Any]:
    """What is in the digest of a slice: the fields that the file gives, as plain JSON types."""
    return values.model_dump(mode="json", exclude_unset=True)


def _check_apart(**parts: Part) -> None:
    """ValueError if the two parts, the held-out one first, share an image."""
    (held_out, b), (seen, a) = parts.items()
    if a.split == b.split and a.start < b.start + b.count and b.start < a.start + a.count:
        raise ValueError(
            f"{held_out} images ({b.split} {b.start} to {b.start + b.count - 1}) overlap "
            f"{seen} images ({a.split} {a.start} to {a.start + a.count - 1})"
        )


def _holds(slice_name: str, path: str) -> bool:
    """True if the value at the dotted `path` of a file is a part of that slice."""
    kind, colon, name = slice_name.partition(":")
    if not colon:
        return path.startswith(f"{kind}.")
    name, at, trunk = name.partition("@")
    # A value that is given per trunk stands at KINDs.NAME.FIELD.TRUNK.
    parts = path.split(".")
    return parts[:2] == [f"{kind}s", name] and (not at or len(parts) < 4 or parts[3] == trunk)
