"""Did code of a stranger change the harness, or the libraries that its numbers come from, in this process?

Functions, classes with all of their members, and values of modules are held against themselves, before and
after. What Python does not keep as an attribute of a module or a class goes unseen.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

ROOMS = ("protocols", "methods", "tokenizers", "leaderboard", "benchmark")
# Whose functions and classes the trunk and the losses are made of, as modules and as packages (ending in a dot).
LIBRARIES = (
    "timm.layers.",
    "timm.models.vision_transformer",
    "torch",
    "torch.nn.functional",
    "torch.nn.init",
    "torch.nn.modules.",
    "torch.random",
)
_GONE = object()
_MEMBERS = (FunctionType, classmethod, staticmethod, property)


class Untouched:
    """Everything that is watched, as it is now."""

    def __init__(self) -> None:
        self._before = dict(_watched())

    def changes(self) -> list[str]:
        """The dotted names of all that is not what it was; modules that were loaded since are left out."""
        now = dict(_watched())
        modules = {module for module, _, _ in self._before}
        found = [key for key, value in self._before.items() if not _same(value, now.get(key, _GONE))]
        found += [
            key
            for key in now.keys() - self._before.keys()
            if key[0] in modules and _is_ours(key[0]) and not isinstance(now[key], ModuleType)
        ]
        return sorted(f"{module}.{name}{member}" for module, name, member in found)


def is_watched(module: str) -> bool:
    """True for a module of the harness, and for those of the libraries named above."""
    return _is_ours(module) or any(
        module.startswith(one) if one.endswith(".") else module == one for one in LIBRARIES
    )


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ROOMS


def _watched() -> Iterator[tuple[tuple[str, str, str], Any]]:
    """(module, name, member of a class or "") -> what it is."""
    for module_name, module in list(sys.modules.items()):
        if module is None or not is_watched(module_name):
            continue
        is_ours = _is_ours(module_name)
        for name, value in list(vars(module).items()):
            if name.startswith("__"):
                continue
            is_code = isinstance(value, type | FunctionType)
            if not is_ours and not is_code:
                continue  # libraries keep state in their modules
            yield (module_name, name, ""), _frozen(value)
            if isinstance(value, type) and value.__module__ == module_name:
                for member, held in list(vars(value).items()):
                    is_hidden = member.startswith("__") or member.startswith("_abc_")
                    if not is_hidden or isinstance(held, _MEMBERS):
                        yield (module_name, name, f".{member}"), held


def _frozen(value: Any) -> Any:
    """A container as it is now: it may be filled without being replaced."""
    if isinstance(value, Mapping) and type(value) is dict:
        return (value, tuple(value), tuple(value.values()))
    if type(value) in (list, set):
        return (value, tuple(value))
    return value


def _same(before: Any, now: Any) -> bool:
    if type(before) is tuple and type(now) is tuple:
        return len(before) == len(now) and all(map(_same, before, now))
    return before is now
