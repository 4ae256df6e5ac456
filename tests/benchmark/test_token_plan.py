"""Which cells of tokens alone are planned: once for each tokenizer and seed, beside no method."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmark.forecast import FLOAT_BYTES, disk_use, trunk_parameters
from benchmark.plan import Cell, make_plan, mark_modified, select
from protocols import load_protocol
from protocols.errors import HarnessError

FULL = str(Path(__file__).parent.parent / "full.yaml")
TOKENS = ("token-mlp", "token-vit")
BOTH = ("finetune", *TOKENS)


def full_with_token_defaults(tmp_path: Path) -> str:
    path = tmp_path / "full.yaml"
    text = Path(FULL).read_text()
    old = "evaluations: [finetune, linear-probe, transfer]"
    assert old in text
    path.write_text(text.replace(old, f"evaluations: [{', '.join(BOTH)}]"))
    return str(path)


def planned(file: str, **names: object) -> list[Cell]:
    protocol = load_protocol(file)
    return make_plan(protocol, select(protocol, **names))  # type: ignore[arg-type]


def of_tokens(cells: list[Cell]) -> list[tuple[str | None, str | None, int | None]]:
    return [
        (cell.evaluation, cell.tokenizer, cell.seed) for cell in cells if cell.stage == "token-classification"
    ]


def test_all_takes_them_once_for_each_tokenizer_and_seed(tmp_path: Path) -> None:
    cells = planned(full_with_token_defaults(tmp_path), seeds=[0, 1])
    assert of_tokens(cells) == [(name, "k-pixel", seed) for seed in (0, 1) for name in TOKENS]
    assert all(cell.method is None for cell in cells if cell.evaluation in TOKENS)
    assert Counter(cell.stage for cell in cells if cell.method) == {"pretrain": 2, "finetune": 4}
    assert [cell.part for cell in cells if cell.stage == "tokenise"] == [None, "test"]
    made, test = (cell for cell in cells if cell.stage == "tokenise")
    assert test.parents == (made.id,)
    assert {cell.parents for cell in cells if cell.evaluation in TOKENS} == {(made.id, test.id)}


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ({}, True),
        ({"tokenizers": ["k-pixel"]}, True),
        ({"methods": ["all"], "trunks": ["all"]}, True),
        ({"methods": ["mim"]}, False),
        ({"trunks": ["vit-tiny-test"]}, False),
        ({"methods": ["mim"], "evaluations": BOTH}, True),
        ({"evaluations": ["finetune"]}, False),
    ],
)
def test_rows_that_are_named_bring_them_only_if_they_are_named_too(
    tmp_path: Path, names: dict[str, object], taken: bool
) -> None:
    """As in views: tokens alone belong to no method and no trunk."""
    cells = planned(full_with_token_defaults(tmp_path), **names)
    assert [name for name, _, _ in of_tokens(cells)] == (list(TOKENS) if taken else [])
    assert any(cell.stage == "finetune" for cell in cells)


def test_named_alone_they_need_no_methods(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="--methods: token-mlp take tokens alone"):
        planned(FULL, methods=["mim"], evaluations=["token-mlp"])
    cells = planned(FULL, evaluations=["token-mlp"])
    assert [cell.stage for cell in cells] == ["tokenise", "tokenise", "token-classification"]
    assert cells == planned(FULL, evaluations=["token-mlp"])


def test_they_have_the_trunk_of_their_classifier() -> None:
    cells = {cell.evaluation: cell for cell in planned(FULL, evaluations=TOKENS) if cell.evaluation}
    mlp, vit = (cells[name] for name in TOKENS)
    assert (mlp.trunk, vit.trunk) == (None, "vit-tiny-test")
    assert "trunk:vit-tiny-test" in dict(vit.slices)
    assert not any(name.startswith("trunk:") for name, _ in mlp.slices)


def test_without_views_a_protocol_that_has_some_plans_them_too() -> None:
    cells = planned("fair300", views=["none"], tokenizers=["vq-kd"], evaluations=["token-mlp"], seeds=[0])
    assert [cell.id for cell in cells] == [
        cell.id for cell in planned("fair300", tokenizers=["vq-kd"], evaluations=["token-mlp"], seeds=[0])
    ]


def test_a_view_may_not_ask_them_of_methods(tmp_path: Path) -> None:
    path = tmp_path / "full.yaml"
    view = "{methods: [mim], tokenizers: [k-pixel], trunks: [vit-tiny-test], evaluations: [token-mlp]}"
    path.write_text(f"{Path(FULL).read_text()}\nviews:\n  mine:\n    title: T\n    cells: [{view}]\n")
    with pytest.raises(
        HarnessError, match=r"views\.mine\.cells\.0\.evaluations: names 'token-mlp', which takes"
    ):
        planned(str(path))


def test_a_value_of_one_marks_it_alone_as_modified() -> None:
    original = load_protocol(FULL)
    protocol = load_protocol(FULL, overrides=["evaluations.token-mlp.evaluated_part=validation"])
    selection = select(protocol, evaluations=TOKENS)
    marked = mark_modified(make_plan(protocol, selection), original, selection)
    changed = {cell.part or cell.evaluation for cell in marked if cell.is_modified}
    assert changed == {"validation", "token-mlp"}


def test_disk_of_their_checkpoints_is_that_of_their_weights() -> None:
    """Nine copies in float32: embedding and Linear of the MLP, or the trunk with an embedding."""
    protocol = load_protocol(FULL)
    uses = {
        cell.evaluation: disk_use(cell, protocol).while_running
        for cell in planned(FULL, evaluations=TOKENS)
        if cell.evaluation
    }
    assert uses["token-mlp"] == FLOAT_BYTES * 9 * (16 * 8 + 8 * 12)
    trunk = protocol.trunk_spec("vit-tiny-test", drop_path=0.0)
    assert uses["token-vit"] == FLOAT_BYTES * 9 * (trunk_parameters(trunk) + 16 * 16)
