"""paper.yaml holds every number of the paper: cell by cell against the golden transcript."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from leaderboard.paper import PAPER_FILE, claims, paper, parse_paper, reported_tables
from protocols.errors import HarnessError

GOLDEN = Path(__file__).parent.parent / "golden"
TABLES: dict[str, Any] = yaml.safe_load((GOLDEN / "paper_tables.yaml").read_text(encoding="utf-8"))
FACTS: dict[str, Any] = yaml.safe_load((GOLDEN / "paper_facts.yaml").read_text(encoding="utf-8"))
METHODS = {"MIM": "mim", "PIM": "pim", "MaPeT": "mapet", "BEiT": "beit", "CAE": "cae", "ViT": "scratch"}
TOKENIZERS = {"VQ-KD": "vq-kd", "k-CLIP": "k-clip", "DALL-E": "dall-e", None: None}
TRUNKS = {"ViT-T": "vit-t", "ViT-S": "vit-s", "ViT-B": "vit-b"}
COLUMNS = {
    **{f"{size} top1": (trunk, "finetune", "top1_percent") for size, trunk in TRUNKS.items()},
    **{f"{size} linear": (trunk, "linear-probe", "top1_percent") for size, trunk in TRUNKS.items()},
}
OF_TOKENS = {
    "MLP top1": (None, "token-mlp", "top1_percent"),
    "MLP top5": (None, "token-mlp", "top5_percent"),
    "ViT-T top1": (None, "token-vit-t", "top1_percent"),
    "ViT-T top5": (None, "token-vit-t", "top5_percent"),
}
TRANSFER = {
    "Stanford-Cars": (None, "stanford-cars", "top1_percent"),
    "Food-101": (None, "food-101", "top1_percent"),
    "FGVC-Aircraft": (None, "fgvc-aircraft", "top1_percent"),
}
NAMED = {"table4": OF_TOKENS, "table5": TRANSFER}


def as_printed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def test_every_table_is_there_with_its_caption() -> None:
    tables = reported_tables()
    assert list(tables) == list(TABLES)
    assert [table.caption for table in tables.values()] == [table["caption"] for table in TABLES.values()]


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table4", "table5"])
def test_every_number_of_a_table(name: str) -> None:
    ours, golden = reported_tables()[name], TABLES[name]
    known = NAMED.get(name, COLUMNS)
    columns = [(one.trunk, one.evaluation, one.metric) for one in ours.columns]
    assert columns == [known[label] for label in golden["columns"]]
    assert len(ours.rows) == len(golden["rows"])
    for row, printed in zip(ours.rows, golden["rows"], strict=True):
        assert list(row.values) == printed["values"]
        assert row.epochs == printed.get("epochs")
        label = printed.get("method")
        if name == "table3":  # as each work reports it; ours are named with their tokenizer
            method, _, tokenizer = label.partition(" (")
            if tokenizer:
                expected = (METHODS[method], TOKENIZERS[tokenizer.rstrip(")")], None)
            else:
                expected = (None, None, label)
        else:
            expected = (METHODS[label] if label else None, TOKENIZERS[printed["tokenizer"]], None)
        assert (row.method, row.tokenizer, row.work) == expected


def test_every_number_of_the_ablation() -> None:
    ours, golden = reported_tables()["table6"], TABLES["table6"]
    assert golden["columns"] == ["cutting point", "reconstruction ratio", "top1"]
    assert [(one.trunk, one.evaluation, one.metric) for one in ours.columns] == [
        ("vit-b", "finetune", "top1_percent")
    ]
    assert [[row.setting["cutting_point"], row.reconstruction_ratio, *row.values] for row in ours.rows] == [
        row["values"] for row in golden["rows"]
    ]
    assert {(row.method, row.tokenizer) for row in ours.rows} == {("mapet", "vq-kd")}
    assert {(row["method"], row["tokenizer"]) for row in golden["rows"]} == {("MaPeT", "VQ-KD")}


@pytest.mark.parametrize(("name", "recipe"), [("table7", "pretraining"), ("table8", "finetune")])
def test_every_hyperparameter(name: str, recipe: str) -> None:
    ours, golden = paper().recipes[name], FACTS[name]
    assert ours.recipe == recipe
    printed = {
        line.name: "lost"
        if line.is_lost
        else dict(line.per_trunk)
        if line.per_trunk
        else as_printed(line.printed)
        for line in ours.lines
    }
    expected = {
        **{
            what: {TRUNKS[size]: value for size, value in sizes.items()}
            for what, sizes in golden["per_size"].items()
        },
        **{what: as_printed(value) for what, value in golden["shared"].items()},
    }
    assert printed == expected


def test_every_claim_word_for_word() -> None:
    expected = [(one["id"], one["text"], tuple(one["views"])) for one in FACTS["claims"]]
    assert [(one.id, one.text, one.views) for one in claims()] == expected


def test_the_source_is_the_text_at_hand() -> None:
    first = (GOLDEN / "paper_tables.yaml").read_text(encoding="utf-8").split("columns")[0]
    words = " ".join(first.replace("#", " ").split())
    assert f'"{paper().source.title}"' in words
    assert f"({paper().source})" in words


def test_one_number_stands_wherever_the_paper_repeats_it() -> None:
    tables = reported_tables()
    key = ("mapet", "vq-kd", frozenset(), "vit-b", "finetune", "top1_percent")
    assert {tables[name].numbers()[key] for name in ("table1", "table2", "table3")} == {84.4}
    ablation = (*key[:2], frozenset({("cutting_point", 60)}), *key[3:])
    assert tables["table6"].numbers()[ablation] == 84.4


TEXT = PAPER_FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("values: [74.6, 55.3, 82.0", "values: [74.6, 82.0", "one for each column"),
        ("values: [74.6,", "values: [746,", "less than or equal to 100"),
        ("{work: PeCo,", "{work: PeCo, method: mim,", "a method or a tokenizer, or the work"),
        ("{work: PeCo,", "{", "a method or a tokenizer, or the work"),
        ("{method: pim, tokenizer: vq-kd,", "{method: mim, tokenizer: vq-kd,", "the same name"),
        ("metric: top5_percent", "metric: top2_percent", "top5_percent"),
        ("views: [table6]", "views: [table66]", "is no table"),
        ("id: ratio-70", "id: transfer", "two claims"),
        ("layers, value: trunk.depth, printed: 12", "layers, value: trunk.depth", "exactly one of"),
        ("  version: 1", "  version: 1\n  version: 2", "stands twice"),
        ("  version: 1", "  versoin: 1", "source.version: Field required"),
        ("source:", "source: [", "paper.yaml"),
    ],
)  # fmt: skip
def test_anything_that_is_not_right_is_refused(old: str, new: str, said: str) -> None:
    assert TEXT.count(old) >= 1
    with pytest.raises(HarnessError, match=r"paper\.yaml: ") as refused:
        parse_paper(TEXT.replace(old, new, 1))
    assert said in str(refused.value)
