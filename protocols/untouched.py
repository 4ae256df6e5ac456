"""Did code of a stranger change the harness, or the libraries that its numbers come from, in this process?

Functions, classes with all of their members, and values of modules are held against themselves, before and
after. What Python does not keep as an attribute of a module or a class goes unseen.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

ROOMS = ("protocols", "methods", "tokenizers", "leaderboard", "benchmark")
# Of which the trunk, the losses and the steps are made: modules, and packages that end in a dot.
LIBRARIES = (
    "timm.layers.",
    "timm.models.vision_transformer",
    "torch",
    "torch.nn.functional",
    "torch.nn.init",
    "torch.nn.modules.",
    "torch.optim.",
    "torch.random",
)
_GONE = object()
_MEMBERS = (FunctionType, classmethod, staticmethod, property)


class Untouched:
    """Everything that is watched, as it is now."""

    def __init__(self) -> None:
        self._modules = {name: sys.modules[name] for name in list(sys.modules) if is_watched(name)}
        # Of modules and classes their names with what they stand for; of containers what is in them.
        self._named: list[tuple[str, ModuleType | type, dict[str, Any]]] = []
        self._filled: list[tuple[str, Any, Any]] = []
        for name, module in self._modules.items():
            held = dict(vars(module))
            self._named.append((name, module, held))
            for own, value in held.items():
                if isinstance(value, type) and value.__module__ == name:
                    self._named.append((f"{name}.{own}", value, dict(vars(value))))
                elif type(value) in (dict, list, set) and not own.startswith("__") and _is_ours(name):
                    self._filled.append((f"{name}.{own}", value, value.copy()))

    def changes(self) -> list[str]:
        """The dotted names of all that is not what it was; modules that were loaded since are left out."""
        found = {name for name, module in self._modules.items() if sys.modules.get(name) is not module}
        for label, owner, before in self._named:
            now = dict(vars(owner))
            if list(now) != list(before) or not all(map(operator.is_, now.values(), before.values())):
                found |= {f"{label}.{name}" for name in _changed(label, owner, before, now)}
        found |= {label for label, value, before in self._filled if not _equal(value, before)}
        return sorted(found)


@cache
def is_watched(module: str) -> bool:
    """True for a module of the harness, and for those of the libraries named above."""
    return _is_ours(module) or any(
        module.startswith(one) if one.endswith(".") else module == one for one in LIBRARIES
    )


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ROOMS


def _changed(
    label: str, owner: ModuleType | type, before: dict[str, Any], now: dict[str, Any]
) -> Iterator[str]:
    """Names of `owner` that stand for something else, without the state of libraries and of Python."""
    for name in before.keys() | now.keys():
        old, new = before.get(name, _GONE), now.get(name, _GONE)
        if old is new or (isinstance(new, ModuleType) and old is _GONE):
            continue
        is_hidden = name.startswith(("__", "_abc_"))
        if isinstance(owner, ModuleType):
            is_code = any(isinstance(one, type | FunctionType) for one in (old, new))
            # Libraries keep state in their modules.
            counts = not is_hidden and (_is_ours(label) or (is_code and old is not _GONE))
        else:
            counts = not is_hidden or any(isinstance(one, _MEMBERS) for one in (old, new))
        if counts:
            yield name


def _equal(now: Any, before: Any) -> bool:
    """True if a container holds the very things that it held, in their order."""
    if isinstance(now, dict):
        return list(now) == list(before) and all(map(operator.is_, now.values(), before.values()))
    if isinstance(now, set):
        return bool(now == before)
    return len(now) == len(before) and all(map(operator.is_, now, before))
