"""Methods that plug-ins bring: what the records say of them, and which of a board stand in no protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from leaderboard.lineage import ended
from leaderboard.record import Record


class PluginMethod(NamedTuple):
    """`title` is how the method calls itself; `plugin` the file without its folder, or the distribution."""

    title: str
    plugin: str

    @property
    def is_file(self) -> bool:
        """True of a file, which a command has to name; a distribution is found where it is installed."""
        return self.plugin.endswith(".py")


def plugin_methods(records: Iterable[Record]) -> dict[str, PluginMethod]:
    """Name -> what the newest record of that method says of its plug-in; no name of a built-in method."""
    found: dict[str, PluginMethod] = {}
    for record in sorted(records, key=ended):
        use = record.method
        if use is not None and use.plugin:
            found[use.name] = PluginMethod(title=use.title, plugin=use.plugin)
        elif use is not None:
            found.pop(use.name, None)
    return found


def plugin_options(plugins: Mapping[str, PluginMethod], methods: Iterable[str]) -> list[str]:
    """What a command needs so that it knows `methods`: `--plugin ring_mim.py`, or nothing."""
    files = {plugins[name].plugin: None for name in methods if name in plugins and plugins[name].is_file}
    return ["--plugin", *files] if files else []
