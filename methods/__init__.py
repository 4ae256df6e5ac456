"""Objectives: image + tokens + pattern -> loss. Listing them loads no torch; building one does."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from methods.specs import SPECS, MethodSpec
from protocols.errors import unknown
from protocols.schema import TrunkSpec

if TYPE_CHECKING:
    from methods.base import Method

_TABLE: dict[str, MethodSpec] = {spec.name: spec for spec in SPECS}


def list_methods() -> list[str]:
    """Names of all known methods, in the order of the paper's tables."""
    return list(_TABLE)


def method_spec(name: str) -> MethodSpec:
    """The specification of `name` (any case). Raises HarnessError that names the nearest known one."""
    spec = _TABLE.get(name.lower())
    if spec is None:
        raise unknown("method", name, _TABLE)
    return spec


def build_method(
    name: str, *, trunk: TrunkSpec, codebook_size: int, seed: int | None = None, **hyperparameters: Any
) -> Method:
    """The method `name` on a fresh trunk that predicts one of `codebook_size` tokens per position.

    `seed` makes the initialisation a function of the seed alone; the trunk is drawn first, so equal
    seeds give equal trunks in every method. None draws from torch's global generator, trunk first.
    Raises HarnessError for unknown names and hyperparameters out of range.
    """
    import torch

    spec = method_spec(name)
    module, _, attribute = spec.target.partition(":")
    method_class: type[Method] = getattr(import_module(module), attribute)
    resolved = spec.resolve(hyperparameters, trunk=trunk)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return method_class(trunk=trunk, codebook_size=codebook_size, **resolved)


__all__ = ["build_method", "list_methods", "method_spec"]
