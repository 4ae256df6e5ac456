"""Which setting a cell's pre-training has: the protocol's, one that a view tries, or another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from protocols.schema import Protocol
from protocols.views import ViewCells


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the protocol sets of methods' own values, by method and trunk, and of the pre-training recipe.

    `tried` are the cells of its views that try others. Of a method that `values` lacks, such as a
    plug-in's, nothing is known: any setting is its own. Without a `recipe` all recipes are alike.
    """

    values: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
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
            recipe=protocol.slice("pretraining"),
            tried=tuple(
                cells
                for view in protocol.views.values()
                for cells in view.cells
                if cells.hyperparameters or cells.pretraining
            ),
        )

    def variant(
        self,
        *,
        method: str,
        tokenizer: str,
        trunk: str,
        used: Mapping[str, Any],
        recipe: Mapping[str, Any],
    ) -> str | None:
        """Empty for the protocol's own setting, such as `cutting_point 30` for one that a view tries.

        None for any other. `used` are the resolved hyperparameters of a pre-training, `recipe` its
        resolved recipe; without any they are taken for the protocol's own.
        """
        own = self.values.get((method, trunk), {})
        views = [
            cells
            for cells in self.tried
            # A method without a tokenizer stands in cells that name none.
            if method in cells.methods and tokenizer in (cells.tokenizers or ("",)) and trunk in cells.trunks
        ]
        other = {name: used.get(name) for name, value in own.items() if used and used.get(name) != value}
        # A view may try what the protocol leaves to the method's default, which nothing here knows.
        for cells in views:
            other |= {
                name: used[name]
                for name, values in cells.hyperparameters.items()
                if name not in own and used.get(name) in values
            }
        trained = self.recipe_changes(recipe)
        if not other and not trained:
            return ""
        for cells in views:
            if all(value in cells.hyperparameters.get(name, ()) for name, value in other.items()) and all(
                value in cells.pretraining.get(name, ()) for name, value in trained.items()
            ):
                return ", ".join(_label(name, value) for name, value in (other | trained).items())
        return None

    def recipe_changes(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """What of a resolved pre-training recipe is not as the protocol has it; empty without either."""
        if not recipe or not self.recipe:
            return {}
        names = dict.fromkeys([*self.recipe, *recipe])
        return {name: recipe.get(name) for name in names if recipe.get(name) != self.recipe.get(name)}

    @property
    def variants(self) -> tuple[str, ...]:
        """Every single value that a view tries, in the order of the views."""
        return tuple(
            _label(name, value)
            for cells in self.tried
            for name, values in (*cells.hyperparameters.items(), *cells.pretraining.items())
            for value in values
        )


def _label(name: str, value: Any) -> str:
    return f"{name} {value}"
