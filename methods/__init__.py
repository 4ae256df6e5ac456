"""Objectives: image + tokens + pattern -> loss. Listing them loads no torch; building one does."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from methods.further import FURTHER
from methods.specs import BUILT_IN, SPECS, MethodSpec
from protocols.errors import HarnessError, unknown
from protocols.load import register_method_fields, unregister_method_fields
from protocols.schema import TrunkSpec

if TYPE_CHECKING:
    from methods.base import Method

IMPORTED = "imported-"  # begins the names of rows whose weights come from elsewhere
_TABLE: dict[str, MethodSpec] = {spec.name: spec for spec in (*SPECS, *FURTHER)}
_BROKEN: dict[str, str] = {}
for _spec in _TABLE.values():
    register_method_fields(_spec.name, [one.name for one in _spec.hyperparameters])


def list_methods() -> list[str]:
    """Names of all known methods: in the order of the paper's tables, then further ones, then plug-ins'."""
    return list(_TABLE)


def method_spec(name: str) -> MethodSpec:
    """The specification of `name` (any case). Raises HarnessError that names the nearest known one."""
    spec = _TABLE.get(name.lower())
    if spec is None and name.lower() in _BROKEN:
        raise HarnessError(_BROKEN[name.lower()])
    if spec is None:
        raise unknown("method", name, _TABLE)
    return spec


def register_method(spec: MethodSpec) -> None:
    """Make a plug-in's method known. HarnessError, with both origins, if its name is taken."""
    if spec.name.startswith(IMPORTED):
        raise HarnessError(
            f"method {spec.name!r} of {spec.origin}: names that begin with {IMPORTED!r} are those of rows of "
            "--from-checkpoint; rename it"
        )
    other = _TABLE.get(spec.name)
    if other is not None:
        raise HarnessError(
            f"method {spec.name!r} comes from two places: {other.origin}, and {spec.origin}; rename one of "
            "them, or leave one out"
        )
    _BROKEN.pop(spec.name, None)
    _TABLE[spec.name] = spec
    register_method_fields(spec.name, [one.name for one in spec.hyperparameters])


def unregister_method(name: str) -> None:
    """Forget a plug-in's method; those that are built in stay."""
    if name in _TABLE and _TABLE[name].origin != BUILT_IN:
        del _TABLE[name]
        unregister_method_fields(name)


def register_broken_method(name: str, reason: str) -> None:
    """Whoever asks for the method `name` is told `reason`; all others are spared it."""
    if name not in _TABLE:
        _BROKEN[name] = reason


def broken_methods() -> dict[str, str]:
    """Names of methods that installed packages promise and cannot give, with the reasons."""
    return dict(_BROKEN)


def build_method(
    name: str, *, trunk: TrunkSpec, codebook_size: int, seed: int | None = None, **hyperparameters: Any
) -> Method:
    """The method `name` on a fresh trunk that predicts one of `codebook_size` tokens per position.

    `codebook_size` is 0 for a method that uses no tokens, and for no other.
    `seed` makes the initialisation a function of the seed alone; the trunk is drawn first, so equal
    seeds give equal trunks in every method. None draws from torch's global generator, trunk first.
    Raises HarnessError for unknown names and hyperparameters out of range.
    """
    import torch

    spec = method_spec(name)
    if spec.pretrains and bool(codebook_size) != spec.uses_tokens:
        needs = "a codebook_size of 2 or more" if spec.uses_tokens else "codebook_size 0: it uses no tokens"
        raise HarnessError(f"method {spec.name} needs {needs}; got {codebook_size}")
    module, _, attribute = spec.target.partition(":")
    method_class: type[Method] = getattr(import_module(module), attribute)
    resolved = spec.resolve(hyperparameters, trunk=trunk)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if spec.origin != BUILT_IN:
            from methods.equal_trunk import build_checked

            return build_checked(spec, method_class, trunk=trunk, codebook_size=codebook_size, **resolved)
        return method_class(trunk=trunk, codebook_size=codebook_size, **resolved)


__all__ = [
    "broken_methods",
    "build_method",
    "list_methods",
    "method_spec",
    "register_broken_method",
    "register_method",
    "unregister_method",
]
