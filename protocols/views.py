"""Views: which tables a protocol has, and which cells each is made of. Outside every digest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from protocols.frozen import Frozen, FrozenDict, Name, Names, TrialValues

Metric = Literal["top1_percent", "top5_percent"]


class ViewCells(Frozen):
    """Which cells a table needs: every combination of what is named.

    Without methods the tokens themselves are evaluated. `hyperparameters` gives values of a method's
    own, and `pretraining` values of the pre-training recipe, to try one after another in the place of
    those that the protocol sets. `equal_compute_to` says that the epochs tried are those in which the
    methods spend the training FLOPs that the method named there spends in the protocol's; the planner,
    which knows what a method costs, refuses others.
    """

    methods: Annotated[tuple[str, ...], Field(strict=False)] = ()
    tokenizers: Annotated[tuple[str, ...], Field(strict=False)] = ()
    trunks: Annotated[tuple[str, ...], Field(strict=False)] = ()
    evaluations: Names
    hyperparameters: Annotated[dict[str, TrialValues], AfterValidator(FrozenDict)] = FrozenDict()
    pretraining: Annotated[dict[Name, TrialValues], AfterValidator(FrozenDict)] = FrozenDict()
    equal_compute_to: Name | None = None

    @model_validator(mode="after")
    def _tries_epochs(self) -> ViewCells:
        if self.equal_compute_to is not None and len(self.pretraining.get("epochs", ())) != 1:
            raise ValueError("equal_compute_to also needs pretraining: {epochs: [N]}")
        return self

    def taken_by(self, method: str, *, uses_tokens: bool) -> ViewCells:
        """The same cells of another method."""
        return self.model_copy(
            update={"methods": (method,), "tokenizers": self.tokenizers if uses_tokens else ()}
        )


class View(Frozen):
    """One table: what it shows, and the cells that it is made of, or the recipe that it lists.

    Rows are the cells' tokenizers, methods and tried values, columns their trunks and evaluations, each
    with every one of `metrics`. `reported` names the table of leaderboard/paper.yaml whose numbers stand
    beside the measured ones: only for a protocol that measures what the paper did. A study (`is_study`)
    is no table of the paper, and its cells run only if --views names it. `takes_plugins`: methods that the
    protocol does not list stand in it too, once they are asked for, beside those of its first cells that
    have tokenizers.
    """

    title: str
    cells: Annotated[tuple[ViewCells, ...], Field(strict=False)] = ()
    metrics: Annotated[tuple[Metric, ...], Field(strict=False, min_length=1)] = ("top1_percent",)
    reported: Name | None = None
    recipe: Literal["pretraining", "finetune"] | None = None
    is_study: bool = False
    takes_plugins: bool = False

    @model_validator(mode="after")
    def _shows_something(self) -> View:
        if self.takes_plugins and not any(one.methods and one.tokenizers for one in self.cells):
            raise ValueError("takes_plugins needs cells with methods and tokenizers, for others to join")
        if bool(self.cells) == (self.recipe is not None):
            raise ValueError("a view needs either cells or the recipe that it lists")
        return self
