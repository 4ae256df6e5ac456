"""Cells and their ids: what moves a number changes the id, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.plan import STAGES, Cell, make_plan, mark_modified, select
from benchmark.stored_tokens import check_geometry
from protocols import load_protocol
from protocols.errors import HarnessError

TINY = str(Path(__file__).parent.parent / "tiny.yaml")


def plan(*overrides: str, **selection: object) -> list[Cell]:
    protocol = load_protocol("mini", overrides=overrides)
    return make_plan(protocol, select(protocol, **selection))  # type: ignore[arg-type]


def ids(cells: list[Cell], stage: str) -> set[str]:
    return {cell.id for cell in cells if cell.stage == stage}


def counts(cells: list[Cell]) -> dict[str, int]:
    stages = [cell.stage for cell in cells]
    return {stage: stages.count(stage) for stage in set(stages)}


def test_all_of_mini() -> None:
    cells = plan(evaluations=["all"])
    assert counts(cells) == {
        "tokenise": 4,
        "pretrain": 14,  # ten rows, and four cutting points of Table 6
        "finetune": 15,
        "linear-probe": 15,  # eleven rows, and four on digits
        "knn": 11,
        "token-classification": 4,
    }
    seen: set[str] = set()
    for cell in cells:
        assert set(cell.parents) <= seen, "parents come first"
        assert cell.id not in seen
        seen.add(cell.id)


def test_without_options_mini_is_fine_tuned_and_probed_under_its_own_settings() -> None:
    assert counts(plan()) == {"tokenise": 2, "pretrain": 10, "finetune": 11, "linear-probe": 11}
    assert {cell.id for cell in plan()} < {cell.id for cell in plan(evaluations=["all"])}


def test_an_evaluation_by_name_brings_the_tables_that_hold_it_and_no_study() -> None:
    assert counts(plan(methods=["mim"], evaluations=["knn"])) == {"tokenise": 2, "pretrain": 2, "knn": 2}
    assert {cell.views for cell in plan(evaluations=["finetune"]) if cell.stage == "finetune"} == {
        ("table1",), ("table2",), ("table1", "table2"),
    }  # fmt: skip
    assert not {"equal-compute", "sensitivity"} & {
        view for cell in plan(evaluations=["all"]) for view in cell.views
    }


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
        ("evaluations.token-vit.peak_lr=0.1", {"token-classification"}),
        ("evaluations.finetune.epochs=3", {"finetune"}),
        ("pretraining.epochs=3", {"pretrain", "finetune", "linear-probe", "knn"}),
        ("tokenizers.k-pixel.seed=3", set(STAGES)),
        ("data.mean=[0.5, 0.5, 0.5]", set(STAGES)),
    ],
)
def test_a_change_redoes_what_depends_on_it_and_no_more(override: str, redone: set[str]) -> None:
    before = {cell.id for cell in plan(evaluations=["all"])}
    after = plan(override, evaluations=["all"])
    assert {cell.stage for cell in after if cell.id not in before} == redone


@pytest.mark.parametrize(
    ("override", "moved"),
    [
        ("trunks.vit-tiny-test.layer_scale=0.2", {"scratch", "mim", "linear-probe", "finetune", "transfer"}),
        ("transfer_sets.elsewhere.test.count=80", {"transfer"}),
        ("transfer_sets.elsewhere.training.start=513", {"transfer"}),
        ("transfer_sets.nearby.test.count=70", set()),
    ],
)
def test_each_slice_moves_the_cells_that_use_it(override: str, moved: set[str]) -> None:
    """Rows without a pre-training too: nothing but their own slices tells them of a trunk or a data set."""
    full = str(Path(TINY).parent / "full.yaml")
    cells = []
    for overrides in ((), (override,)):
        protocol = load_protocol(full, overrides=overrides)
        cells.append(make_plan(protocol, select(protocol)))
    before = {cell.id for cell in cells[0]}
    new = [cell for cell in cells[1] if cell.id not in before]
    assert {cell.evaluation for cell in new if cell.evaluation} == moved - {"scratch", "mim"}
    if moved:
        assert {cell.method for cell in new} == {"scratch", "mim"}


def test_names_that_no_cell_takes_are_refused() -> None:
    protocol = load_protocol("fair300")
    with pytest.raises(HarnessError, match=r"--methods scratch: no view .* holds such a cell beside"):
        make_plan(protocol, select(protocol, methods=["scratch", "mim"], evaluations=["linear-probe"]))
    with pytest.raises(HarnessError, match=r"--tokenizers dall-e: no view"):
        make_plan(protocol, select(protocol, methods=["mim"], tokenizers=["k-clip", "dall-e"]))
    with pytest.raises(HarnessError, match="--views none stands alone"):
        select(protocol, views=["none", "all"])


def test_only_what_no_view_holds_is_modified() -> None:
    original = load_protocol("fair300")
    protocol = load_protocol("fair300", overrides=["methods.mapet.cutting_point.vit-b=40"])
    selection = select(protocol, methods=["mapet"], trunks=["vit-b"], views=["table1"])
    plan = make_plan(protocol, selection)
    marked = {
        (c.stage, c.tokenizer, c.evaluation)
        for c in mark_modified(plan, original, selection)
        if c.is_modified
    }
    # Table 6 tries 40 on VQ-KD, fine-tuned; on k-CLIP, or probed, nothing of the protocol has it.
    assert marked == {
        ("linear-probe", "vq-kd", "linear-probe"), ("pretrain", "k-clip", None),
        ("finetune", "k-clip", "finetune"), ("linear-probe", "k-clip", "linear-probe"),
    }  # fmt: skip


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
