"""--set on a hyperparameter of a plug-in's method, of which the protocol says nothing."""

from __future__ import annotations

import pytest

from benchmark.plan import Cell, make_plan, mark_modified
from benchmark.selection import select
from protocols import load_protocol
from protocols.errors import HarnessError
from tests.plugins.conftest import Load
from tests.plugins.plugin_texts import METHOD

MINI = load_protocol("mini")


def planned(*overrides: str) -> list[Cell]:
    changed = load_protocol("mini", overrides=overrides)
    selection = select(changed, methods=["ring-mim", "mim"])
    return mark_modified(make_plan(changed, selection), MINI, selection)


def test_it_moves_that_method_alone_which_still_joins_its_view(load: Load) -> None:
    load(METHOD)
    cells = [cell for cell in planned("methods.ring-mim.mask_count=3") if cell.method is not None]
    assert {cell.is_modified for cell in cells if cell.method == "mim"} == {False}
    ring = [cell for cell in cells if cell.method == "ring-mim"]
    assert {(cell.is_modified, cell.views) for cell in ring} == {(True, ("further",))}
    assert {cell.hyperparameters for cell in ring if cell.stage == "pretrain"} == {(("mask_count", 3),)}
    # What it is anyway marks nothing.
    assert not any(cell.is_modified for cell in planned("methods.ring-mim.mask_count=24"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mask=3", r"did you mean 'methods.ring-mim.mask_count'\? known: methods.ring-mim.mask_count$"),
        ("mask_count", r"the value is missing; write methods.ring-mim.mask_count=VALUE"),
        ("mask_count=abc", r"mask_count must be int, got 'abc'"),
        ("mask_count=300", r"mask_count must be at most 49"),
        ("mask_count=null", r"must be a number, a text, true or false"),
    ],
)
def test_what_is_wrong_names_the_methods_own(load: Load, given: str, message: str) -> None:
    load(METHOD)
    with pytest.raises(HarnessError, match=message):
        planned(f"methods.ring-mim.{given}")


def test_without_the_plug_in_nothing_of_it_can_be_set() -> None:
    with pytest.raises(HarnessError, match=r"write SLICE.FIELD=VALUE"):
        load_protocol("mini", overrides=["methods.ring-mim.mask_count=3"])


def test_a_group_that_does_not_divide_the_batch_names_its_method() -> None:
    changed = load_protocol("mini", overrides=["methods.splitmask.contrast_group=48"])
    with pytest.raises(
        HarnessError,
        match=r"methods.splitmask: method splitmask: contrast_group must divide the global batch of 64 "
        r"images \(pretraining.global_batch\), got 48$",
    ):
        make_plan(changed, select(changed, methods=["splitmask"]))
