"""Cells and their ids: what moves a number changes the id, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.plan import Cell, check_geometry, make_plan, select
from protocols import load_protocol
from protocols.errors import HarnessError

TINY = str(Path(__file__).parent.parent / "tiny.yaml")


def plan(*overrides: str, **selection: object) -> list[Cell]:
    protocol = load_protocol("mini", overrides=overrides)
    return make_plan(protocol, select(protocol, **selection))  # type: ignore[arg-type]


def ids(cells: list[Cell], stage: str) -> set[str]:
    return {cell.id for cell in cells if cell.stage == stage}


def test_all_of_mini() -> None:
    cells = plan()
    stages = [cell.stage for cell in cells]
    assert {stage: stages.count(stage) for stage in set(stages)} == {
        "tokenise": 2,
        "pretrain": 10,
        "finetune": 11,
        "linear-probe": 11,
    }
    seen: set[str] = set()
    for cell in cells:
        assert set(cell.parents) <= seen, "parents come first"
        assert cell.id not in seen
        seen.add(cell.id)


def test_scratch_has_no_tokenizer_and_no_pretraining() -> None:
    cells = plan(methods=["scratch"])
    assert {cell.stage for cell in cells} == {"finetune", "linear-probe"}
    assert all(cell.tokenizer is None and not cell.parents for cell in cells)


def test_more_seeds_share_the_tokens() -> None:
    one, three = plan(), plan(seeds=[0, 1, 2])
    assert ids(one, "tokenise") == ids(three, "tokenise")
    assert len(ids(three, "pretrain")) == 30
    assert {cell.id for cell in one} < {cell.id for cell in three}


@pytest.mark.parametrize(
    ("override", "redone"),
    [
        ("evaluations.linear-probe.peak_lr=0.1", {"linear-probe"}),
        ("evaluations.finetune.epochs=3", {"finetune"}),
        ("pretraining.epochs=3", {"pretrain", "finetune", "linear-probe"}),
        ("tokenizers.k-pixel.seed=3", {"tokenise", "pretrain", "finetune", "linear-probe"}),
        ("data.mean=[0.5, 0.5, 0.5]", {"tokenise", "pretrain", "finetune", "linear-probe"}),
    ],
)
def test_a_change_redoes_what_depends_on_it_and_no_more(override: str, redone: set[str]) -> None:
    before = {cell.id for cell in plan()}
    assert {cell.stage for cell in plan(override) if cell.id not in before} == redone


def test_a_methods_hyperparameter_redoes_that_method_alone() -> None:
    before, after = plan(), plan("methods.pim.cutting_point=20")
    new = [cell for cell in after if cell.id not in {one.id for one in before}]
    assert {cell.method for cell in new} == {"pim"}
    assert {cell.stage for cell in new} == {"pretrain", "finetune", "linear-probe"}


def test_flops_order_methods_as_their_rows_do() -> None:
    flops = {
        cell.method: cell.train_flops for cell in plan(tokenizers=["k-pixel"]) if cell.stage == "pretrain"
    }
    assert flops["mim"] == flops["beit"]
    assert flops["mim"] < flops["pim"] < flops["mapet"]


def test_names_are_case_insensitive_and_deduplicated() -> None:
    assert plan(methods=["MIM", "mim"], tokenizers=["K-Pixel"]) == plan(
        methods=["mim"], tokenizers=["k-pixel"]
    )


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"methods": ["mappet"]}, "unknown method of protocol mini 'mappet'; did you mean 'mapet'"),
        ({"tokenizers": ["k-clip"]}, "unknown tokenizer of protocol mini"),
        ({"trunks": ["vit-b"]}, "unknown trunk"),
        ({"evaluations": ["probe"]}, "did you mean 'linear-probe'"),
        ({"seeds": [-1]}, "seeds are 0 or more"),
    ],
)
def test_unknown_names(selection: dict[str, object], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        plan(**selection)


def test_hyperparameters_are_checked_before_anything_runs() -> None:
    with pytest.raises(HarnessError, match="method mim: mask_count must be at most 49"):
        plan("methods.mim.mask_count=50")


def test_tokens_must_lie_on_the_trunks_patches() -> None:
    trunk = load_protocol(TINY).trunk_spec("vit-tiny-test", drop_path=0.0)
    check_geometry(trunk, tokens=16, tokenizer="k-pixel")
    with pytest.raises(HarnessError, match="gives 49 tokens an image, the trunk has 16 patches"):
        check_geometry(trunk, tokens=49, tokenizer="k-pixel")
