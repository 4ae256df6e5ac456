"""What every typed object of a protocol or a record is made of: frozen, strict, with one digest.

An object with one text (canonical JSON) has one SHA-256; everything that is identified here is
identified by that.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


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


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"the first of {list(pair)} must not exceed the second")
    return pair


T = TypeVar("T")
Scalar = bool | int | float | str
# Names become parts of file names and of SLICE.FIELD paths.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Named = Annotated[dict[Name, T], AfterValidator(FrozenDict)]
# NAME, or NAME@TRUNK for each trunk where a file gives some of its values per trunk.
TrunkwiseName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}(@[a-z0-9][a-z0-9_-]{0,63})?$")]
Trunkwise = Annotated[dict[TrunkwiseName, T], AfterValidator(FrozenDict)]
# Beyond these nothing was meant, and whatever is made in that size ends the machine.
MOST_WHOLE, MOST_SIDE, MOST_DEPTH, MOST_EPOCHS, MOST_IMAGES = 10**15, 65_536, 1_024, 1_000_000, 10**11
PositiveInt = Annotated[int, Field(ge=1, le=MOST_WHOLE)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MOST_WHOLE)]
Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]
Depth = Annotated[int, Field(ge=1, le=MOST_DEPTH)]
Epochs = Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
ImageCount = Annotated[int, Field(ge=1, le=MOST_IMAGES)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
DropRate = BelowOne
# A YAML list is the only way to write a pair or a triple, and strict tuples refuse lists.
Betas = Annotated[tuple[BelowOne, BelowOne], Field(strict=False)]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]
PositiveTriple = Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], Field(strict=False)]
Range = Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False), AfterValidator(_ascending)]
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
TrialValues = Annotated[tuple[Scalar, ...], Field(strict=False, min_length=1)]
Seeds = Annotated[tuple[NonNegativeInt, ...], Field(strict=False, min_length=1)]


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN. The text that every digest is taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
