"""Further methods, methods without tokens, and methods of plug-ins in a plan; nothing here trains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from benchmark.cost import training_flops
from benchmark.forecast import disk_use, method_parameters
from benchmark.placement import place
from benchmark.plan import Cell, make_plan, mark_modified
from benchmark.runtime import Runtime
from benchmark.selection import select
from methods import register_method, unregister_method
from methods.specs import MethodSpec, masked_work
from protocols import load_protocol
from protocols.errors import HarnessError, ProtocolViolation
from protocols.hyperparameters import Hyperparameter

MINI = load_protocol("mini")
SIX = {"scratch", "mim", "pim", "mapet", "beit", "cae"}
FURTHER = {"splitmask", "maskfeat", "beit-v2"}
ON_A_CPU = Runtime(device="cpu", jobs=1, threads=1)


def planned(*methods: str, **options: list[str]) -> list[Cell]:
    return make_plan(MINI, select(MINI, methods=methods, **options))


@pytest.fixture
def ring() -> Iterator[MethodSpec]:
    spec = MethodSpec(
        name="ring",
        title="Ring",
        target="nowhere:Ring",
        paper="a test",
        origin="plug-in ring.py",
        hyperparameters=(
            Hyperparameter(
                name="mask_count",
                type=int,
                low=1,
                follows=lambda trunk: trunk.patches // 3,
                source="a third",
            ),
        ),
        work=masked_work,
    )
    register_method(spec)
    yield spec
    unregister_method("ring")


def test_all_means_the_protocols_six_and_all_known_the_further_ones_too() -> None:
    six, known = planned("all"), planned("all-known")
    assert {cell.method for cell in six} - {None} == SIX
    assert {cell.method for cell in known} - {None} == SIX | FURTHER
    assert {cell.id for cell in six} < {cell.id for cell in known}
    # Of a view that has further ones, too.
    assert {cell.method for cell in planned("all", views=["further"])} - {None} == SIX


def test_a_method_without_tokens_has_one_row_and_a_pretraining_without_parents() -> None:
    cells = planned("maskfeat")
    assert [cell.stage for cell in cells] == ["pretrain", "finetune", "linear-probe"]
    assert all(cell.tokenizer is None for cell in cells)
    assert cells[0].parents == ()
    assert cells[1].parents == cells[2].parents == (cells[0].id,)
    # However many tokenizers are named: they move nothing of it.
    everything = planned("maskfeat", tokenizers=["all"], views=["none"])
    assert [cell.id for cell in everything] == [cell.id for cell in cells]


def test_what_it_costs_does_not_depend_on_a_codebook() -> None:
    (cell, *_) = planned("maskfeat")
    trunk, own = MINI.trunk_spec("vit-mini", drop_path=0.0), dict(cell.hyperparameters)
    assert training_flops("maskfeat", trunk, own, codebook_size=0) == training_flops(
        "maskfeat", trunk, own, codebook_size=8192
    )
    weights = method_parameters("maskfeat", trunk, own, codebook_size=0)
    assert weights == method_parameters("maskfeat", trunk, own, codebook_size=8192)
    assert disk_use(cell, MINI).kept > 4 * weights


def test_images_that_depend_on_one_another_stay_in_one_micro_batch() -> None:
    cell = next(cell for cell in planned("splitmask") if cell.stage == "pretrain")
    assert dict(cell.hyperparameters)["contrast_group"] == MINI.pretraining.global_batch == 64
    place(cell, MINI, ON_A_CPU, costs=None, memory_bytes=None, gpus=1)
    parted = ON_A_CPU.model_copy(update={"accumulation": 2})
    with pytest.raises(
        ProtocolViolation, match=r"in whole groups of 64 images; their product must be one of 1$"
    ):
        place(cell, MINI, parted, costs=None, memory_bytes=None, gpus=1)
    with pytest.raises(ProtocolViolation, match="batch of 64 images cannot be cut into groups of 48"):
        ON_A_CPU.micro_batch(64, group=48)


def test_a_plug_ins_method_joins_the_view_that_takes_plug_ins(ring: MethodSpec) -> None:
    cells = planned("mim", "ring")
    rows = {(cell.tokenizer, cell.trunk) for cell in cells if cell.method == "ring"}
    assert rows == {("k-pixel", "vit-mini"), ("k-feature", "vit-mini")}
    own = {cell.hyperparameters for cell in cells if (cell.method, cell.stage) == ("ring", "pretrain")}
    assert own == {(("mask_count", 16),)}
    assert {cell.views for cell in cells if cell.method == "ring"} == {("further",)}
    assert "ring" in {cell.method for cell in planned("all-known")}
    assert "ring" not in {cell.method for cell in planned("all")}


def test_one_that_a_protocol_says_nothing_of_must_know_its_own_values(ring: MethodSpec) -> None:
    unregister_method("ring")
    (own,) = ring.hyperparameters
    register_method(replace(ring, hyperparameters=(replace(own, follows=None, required=True),)))
    with pytest.raises(
        HarnessError, match=r"methods.ring, of which it sets nothing: .*mask_count must be set"
    ):
        planned("ring")


def test_a_further_methods_value_that_is_set_is_marked() -> None:
    changed = load_protocol("mini", overrides=["methods.splitmask.temperature=0.1"])
    selection = select(changed, methods=["splitmask", "maskfeat"])
    marked = {
        cell.method
        for cell in mark_modified(make_plan(changed, selection), MINI, selection)
        if cell.is_modified
    }
    assert marked == {"splitmask"}
