"""What the paper reports, read strictly from paper.yaml: its result tables, its recipes, its claims."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from protocols.errors import HarnessError
from protocols.frozen import Frozen, FrozenDict, Name, Named, PositiveInt, Scalar
from protocols.views import Metric

PAPER_FILE = Path(__file__).with_suffix(".yaml")
Percent = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(gt=0, lt=1)]
Printed = int | float | str | Annotated[tuple[float, ...], Field(strict=False)]
ReportedKey = tuple[str, str, frozenset[tuple[str, Any]], str, str, str]


class PaperSource(Frozen):
    """Which text the numbers were read from."""

    title: str
    arxiv: str
    version: PositiveInt

    def __str__(self) -> str:
        return f"arXiv {self.arxiv} v{self.version}"


class ReportedColumn(Frozen):
    """One column of numbers. Without a `trunk` the table names none, or tokens alone are classified."""

    trunk: Name | None = None
    evaluation: Name
    metric: Metric


class ReportedRow(Frozen):
    """One row: of a method, of a tokenizer alone, or (`work`) what another work reports of its own.

    `setting` holds the values of the method that the table tries; `values` are in per cent, one for
    each column, None where the paper prints a dash.
    """

    method: Name | None = None
    tokenizer: Name | None = None
    work: str | None = None
    epochs: PositiveInt | None = None
    setting: Annotated[dict[str, Scalar], AfterValidator(FrozenDict)] = FrozenDict()
    reconstruction_ratio: Share | None = None
    values: Annotated[tuple[Percent | None, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> ReportedRow:
        is_ours = self.method is not None or self.tokenizer is not None
        if is_ours == (self.work is not None):
            raise ValueError("a row needs either a method or a tokenizer, or the work that reports it")
        return self


class ReportedTable(Frozen):
    """One result table. `lost` says what the text at hand does not hold of it."""

    caption: str
    lost: str = ""
    columns: Annotated[tuple[ReportedColumn, ...], Field(strict=False, min_length=1)]
    rows: Annotated[tuple[ReportedRow, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _is_rectangular(self) -> ReportedTable:
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise ValueError(f"{row.values} are not {len(self.columns)} values, one for each column")
        named = [(row.method, row.tokenizer, row.work, frozenset(row.setting.items())) for row in self.rows]
        if len(set(named)) < len(named) or len(set(self.columns)) < len(self.columns):
            raise ValueError("two rows or two columns have the same name")
        return self

    @property
    def tried(self) -> tuple[str, ...]:
        """The names of the values that the rows try."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.setting))

    @property
    def others(self) -> tuple[ReportedRow, ...]:
        """What other works report of their own, in the table's order."""
        return tuple(row for row in self.rows if row.work is not None)

    def numbers(self) -> dict[ReportedKey, float]:
        """(method, tokenizer, setting, trunk, evaluation, metric) -> per cent, of this harness's own rows.

        Empty texts stand for what a row or a column does not name.
        """
        return {
            (
                row.method or "",
                row.tokenizer or "",
                frozenset(row.setting.items()),
                column.trunk or "",
                column.evaluation,
                column.metric,
            ): value
            for row in self.rows
            if row.work is None
            for column, value in zip(self.columns, row.values, strict=True)
            if value is not None
        }


class PrintedLine(Frozen):
    """One hyperparameter as the paper prints it: for all trunks (`printed`), or for each (`per_trunk`).

    `value` says where a protocol holds it, as SCOPE.FIELD; None where no protocol does. `means` is what
    is printed in the protocol's own terms, where those differ from the paper's.
    """

    name: str
    value: Annotated[str, Field(pattern=r"^(recipe|trunk|data)\.[a-z_]+$")] | None = None
    printed: Printed | None = None
    per_trunk: Named[Printed] = FrozenDict()
    means: Scalar | None = None
    is_lost: bool = False
    note: str = ""

    @model_validator(mode="after")
    def _is_printed_once(self) -> PrintedLine:
        if [self.printed is not None, bool(self.per_trunk), self.is_lost].count(True) != 1:
            raise ValueError(f"{self.name} needs exactly one of printed, per_trunk and is_lost")
        return self

    def of_trunk(self, trunk: str) -> Printed | None:
        """What is printed for `trunk`; None where the paper has no such trunk, or the text has lost it."""
        return self.per_trunk.get(trunk) if self.per_trunk else self.printed


class PrintedRecipe(Frozen):
    """One table of hyperparameters."""

    caption: str
    recipe: Literal["pretraining", "finetune"]
    lines: Annotated[tuple[PrintedLine, ...], Field(strict=False, min_length=1)]


class Claim(Frozen):
    """One sentence of the paper's prose, and the views whose numbers would show it."""

    id: Name
    text: str
    views: Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]


class Paper(Frozen):
    """Everything that paper.yaml holds."""

    source: PaperSource
    tables: Named[ReportedTable]
    recipes: Named[PrintedRecipe]
    claims: Annotated[tuple[Claim, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _claims_name_tables(self) -> Paper:
        ids = [claim.id for claim in self.claims]
        if len(set(ids)) < len(ids):
            raise ValueError("two claims have one id")
        for claim in self.claims:
            for name in claim.views:
                if name not in self.tables:
                    raise ValueError(f"claim {claim.id} names {name!r}, which is no table")
        return self


@cache
def paper() -> Paper:
    """What the paper reports."""
    return parse_paper(PAPER_FILE.read_text(encoding="utf-8"))


def claims() -> tuple[Claim, ...]:
    """What the paper's prose concludes, in its order."""
    return paper().claims


def reported_tables() -> Mapping[str, ReportedTable]:
    """The paper's result tables by name: table1 to table6."""
    tables: Mapping[str, ReportedTable] = paper().tables
    return tables


def parse_paper(text: str) -> Paper:
    """The text of a paper.yaml. Raises HarnessError for anything that is not exactly right."""
    try:
        return Paper.model_validate(yaml.load(text, Loader=_StrictLoader))
    except yaml.YAMLError as error:
        raise HarnessError(f"{PAPER_FILE.name}: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise HarnessError(f"{PAPER_FILE.name}: {where}: {first['msg']}") from None


class _StrictLoader(yaml.SafeLoader):
    """Of two equal keys YAML would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0]!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)
