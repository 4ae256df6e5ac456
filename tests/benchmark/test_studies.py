"""Studies: values of the pre-training recipe that a view tries, and epochs of equal compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark.cli import main
from benchmark.equal_compute import equal_epochs
from benchmark.plan import Cell, make_plan, mark_modified, select
from benchmark.plan_cost import tried_values
from benchmark.record_cell import resolved_values
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.frozen import digest_of
from tests.benchmark.made_records import Lab

ROOT = Path(__file__).parent.parent.parent


def plan(*views: str, name: str = "mini", **selection: object) -> list[Cell]:
    protocol = load_protocol(name)
    return make_plan(protocol, select(protocol, views=views, **selection))  # type: ignore[arg-type]


def pretrainings(cells: list[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.stage == "pretrain"]


def test_a_value_that_is_tried_is_in_the_cell_its_slice_and_its_record() -> None:
    protocol = load_protocol("mini")
    tried = [cell for cell in pretrainings(plan("sensitivity")) if cell.pretraining]
    assert {cell.pretraining for cell in tried} == {(("peak_lr", 2e-3),), (("peak_lr", 8e-3),)}
    assert len(tried) == 10
    for cell in tried:
        resolved = resolved_values(cell, protocol)["pretraining"]
        assert resolved == {**protocol.slice("pretraining"), **dict(cell.pretraining)}
        assert dict(cell.slices)["pretraining"] == digest_of(resolved) != protocol.slices["pretraining"]


def test_the_protocols_own_value_among_those_tried_is_the_protocols_own_cell() -> None:
    own = {cell.id for cell in plan("table1", "table2")}
    for study in ("sensitivity", "equal-compute", "table6"):
        rows = {}
        for cell in pretrainings(plan(study, tokenizers=["k-feature"])):
            rows.setdefault(cell.method, []).append(cell.id in own)
        assert rows
        if study == "equal-compute":
            assert {method for method, known in rows.items() if any(known)} == {"mapet"}
        else:
            assert all(known.count(True) == 1 for known in rows.values()), study


def test_tried_cells_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By `plan` and `status`, evaluations as well as pre-trainings; a row that is alone needs no values."""
    cells = plan("table6", "sensitivity", "equal-compute")
    tried = tried_values(cells)
    names = [f"{cell.evaluation or cell.stage} {cell.row}{tried[cell.id]}" for cell in cells]
    assert len(set(names)) == len(names)
    assert set(tried_values(plan("table1")).values()) == {""}
    lab = Lab(tmp_path, methods=[], protocol=load_protocol("mini"))
    for cell in plan("sensitivity", methods=["mim"]):
        changes = {"artefacts": {}, "metrics": {}, "error": "the loss is nan"}
        lab.finish(cell, **({"status": "failed", **changes} if dict(cell.pretraining) else {}))
    words = ["status", "--protocol", "mini", "--views", "sensitivity", "--work-dir", str(tmp_path)]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f" peak_lr={rate}: the loss is nan" in shown for rate in (2e-3, 8e-3))
    assert main([*words, "--json"]) == 0
    failed = [one for one in json.loads(capsys.readouterr().out)["cells"] if one["state"] == "failed"]
    assert [one["pretraining"] for one in failed] == [{"peak_lr": 2e-3}, {"peak_lr": 8e-3}]


def test_no_study_is_modified_and_what_no_view_tries_is() -> None:
    original = load_protocol("mini")
    for rate, is_modified in (("2e-3", False), ("3e-3", True)):
        protocol = load_protocol("mini", overrides=[f"pretraining.peak_lr={rate}"])
        selection = select(protocol, methods=["mim"], tokenizers=["k-feature"], evaluations=["linear-probe"])
        cells = mark_modified(make_plan(protocol, selection), original, selection)
        assert {cell.is_modified for cell in pretrainings(cells)} == {is_modified}


@pytest.mark.parametrize("name", ["mini", "cifar"])
def test_equal_compute_is_equal_to_half_an_epoch(name: str) -> None:
    cells = pretrainings(plan("equal-compute", name=name))
    budget = {cell.tokenizer: cell.train_flops for cell in cells if cell.method == "mapet"}
    assert {cell.method for cell in cells} == {"mim", "pim", "mapet", "beit", "cae"}
    for cell in cells:
        assert cell.tokenizer is not None
        epochs = dict(cell.pretraining).get("epochs", load_protocol(name).pretraining.epochs)
        assert abs(cell.train_flops - budget[cell.tokenizer]) <= 0.5 * cell.train_flops / epochs


def test_epochs_of_another_method_are_counted_by_its_flops() -> None:
    """Methods that do the same work get the same epochs, and one that does half of it twice as many."""
    protocol = load_protocol("mini")
    chosen = {"tokenizer": "k-pixel", "trunk": "vit-mini"}
    assert equal_epochs(protocol, method="beit", reference="mim", **chosen) == protocol.pretraining.epochs
    assert equal_epochs(protocol, method="mapet", reference="mapet", **chosen) == protocol.pretraining.epochs
    cost = {cell.method: cell.train_flops for cell in pretrainings(plan("table1", "table2"))}
    expected = round(protocol.pretraining.epochs * cost["mapet"] / cost["pim"])
    assert equal_epochs(protocol, method="pim", reference="mapet", **chosen) == expected


def written(folder: Path, old: str, new: str) -> str:
    text = (ROOT / "protocols" / "mini.yaml").read_text(encoding="utf-8")
    assert old in text
    path = folder / "other.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return str(path)


def test_other_epochs_are_refused_with_those_that_are_equal(tmp_path: Path) -> None:
    path = written(tmp_path, "pretraining: {epochs: [7]}", "pretraining: {epochs: [6]}")
    protocol = load_protocol(path)
    with pytest.raises(HarnessError, match=r"spends what mapet spends in 7 epochs, not in 6; .*\[7\]"):
        make_plan(protocol, select(protocol, views=["equal-compute"]))


def test_a_method_without_tokens_has_no_equal_compute_to_one_that_has(tmp_path: Path) -> None:
    """What the latter spends depends on its codebook."""
    path = written(tmp_path, "{methods: [pim], tokenizers: [k-pixel, k-feature]", "{methods: [maskfeat]")
    protocol = load_protocol(path)
    everything = select(protocol, methods=["all-known"], views=["equal-compute"])
    with pytest.raises(HarnessError, match="maskfeat has no tokenizer, and what mapet spends depends on one"):
        make_plan(protocol, everything)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{peak_lr: [2e-3,", "{peak_rate: [2e-3,", "names 'peak_rate', which no pre-training recipe has"),
        ("{peak_lr: [2e-3,", "{peak_lr: [-1.0,", r"peak_lr: tries -1\.0: Input should be greater than 0"),
        ("{epochs: [7]}, equal_compute_to: mapet", "{epochs: [7, 8]}, equal_compute_to: mapet", "also needs"),
        ("{epochs: [7]}, equal_compute_to: mapet", "{epochs: [7]}, equal_compute_to: other", "names 'other'"),
        ("    recipe: finetune\n", "", "either cells or the recipe"),
        ("views: [table1, table2]", "views: [table1, table9]", "names 'table9', which views does not define"),
    ],
)
def test_a_view_that_cannot_be_is_refused_where_it_stands(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(HarnessError, match=message) as refused:
        load_protocol(written(tmp_path, old, new))
    assert "other.yaml:" in str(refused.value)
