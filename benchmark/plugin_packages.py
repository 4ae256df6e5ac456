"""Plug-ins that are installed packages, found by their entry points. A broken one breaks no other command.

    [project.entry-points."fair_mim.methods"]
    ring-mim = "fair_ring:METHODS"          # a module, its constant, or one specification

The name is the method's (tokenizer's, data set's, protocol's): whoever asks for it is told why it cannot be
had. An entry point of `fair_mim.protocols` names a module or package in whose folder the *.yaml files lie.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from benchmark.data_sets import register_broken_data_set
from benchmark.plugin_guard import Touched, import_guarded, parsed
from benchmark.plugin_import import where_in
from benchmark.plugin_registry import forget, register
from benchmark.plugin_sources import own_files
from benchmark.plugin_specs import CONSTANTS, Brought, brought_by
from methods import register_broken_method
from protocols.errors import HarnessError
from protocols.files import shown_path
from protocols.load import register_broken_protocol
from tokenizers import register_broken_tokenizer

GROUPS = {
    "fair_mim.methods": "METHODS",
    "fair_mim.tokenizers": "TOKENIZERS",
    "fair_mim.data_sets": "DATA_SETS",
    "fair_mim.protocols": "",
}
_BROKEN: dict[str, Callable[[str, str], None]] = {
    "fair_mim.methods": register_broken_method,
    "fair_mim.tokenizers": register_broken_tokenizer,
    "fair_mim.data_sets": register_broken_data_set,
    "fair_mim.protocols": register_broken_protocol,
}


_NAMES: list[tuple[str, str]] = []  # kinds and names that packages brought


@cache
def load_packages() -> None:
    """Make known what the entry points of all installed packages name, once in a process."""
    found = entry_points()
    for group in GROUPS:
        for one in found.select(group=group):
            load_entry_point(one)


def forget_packages() -> None:
    """Forget what they brought; `load_packages` looks for them again."""
    for kind, name in _NAMES:
        forget(kind, name)
    _NAMES.clear()
    load_packages.cache_clear()


def load_entry_point(entry: EntryPoint) -> None:
    """Make known what `entry` names; if that fails, why, for those who ask for it.

    Raises Touched alone: what has changed the harness cannot be left aside any more.
    """
    distribution = entry.dist
    origin = f"package {distribution.name} {distribution.version}" if distribution else "a package"
    constant = GROUPS[entry.group]
    try:
        place = _file_of(entry)
        if not constant:
            register(Brought(), _protocols(entry, place), origin=origin, names=_NAMES)
        else:
            register(_brought(entry, place, constant, origin), [], origin=origin, names=_NAMES)
    except Touched:
        raise
    except HarnessError as error:
        reason = f"{entry.name!r} of {origin} cannot be used: {error}"
        _BROKEN[entry.group](entry.name.lower(), reason)


def _brought(entry: EntryPoint, file: Path, constant: str, origin: str) -> Brought:
    """What the entry point's module has under its constant, or the one specification that it names."""
    top = entry.module.partition(".")[0]
    folder = _folder_of(top)
    module = import_guarded(own_files(file, folder, top), partial(_imported, entry, file))
    stated = entry.attr or constant
    given = getattr(module, stated, None)
    expected = CONSTANTS[constant][1]
    if given is None:
        raise HarnessError(
            f"{shown_path(file)}: has no {stated}, which the entry point {entry.value!r} names"
        )
    # As if the file had stated it in its constant.
    view = ModuleType(module.__name__)
    view.__dict__.update({name: value for name, value in vars(module).items() if name not in CONSTANTS})
    setattr(view, constant, (given,) if isinstance(given, expected) else given)
    return brought_by(view, file, parsed(file), origin=origin, folder=folder, package=top)


def _imported(entry: EntryPoint, file: Path) -> ModuleType:
    try:
        return importlib.import_module(entry.module)
    except (Exception, SystemExit) as error:
        where = where_in(error, file, file.parent)
        raise HarnessError(f"{where}: cannot be imported: {type(error).__name__}: {error}") from error


def _protocols(entry: EntryPoint, file: Path) -> list[Path]:
    found = sorted(file.parent.glob("*.yaml"))
    if not found:
        raise HarnessError(f"no *.yaml beside {file}, the module that the entry point {entry.value!r} names")
    return found


def _file_of(entry: EntryPoint) -> Path:
    """The file of the entry point's module; nothing of the package is run to find it."""
    top, *rest = entry.module.split(".")
    spec = find_spec(top)
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        raise HarnessError(f"no module {top!r}, which the entry point {entry.value!r} names")
    if not rest and spec.origin is not None:
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        place = Path(folder).joinpath(*rest)
        for one in (place.with_suffix(".py"), place / "__init__.py"):
            if one.is_file():
                return one
    raise HarnessError(f"no module {entry.module!r}, which the entry point {entry.value!r} names")


def _folder_of(top: str) -> Path | None:
    spec = find_spec(top)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None
