"""What an adapter declares of itself without torch: its own hyperparameters, their ranges and sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from protocols.errors import HarnessError, nearest

Value = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """One hyperparameter that belongs to an adapter and not to the protocol.

    Where it is not set it is its `default`, or else what `follows` makes of the trunk (a
    protocols.schema.TrunkSpec); with neither it is left out, or `required`.
    """

    name: str
    type: type[bool] | type[int] | type[float] | type[str]
    source: str
    low: float | None = None
    high: float | None = None
    default: Value | None = None
    follows: Callable[[Any], Value] | None = None
    required: bool = False

    def check(self, owner: str, value: Value) -> Value:
        """`value` in its declared type; HarnessError if the type or the range is wrong."""
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not self.type:
            raise HarnessError(
                f"{owner}: {self.name} must be {self.type.__name__}, got {value!r} ({type(value).__name__})"
            )
        if not isinstance(value, str):
            too_low = self.low is not None and value < self.low
            too_high = self.high is not None and value > self.high
            if too_low or too_high:
                raise HarnessError(f"{owner}: {self.name} must be {self._range()}, got {value!r}")
        return value

    def _range(self) -> str:
        if self.low is None:
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high is None else f"from {self.low:g} to {self.high:g}"


def resolve(
    owner: str, declared: tuple[Hyperparameter, ...], given: Mapping[str, Any], *, trunk: Any = None
) -> dict[str, Value]:
    """All hyperparameters of `owner`: those given, checked; others by default, or as they follow `trunk`.

    Raises HarnessError for an unknown name, a wrong type or range, or a required one that is missing.
    """
    known = {parameter.name: parameter for parameter in declared}
    for name in given:
        if name not in known:
            raise HarnessError(f"{owner} has no hyperparameter {name!r}; {nearest(name, known)}")
    resolved: dict[str, Value] = {}
    for parameter in declared:
        if parameter.name in given:
            resolved[parameter.name] = parameter.check(owner, given[parameter.name])
        elif parameter.required:
            raise HarnessError(f"{owner}: {parameter.name} must be set ({parameter.source})")
        elif parameter.default is not None:
            resolved[parameter.name] = parameter.default
        elif parameter.follows is not None and trunk is not None:
            resolved[parameter.name] = parameter.check(owner, parameter.follows(trunk))
    return resolved
