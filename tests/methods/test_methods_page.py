"""docs/methods.md names every method, every hyperparameter, and the paper's numbers as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from methods import list_methods, method_spec, specs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text()
BUILT_IN = [name for name in list_methods() if method_spec(name).origin == specs.BUILT_IN]
SECTIONS = dict(re.findall(r"^### (.+)\n((?s:.+?))(?=^##|\Z)", PAGE, re.MULTILINE))


def test_every_method_has_its_section() -> None:
    assert sorted(SECTIONS) == sorted(method_spec(name).title for name in BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_section_names_hyperparameters_and_source(name: str) -> None:
    spec = method_spec(name)
    text = SECTIONS[spec.title]
    missing = [one.name for one in spec.hyperparameters if f"`{one.name}`" not in text]
    assert not missing
    for number in re.findall(r"arXiv (\d{4}\.\d{5})", spec.paper):
        assert number in text or not spec.pretrains


def test_table_3_is_quoted_as_it_is() -> None:
    tables = yaml.safe_load((ROOT / "tests" / "golden" / "paper_tables.yaml").read_text())
    reported = {row["method"]: row["values"][1] for row in tables["table3"]["rows"]}
    quoted = {
        name: float(value) for name, value in re.findall(r"^\| ([\w ]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    }
    assert len(quoted) == 5
    assert quoted == {name: reported[name] for name in quoted}
