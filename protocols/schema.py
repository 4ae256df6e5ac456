"""Frozen, strictly typed objects for everything that a protocol holds equal.

Units are in the field names or docstrings: learning rates per optimiser step, sizes in pixels or
patches, batches in images over all processes. Nothing here knows paths, devices or worker counts:
those are runtime (benchmark/runtime.py) and are never hashed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocols.errors import HarnessError, unknown


class FrozenDict(dict[str, Any]):
    """A dict that refuses every change: a protocol cannot be edited after it was hashed."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("protocol objects are frozen")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = _refuse
    __ior__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return (FrozenDict, (dict(self),))


class Frozen(BaseModel):
    """Base of all protocol objects: immutable, no unknown keys, no silent type conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


T = TypeVar("T")
Scalar = bool | int | float | str
# Names become parts of file names and of SLICE.FIELD paths.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Named = Annotated[dict[Name, T], AfterValidator(FrozenDict)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
DropRate = Annotated[float, Field(ge=0, lt=1)]
# A YAML list is the only way to write a pair or a triple, and strict tuples refuse lists.
Pair = Annotated[tuple[float, float], Field(strict=False)]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Seeds = Annotated[tuple[NonNegativeInt, ...], Field(strict=False, min_length=1)]


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN. The text that every digest is taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class TrunkSpec(Frozen):
    """A vision transformer as built: the protocol's trunk at one image size and one drop-path rate."""

    image_size: PositiveInt
    patch_size: PositiveInt
    width: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
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

    patch_size: PositiveInt
    width: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    mlp_ratio: PositiveFloat
    layer_scale: PositiveFloat


class Part(Frozen):
    """A fixed, contiguous range of one split of the data set, in the data set's own order."""

    split: Literal["train", "test"]
    start: NonNegativeInt = 0
    count: PositiveInt


class Data(Frozen):
    """Which images serve what. `validation` serves choices; `test` serves reported numbers alone."""

    name: str
    image_size: PositiveInt
    mean: Triple
    std: Triple
    pretraining: Part
    training: Part
    validation: Part
    test: Part

    @model_validator(mode="after")
    def _held_out(self) -> Data:
        for seen in ("pretraining", "training"):
            for held_out in ("validation", "test"):
                a, b = getattr(self, seen), getattr(self, held_out)
                if a.split == b.split and a.start < b.start + b.count and b.start < a.start + a.count:
                    raise ValueError(
                        f"{held_out} images ({b.split} {b.start} to {b.start + b.count - 1}) overlap "
                        f"{seen} images ({a.split} {a.start} to {a.start + a.count - 1})"
                    )
        return self


class Optimisation(Frozen):
    """AdamW with a warmed-up cosine, stepped every iteration; the global batch is over all processes."""

    epochs: PositiveInt
    warmup_epochs: NonNegativeFloat
    global_batch: PositiveInt
    optimizer: Literal["adamw"]
    betas: Pair
    eps: PositiveFloat
    weight_decay: NonNegativeFloat
    peak_lr: PositiveFloat
    min_lr: NonNegativeFloat
    warmup_lr: NonNegativeFloat
    schedule: Literal["cosine"]
    clip_grad_norm: PositiveFloat | None

    @model_validator(mode="after")
    def _ordered(self) -> Optimisation:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be less than epochs {self.epochs}")
        if max(self.min_lr, self.warmup_lr) > self.peak_lr:
            raise ValueError("min_lr and warmup_lr must not exceed peak_lr")
        return self


class PreTraining(Optimisation):
    """The one recipe under which every objective is pre-trained."""

    drop_path: DropRate
    color_jitter: NonNegativeFloat


class FineTuning(Optimisation):
    """All weights trained on labels; patch tokens averaged, a fresh LayerNorm and a linear head."""

    kind: Literal["finetune"]
    labelled_images: PositiveInt
    evaluated_part: Literal["validation", "test"]
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None
    label_smoothing: DropRate
    drop_path: DropRate
    horizontal_flip: Probability
    crop_padding: NonNegativeInt


class LinearProbe(Optimisation):
    """A linear classifier on the frozen trunk: mean of the patch tokens after the pre-training norm.

    `whiten` rotates and scales the features towards unit covariance over the labelled images: a linear
    map, so the classifier is still linear in the features, but one that its optimiser can reach.
    """

    kind: Literal["linear-probe"]
    labelled_images: PositiveInt
    evaluated_part: Literal["validation", "test"]
    whiten: bool


Evaluation = Annotated[FineTuning | LinearProbe, Field(discriminator="kind")]


class Source(Frozen):
    """Where a value comes from. `assumed` marks a value that no source fixes, with the reason."""

    source: str
    assumed: bool = False
    alternatives: Annotated[tuple[Scalar, ...], Field(strict=False)] = ()


class Defaults(Frozen):
    """What `all` and an absent option mean. Outside every digest."""

    methods: Names
    tokenizers: Names
    trunks: Names
    evaluations: Names
    seeds: Seeds


class Protocol(Frozen):
    """One protocol: named slices that move numbers, and around them what does not.

    `methods` and `tokenizers` hold the hyperparameters that are an adapter's own; their names, types
    and ranges are declared by the adapters' specifications and checked by the planner.
    """

    name: Name
    version: PositiveInt
    summary: str
    defaults: Defaults
    data: Data
    trunks: Named[Trunk]
    tokenizers: Named[Named[Scalar]]
    methods: Named[Named[Scalar]]
    pretraining: PreTraining
    evaluations: Named[Evaluation]
    sources: Annotated[dict[str, Source], AfterValidator(FrozenDict)] = FrozenDict()
    deviations: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _defaults_exist(self) -> Protocol:
        if self.name == "tokens":
            raise ValueError("name 'tokens' is taken by the folder of the token stores")
        for kind in ("methods", "tokenizers", "trunks", "evaluations"):
            for name in getattr(self.defaults, kind):
                if name not in getattr(self, kind):
                    raise ValueError(f"defaults.{kind} names {name!r}, which {kind} does not define")
        return self

    def deviations_of(self, slices: Iterable[str]) -> tuple[str, ...]:
        """The deviations that changed a value of one of `slices`."""
        kinds = {name if ":" not in name else name.replace(":", "s.", 1) for name in slices}
        return tuple(text for text in self.deviations if any(text.startswith(f"{kind}.") for kind in kinds))

    def slice(self, name: str) -> Mapping[str, Any]:
        """The values of one slice as plain JSON types.

        Names: `data`, `pretraining`, `trunk:NAME`, `tokenizer:NAME`, `method:NAME`, `evaluation:NAME`.
        Raises HarnessError for a slice that the protocol does not have.
        """
        slices = self._slices()
        if name not in slices:
            raise unknown(f"slice of protocol {self.name}", name, slices)
        value = slices[name]
        return value.model_dump(mode="json") if isinstance(value, BaseModel) else dict(value)

    def _slices(self) -> dict[str, Frozen | Mapping[str, Any]]:
        slices: dict[str, Frozen | Mapping[str, Any]] = {"data": self.data, "pretraining": self.pretraining}
        for kind in ("trunk", "tokenizer", "method", "evaluation"):
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
