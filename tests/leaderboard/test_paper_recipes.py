"""Tables 7 and 8: the protocol's values beside the paper's, each with what is to be said of the two."""

from __future__ import annotations

from typing import Any

import pytest

from leaderboard.paper import paper
from leaderboard.recipe_tables import LEFT_OUT, RecipeLine, recipe_lines, recipe_sections
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.schema import Protocol
from protocols.views import View, ViewCells

FAIR, MINI = load_protocol("fair300"), load_protocol("mini")


def lines_of(protocol: Protocol, name: str) -> dict[tuple[str, tuple[str, ...]], RecipeLine]:
    return {(line.name, line.trunks): line for line in recipe_lines(protocol, name)}


@pytest.mark.parametrize("name", ["table7", "table8"])
def test_the_papers_setting_has_every_value_that_the_paper_prints(name: str) -> None:
    said: dict[str, set[str]] = {}
    for line in recipe_lines(FAIR, name):
        said.setdefault(line.name, set()).add(line.verdict)
    for printed in paper().recipes[name].lines:
        expected = (
            "lost in the text" if printed.is_lost else "not set here" if printed.value is None else "same"
        )
        assert said.pop(printed.name) == {expected}
    assert set().union(*said.values()) <= {"assumed", "not printed"}
    assert len(said) == (0 if name == "table7" else 11)


def test_trunks_with_one_value_share_a_line() -> None:
    lines = lines_of(FAIR, "table8")
    assert lines["layer-wise learning rate decay", ("vit-t",)].here == "none"
    assert lines["layer-wise learning rate decay", ("vit-s", "vit-b")].here == "0.65"
    assert lines["warmup epochs", ("vit-t", "vit-s", "vit-b")].printed == "20"
    assert lines["peak learning rate", ("vit-s",)].here == "0.005"
    assert lines_of(FAIR, "table7")["attention head size", ("vit-t", "vit-s", "vit-b")].here == "64"
    assert lines_of(FAIR, "table7")["FFN inner hidden size", ("vit-b",)].printed == "3072"


def test_every_value_has_its_source() -> None:
    for protocol in (FAIR, MINI):
        for name in ("table7", "table8"):
            for line in recipe_lines(protocol, name):
                assert bool(line.source) == (line.verdict != "not set here"), line
    left_out = {line.name for line in recipe_lines(MINI, "table8") if line.source == LEFT_OUT}
    assert left_out == {"erasing prob", "rand augment", "mixup prob", "cutmix prob"}
    assumed = lines_of(FAIR, "table8")["mixup group", ("vit-t", "vit-s", "vit-b")]
    assert assumed.verdict == "assumed"
    assert assumed.source.startswith("assumed: one draw for 128 images")
    assert "passes it as alpha" in lines_of(FAIR, "table8")["mixup prob", ("vit-t", "vit-s", "vit-b")].note


def changed(**recipe: Any) -> Protocol:
    return FAIR.model_copy(update={"pretraining": FAIR.pretraining.model_copy(update=recipe)})


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("epochs", 301, "training epochs"), ("betas", (0.9, 0.99), "adam betas"),
        ("peak_lr", 1.6e-3, "peak learning rate"), ("clip_grad_norm", None, "gradient clipping"),
        ("optimizer", "lamb", "optimizer"), ("color_jitter", 0.0, "color jitter"),
    ],
)  # fmt: skip
def test_each_difference_is_marked_and_red(field: str, value: Any, name: str) -> None:
    protocol = changed(**{field: value})
    differing = [line.name for line in recipe_lines(protocol, "table7") if line.verdict == "differs"]
    assert differing == [name]
    (block,) = recipe_sections(protocol)[0].blocks
    (row,) = {row for row, _ in block.red}
    assert block.grid.rows[row][0] == name
    assert block.frame["verdict"].tolist().count("differs") == 1


def test_another_protocol_than_the_papers_differs_on_purpose() -> None:
    table7, table8 = recipe_sections(MINI)
    assert (table7.name, table8.name) == ("table7", "table8")
    assert not table7.blocks[0].red | table8.blocks[0].red
    rows = {row[0]: row for row in table7.blocks[0].grid.rows}
    assert rows["training epochs"] == (
        "training epochs",
        "all",
        str(MINI.pretraining.epochs),
        "300",
        "differs",
    )
    assert rows["hidden size"] == ("hidden size", "all", "64", "192/384/768", "no such trunk")
    assert rows["input resolution"] == ("input resolution", "all", "28", "lost", "lost in the text")
    # Every word that is used is explained once.
    for section in (table7, table8):
        given = {row[4] for row in section.blocks[0].grid.rows} - {"same"}
        assert {note.partition(":")[0].lower() for note in section.notes} == given


def test_a_recipe_that_is_not_there_is_refused() -> None:
    view = View(title="t", recipe="finetune", reported="table7")
    with pytest.raises(HarnessError, match=r"one lists the recipe of finetune .*'table7'.* in table8"):
        recipe_sections(FAIR.model_copy(update={"views": {"one": view}}))
    probes = {name: recipe for name, recipe in MINI.evaluations.items() if recipe.kind != "finetune"}
    with pytest.raises(HarnessError, match="no evaluation of kind finetune"):
        recipe_sections(MINI.model_copy(update={"evaluations": probes}))


def test_views_of_cells_list_no_recipe() -> None:
    cells = ViewCells(tokenizers=("k-pixel",), evaluations=("token-mlp",))
    assert recipe_sections(MINI.model_copy(update={"views": {"one": View(title="t", cells=(cells,))}})) == ()
