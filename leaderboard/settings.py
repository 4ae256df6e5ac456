"""Which setting of its method's own hyperparameters a cell has: the protocol's, one of a view's, another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from protocols.schema import Protocol, ViewCells


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`values` are those that the protocol sets, by method and trunk; `tried` the cells of its views.

    Of a method that `values` lacks, such as a plug-in's, nothing is known: any setting is its own.
    """

    values: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    tried: tuple[ViewCells, ...] = ()

    @classmethod
    def of(cls, protocol: Protocol) -> Settings:
        """The settings of `protocol`, and what its views try."""
        return cls(
            values={
                (method, trunk): protocol.method_values(method, trunk)
                for method in protocol.names("methods")
                for trunk in protocol.trunks
            },
            tried=tuple(
                cells for view in protocol.views.values() for cells in view.cells if cells.hyperparameters
            ),
        )

    def variant(self, *, method: str, tokenizer: str, trunk: str, used: Mapping[str, Any]) -> str | None:
        """Empty for the protocol's own setting, such as `cutting_point 30` for one that a view tries.

        None for any other. `used` are the resolved hyperparameters of a pre-training; without any it is
        taken for the protocol's own.
        """
        own = self.values.get((method, trunk), {})
        views = [
            cells.hyperparameters
            for cells in self.tried
            if method in cells.methods and tokenizer in cells.tokenizers and trunk in cells.trunks
        ]
        other = {name: used.get(name) for name, value in own.items() if used and used.get(name) != value}
        # A view may try what the protocol leaves to the method's default, which nothing here knows.
        for tried in views:
            other |= {name: used[name] for name in tried if name not in own and used.get(name) in tried[name]}
        if not other:
            return ""
        for tried in views:
            if all(value in tried.get(name, ()) for name, value in other.items()):
                return ", ".join(_label(name, value) for name, value in other.items())
        return None

    @property
    def variants(self) -> tuple[str, ...]:
        """Every single value that a view tries, in the order of the views."""
        return tuple(
            _label(name, value)
            for cells in self.tried
            for name, values in cells.hyperparameters.items()
            for value in values
        )


def _label(name: str, value: Any) -> str:
    return f"{name} {value}"
