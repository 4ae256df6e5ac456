"""Methods and tokenizers that plug-ins bring: what the records say of them, and what commands need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from leaderboard.lineage import ended
from leaderboard.record import Record, plugin_words


class PluginMethod(NamedTuple):
    """`title` is how the method calls itself; `plugin` the file without its folder, or the distribution."""

    title: str
    plugin: str


@dataclass(frozen=True, kw_only=True)
class PluginFiles:
    """Names of methods and of tokenizers -> the file or distribution that brought them."""

    methods: Mapping[str, str] = field(default_factory=dict)
    tokenizers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Record]) -> PluginFiles:
        """As the newest record of each says."""
        methods, tokenizers = dict[str, str](), dict[str, str]()
        for record in sorted(records, key=ended):
            for names, use in ((methods, record.method), (tokenizers, record.tokenizer)):
                if use is not None:
                    names[use.name] = use.plugin
        return cls(methods=methods, tokenizers=tokenizers)

    def words(self, methods: Iterable[str], tokenizers: Iterable[str]) -> list[str]:
        """What a command needs so that it knows them: `--plugin ring_mim.py`, or nothing."""
        of_methods = (self.methods.get(name, "") for name in methods)
        return plugin_words([*of_methods, *(self.tokenizers.get(name, "") for name in tokenizers)])


def plugin_methods(records: Iterable[Record]) -> dict[str, PluginMethod]:
    """Name -> what the newest record of that method says of its plug-in; no name of a built-in method.

    A title that several have ends in the name.
    """
    found: dict[str, PluginMethod] = {}
    for record in sorted(records, key=ended):
        use = record.method
        if use is not None and use.plugin:
            found[use.name] = PluginMethod(title=use.title, plugin=use.plugin)
        elif use is not None:
            found.pop(use.name, None)
    # Variants of one file may call themselves the same, and tests of pairs go by what rows are called.
    shared = Counter(found.values())
    return {
        name: one._replace(title=f"{one.title} {name}") if one.title and shared[one] > 1 else one
        for name, one in found.items()
    }
