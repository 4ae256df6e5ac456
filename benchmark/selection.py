"""Which cells a command takes: names as users write them, held against what the protocol has. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from methods import broken_methods, list_methods, method_spec
from methods.specs import BUILT_IN
from protocols.errors import HarnessError, unknown
from protocols.schema import Protocol
from tokenizers import broken_tokenizers, list_tokenizers, tokenizer_spec

# Ends what is said of a name that nobody knows.
PLUGIN_HINT = "; one that a plug-in brings needs --plugin"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which cells to run; every name in its canonical spelling, known to the protocol.

    `narrowed` holds the options that name something of their own: cells of views are taken only if
    they fit those. Without views every combination of what is named is taken, and evaluations of tokens
    alone, which have no method and no trunk, once for each tokenizer: if --evaluations names them, or
    unless --methods or --trunks name something.
    """

    methods: tuple[str, ...]
    tokenizers: tuple[str, ...]
    trunks: tuple[str, ...]
    evaluations: tuple[str, ...]
    seeds: tuple[int, ...]
    views: tuple[str, ...] = ()
    narrowed: frozenset[str] = frozenset()


def select(
    protocol: Protocol,
    *,
    methods: Iterable[str] = ("all",),
    tokenizers: Iterable[str] = ("all",),
    trunks: Iterable[str] = ("all",),
    evaluations: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
    views: Iterable[str] | None = None,
) -> Selection:
    """Names as a user gives them (any case, `all` for the protocol's defaults) -> Selection.

    `methods` all-known means every method that the protocol sets, and those of all plug-ins. `evaluations`
    all means every one of the protocol; without any, its defaults. Without `views` the cells come from the
    protocol's default ones, and from every other that is no study and has an evaluation, or a method, that is
    asked for and that those lack; from all that are no study if every evaluation is asked for. `views` all
    takes every view, studies too; none takes every combination of the names instead, whatever the views hold.
    Raises HarnessError, naming the nearest known one, for a name that neither the protocol defines nor, for
    methods, a plug-in or the harness, nor, for tokenizers, a plug-in.
    """
    narrowed: set[str] = set()
    listed = protocol.names("methods")
    plugins = [name for name in list_methods() if name not in listed and method_spec(name).origin != BUILT_IN]

    def chosen(kind: str, names: Iterable[str]) -> tuple[str, ...]:
        defaults: tuple[str, ...] = getattr(protocol.defaults, kind)
        known = protocol.names(kind)
        meant = {"all": known if kind == "evaluations" else defaults}
        if kind == "methods":
            known = tuple(dict.fromkeys([*known, *list_methods()]))
            meant["all-known"] = (*listed, *plugins)
        if kind == "tokenizers":
            known = tuple(dict.fromkeys([*known, *_tokenizers_of_plugins()]))
        lowered = [name.lower() for name in names]
        if not meant.keys() & set(lowered):
            narrowed.add(kind)
        given = [each for name in lowered for each in meant.get(name, (name,))]
        for name in given:
            if name not in known:
                _check_broken(kind, name)
                others = meant if kind == "methods" else ()
                error = unknown(f"{kind[:-1]} of protocol {protocol.name}", name, [*known, *others])
                hint = PLUGIN_HINT if kind in ("methods", "tokenizers") else ""
                raise HarnessError(f"{error}{hint}")
        return tuple(dict.fromkeys(given))

    asked = protocol.defaults.evaluations if evaluations is None else chosen("evaluations", evaluations)
    chosen_methods = chosen("methods", methods)
    chosen_tokenizers = chosen("tokenizers", tokenizers)
    if views is None:
        chosen_views = _default_views(
            protocol, None if evaluations is None else asked, chosen_methods, chosen_tokenizers
        )
    else:
        chosen_views = _chosen_views(protocol, [name.lower() for name in views])
    picked = tuple(dict.fromkeys(protocol.defaults.seeds if seeds is None else seeds))
    if any(seed < 0 for seed in picked):
        raise HarnessError(f"seeds are 0 or more, got {min(picked)}")
    return Selection(
        methods=chosen_methods,
        tokenizers=chosen_tokenizers,
        trunks=chosen("trunks", trunks),
        evaluations=asked,
        seeds=picked,
        views=chosen_views,
        narrowed=frozenset(narrowed),
    )


def joins_views(method: str, protocol: Protocol) -> bool:
    """True for a method that stands in a view which takes plug-ins, though the view does not name it.

    A plug-in's does also where the protocol, or --set, sets values of it.
    """
    return method not in protocol.names("methods") or method_spec(method).origin != BUILT_IN


def _tokenizers_of_plugins() -> list[str]:
    return [name for name in list_tokenizers() if tokenizer_spec(name).origin != BUILT_IN]


def _check_broken(kind: str, name: str) -> None:
    """HarnessError, with the reason, for what an installed package promises and cannot give."""
    if kind == "methods" and name in broken_methods():
        method_spec(name)
    if kind == "tokenizers" and name in broken_tokenizers():
        tokenizer_spec(name)


def _chosen_views(protocol: Protocol, names: list[str]) -> tuple[str, ...]:
    if names == ["none"]:
        return ()
    if "none" in names:
        raise HarnessError("--views none stands alone: it takes every combination of what the options name")
    given = [each for name in names for each in (protocol.views if name == "all" else (name,))]
    for name in given:
        if name not in protocol.views:
            raise unknown(f"view of protocol {protocol.name}", name, [*protocol.views, "all", "none"])
    return tuple(dict.fromkeys(given))


def _default_views(
    protocol: Protocol,
    asked: tuple[str, ...] | None,
    methods: tuple[str, ...],
    tokenizers: tuple[str, ...],
) -> tuple[str, ...]:
    """What an absent --views means, for `methods`, `tokenizers` and, by name, the evaluations `asked`."""
    tables = [name for name, view in protocol.views.items() if view.cells and not view.is_study]
    if protocol.defaults.views is None or set(asked or ()) == set(protocol.names("evaluations")):
        return tuple(tables)
    found = dict.fromkeys(protocol.defaults.views)

    def held(kind: str, views: Iterable[str]) -> set[str]:
        return {one for name in views for cells in protocol.views[name].cells for one in getattr(cells, kind)}

    lacking = set(asked or ()) - held("evaluations", found)
    lacking_methods = set(methods) - held("methods", found)
    has_plugins = any(joins_views(name, protocol) for name in lacking_methods) or not (
        set(tokenizers) <= set(protocol.names("tokenizers"))
    )
    for name in tables:
        if (
            lacking & held("evaluations", [name])
            or lacking_methods & held("methods", [name])
            or (has_plugins and protocol.views[name].takes_plugins)
        ):
            found[name] = None
    return tuple(found)
