"""Makes known what plug-ins bring, each name once, and forgets it again. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmark.data import register_data_set
from benchmark.data_sets import registered_data_sets, unregister_data_set
from benchmark.plugin_specs import Brought
from methods import list_methods, method_spec, register_method, unregister_method
from protocols.errors import HarnessError
from protocols.files import shown_path
from protocols.load import list_protocols, protocol_origin, register_protocol, unregister_protocol
from tokenizers import list_tokenizers, register_tokenizer, tokenizer_spec, unregister_tokenizer

_PLACES: dict[tuple[str, str], str] = {}  # (kind, name) -> the file that brought it
_FORGET: dict[str, Callable[[str], None]] = {
    "method": unregister_method,
    "tokenizer": unregister_tokenizer,
    "data set": unregister_data_set,
    "protocol": unregister_protocol,
}


def register(
    brought: Brought, protocols: Sequence[Path], *, origin: str, names: list[tuple[str, str]]
) -> None:
    """Make all of it known, or nothing: `names` takes what was made known."""
    for kind, spec, file in brought.specs:
        _check_free(kind, spec.name, spec.origin, shown_path(file))
        if kind == "method":
            register_method(spec)
        elif kind == "tokenizer":
            register_tokenizer(spec)
        else:
            register_data_set(spec)
        names.append((kind, spec.name))
        _PLACES[kind, spec.name] = shown_path(file)
    for path in protocols:
        _check_free("protocol", path.stem, origin, shown_path(path))
        register_protocol(path, origin=origin)
        names.append(("protocol", path.stem))
        _PLACES["protocol", path.stem] = shown_path(path)


def _check_free(kind: str, name: str, origin: str, place: str) -> None:
    """HarnessError that names both origins, and the files, if the name is taken."""
    others: dict[str, Any] = {
        "method": lambda: method_spec(name).origin if name in list_methods() else None,
        "tokenizer": lambda: tokenizer_spec(name).origin if name in list_tokenizers() else None,
        "data set": lambda: registered_data_sets()[name].origin if name in registered_data_sets() else None,
        "protocol": lambda: protocol_origin(name) if name in list_protocols() else None,
    }
    other = others[kind]()
    if other is None:
        return
    there = _PLACES.get((kind, name))
    raise HarnessError(
        f"{place}: {kind} {name!r} comes from two places: {other}{f' ({there})' if there else ''}, and "
        f"{origin} ({place}); rename one of them, or leave one out"
    )


def forget(kind: str, name: str) -> None:
    """As if it had never been made known."""
    _FORGET[kind](name)
    _PLACES.pop((kind, name), None)
