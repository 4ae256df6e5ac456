"""Views: each of the paper's tables finds all of its cells in fair300's plan, and no view holds others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from benchmark.plan import Cell, make_plan, select
from protocols import load_protocol
from protocols.errors import HarnessError

Written = Callable[..., Path]

SIZES = ("vit-t", "vit-s", "vit-b")
Needed = set[tuple[Any, ...]]


def of(
    methods: list[tuple[str, str | None]], trunks: tuple[str, ...], evaluations: tuple[str, ...]
) -> Needed:
    """Rows (method, tokenizer) by columns (trunk, evaluation) -> (evaluation, method, tokenizer, trunk)."""
    return {(evaluation, *row, trunk) for row, trunk, evaluation in product(methods, trunks, evaluations)}


# Rows and columns of the tables of arXiv 2306.07346; null cells left out, top-1 and top-5 are one cell.
BOTH = ("finetune", "linear-probe")
TABLES: dict[str, Needed] = {
    "table1": of(
        [("mim", "vq-kd"), ("pim", "vq-kd"), ("mapet", "vq-kd"),
         ("mim", "k-clip"), ("pim", "k-clip"), ("mapet", "k-clip")], SIZES, BOTH),
    "table2": of([("scratch", None)], SIZES, ("finetune",))
    | of(
        [("cae", "vq-kd"), ("beit", "vq-kd"), ("mapet", "vq-kd"),
         ("cae", "k-clip"), ("beit", "k-clip"), ("mapet", "k-clip")], SIZES, BOTH),
    "table3": of([("mapet", "k-clip"), ("mapet", "vq-kd")], ("vit-s", "vit-b"), ("finetune",)),
    "table4": {("token-mlp", None, name, None) for name in ("dall-e", "vq-kd", "k-clip")}
    | {("token-vit-t", None, name, "vit-t") for name in ("dall-e", "vq-kd", "k-clip")},
    "table5": of([("cae", "vq-kd"), ("beit", "vq-kd"), ("mapet", "vq-kd")], ("vit-b",),
                 ("stanford-cars", "food-101", "fgvc-aircraft")),
    "table6": of([("mapet", "vq-kd")], ("vit-b",), ("finetune",)),
}  # fmt: skip
# Table 6: cutting point, and the share of the 196 patches that it leaves to predict.
TABLE_6 = {30: 0.85, 40: 0.80, 50: 0.75, 60: 0.70, 98: 0.50}


def planned(*views: str, name: str = "fair300", **selection: Any) -> list[Cell]:
    protocol = load_protocol(name)
    return make_plan(protocol, select(protocol, views=views or ["all"], **selection))


def key(cell: Cell) -> tuple[Any, ...]:
    return (cell.evaluation, cell.method, cell.tokenizer, cell.trunk)


@pytest.mark.parametrize("view", TABLES)
def test_a_view_holds_the_rows_by_columns_of_its_table(view: str) -> None:
    cells = [cell for cell in planned(view) if cell.evaluation]
    assert {key(cell) for cell in cells} == TABLES[view]
    assert len(cells) == (5 if view == "table6" else len(TABLES[view]))
    whole = {cell.id: cell.views for cell in planned()}
    assert all(view in whole[cell.id] for cell in cells)


def test_every_view_is_a_table() -> None:
    views = load_protocol("fair300").views
    assert list(views) == [*TABLES, "table7", "table8", "neighbours", "further"]
    assert [view.reported for view in views.values()] == [*TABLES, "table7", "table8", None, None]


def test_table_6_tries_five_cutting_points_and_shares_table_1s_cell() -> None:
    cells = planned("table6")
    points = [dict(cell.hyperparameters)["cutting_point"] for cell in cells if cell.stage == "pretrain"]
    assert points == list(TABLE_6)
    for point, share in TABLE_6.items():
        assert (197 - point) / 196 == pytest.approx(share, abs=0.006)
    shared = {cell.id for cell in cells} & {cell.id for cell in planned("table1")}
    assert {cell.stage for cell in cells if cell.id in shared} == {"tokenise", "pretrain", "finetune"}
    assert [
        dict(cell.hyperparameters) for cell in cells if cell.id in shared and cell.stage == "pretrain"
    ] == [{"cutting_point": 60}]


def test_the_whole_of_fair300() -> None:
    """The counts that the file's opening states, for one seed."""
    cells = planned()
    stages = Counter(cell.stage for cell in cells)
    transfer = [cell for cell in cells if cell.evaluation in ("stanford-cars", "food-101", "fgvc-aircraft")]
    assert (stages["pretrain"], stages["finetune"], stages["linear-probe"] - len(transfer)) == (34, 37, 30)
    assert (len(transfer), stages["token-classification"]) == (9, 6)
    assert {(cell.tokenizer, cell.part) for cell in cells if cell.stage == "tokenise"} == {
        (name, part) for name in ("k-clip", "vq-kd", "dall-e") for part in (None, "test")
    }


def test_without_views_every_combination_of_the_names_is_planned() -> None:
    cells = planned(
        "none", methods=["mim"], tokenizers=["dall-e"], trunks=["vit-t"], evaluations=["food-101"]
    )
    assert [key(cell) for cell in cells if cell.evaluation] == [("food-101", "mim", "dall-e", "vit-t")]
    with pytest.raises(HarnessError, match="no view of protocol fair300 holds such a cell"):
        planned("table1", tokenizers=["dall-e"])


VIEW = """
views:
  mine:
    title: T
    cells:
      - {methods: [mim], tokenizers: [k-pixel], trunks: [vit-tiny-test], evaluations: [finetune]}
      - {methods: [mim], tokenizers: [k-pixel], trunks: [vit-tiny-test], evaluations: [linear-probe]}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[linear-probe]}", "[probe]}", r"cells\.1\.evaluations: names 'probe', which evaluations does not"),
        (
            "[mim], tokenizers",
            "[swin], tokenizers",
            r"cells\.0\.methods: names 'swin', which methods does not",
        ),
        (
            "trunks: [vit-tiny-test], evaluations: [l",
            "evaluations: [l",
            r"cells\.1: needs both methods and trunks",
        ),
        ("methods: [mim], ", "", r"cells\.0: needs both methods and trunks, or neither"),
        (", evaluations: [linear-probe]", "", r"cells\.1\.evaluations: is missing"),
        ("[finetune]}", "[finetune], method: [a]}", r"cells\.0\.method: unknown key; did you mean 'methods'"),
        (
            "[finetune]}",
            "[finetune], hyperparameters: {mask_count: []}}",
            r"cells\.0\.hyperparameters\.mask_count",
        ),
        ("[finetune]}", "[finetune], hyperparameters: {mask_count: [[1]]}}", "must be a number, a text"),
        (
            "    title: T\n",
            "    title: T\n    tittle: T\n",
            r"views\.mine\.tittle: unknown key; did you mean",
        ),
        ("  mine:", "  My View:", r"views\.My View: a name is 1 to 64"),
    ],
)
def test_mistakes_in_views_are_named_with_their_line(
    written: Written, old: str, new: str, message: str
) -> None:
    assert old in VIEW
    path = written("tiny", ("pretraining:\n  epochs", f"{VIEW.replace(old, new, 1)}\npretraining:\n  epochs"))
    with pytest.raises(HarnessError, match=message) as caught:
        load_protocol(str(path))
    line = int(str(caught.value).split(":")[1])
    first = path.read_text().splitlines().index("views:") + 1
    assert first < line < first + 9
