"""Records that hold the paper's own numbers give the paper's tables, cell by cell; a changed one its verdict.

Measured numbers come from the golden transcript of the tables, reported ones from paper.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from benchmark.plan import Cell
from leaderboard.record import Compliance, Metric, Record
from leaderboard.view_table import ViewTable
from leaderboard.views import view_tables, views_sections, wide
from protocols import load_protocol
from tests.leaderboard.planned_records import board_of, images_of, planned_cells, planned_records

GOLDEN = Path(__file__).parent.parent / "golden" / "paper_tables.yaml"
PAPER: dict[str, Any] = yaml.safe_load(GOLDEN.read_text(encoding="utf-8"))
METHODS = {"MIM": "mim", "PIM": "pim", "MaPeT": "mapet", "BEiT": "beit", "CAE": "cae", "ViT": "scratch"}
TOKENIZERS = {"VQ-KD": "vq-kd", "k-CLIP": "k-clip", "DALL-E": "dall-e", None: None}
EVALUATIONS = {"top1": "finetune", "linear": "linear-probe"}
TRANSFER = {"Stanford-Cars": "stanford-cars", "Food-101": "food-101", "FGVC-Aircraft": "fgvc-aircraft"}
TOKEN_CLASSIFIERS = {"MLP": "token-mlp", "ViT-T": "token-vit-t"}
PROTOCOL = load_protocol("fair300")
SHARED = ("mapet", "vq-kd", "vit-b", "finetune")
Key = tuple[str | None, str | None, str | None, str, Any]


def numbers_of_the_paper() -> dict[Key, dict[str, float]]:
    """(method, tokenizer, trunk, evaluation, cutting point that Table 6 tries) -> metrics in per cent."""
    numbers: dict[Key, dict[str, float]] = {}

    def add(key: Key, value: float | None, metric: str = "top1_percent") -> None:
        if value is not None:
            assert numbers.setdefault(key, {}).setdefault(metric, value) == value, key

    for name in ("table1", "table2"):
        for row in PAPER[name]["rows"]:
            for column, value in zip(PAPER[name]["columns"], row["values"], strict=True):
                size, what = column.split()
                key = (METHODS[row["method"]], TOKENIZERS[row["tokenizer"]], size.lower(), EVALUATIONS[what])
                add((*key, None), value)
    for row in PAPER["table4"]["rows"]:
        for column, value in zip(PAPER["table4"]["columns"], row["values"], strict=True):
            classifier, what = column.split()
            key = (None, TOKENIZERS[row["tokenizer"]], None, TOKEN_CLASSIFIERS[classifier], None)
            add(key, value, f"{what}_percent")
    for row in PAPER["table5"]["rows"]:
        for column, value in zip(PAPER["table5"]["columns"], row["values"], strict=True):
            add(
                (METHODS[row["method"]], TOKENIZERS[row["tokenizer"]], "vit-b", TRANSFER[column], None), value
            )
    for row in PAPER["table6"]["rows"]:
        cutting_point, _, value = row["values"]
        # The protocol's own on this trunk: Tables 1 to 3 hold it too, and must hold the same number.
        add((*SHARED, None if cutting_point == 60 else cutting_point), value)
    return numbers


CELLS = {cell.id: cell for cell in planned_cells(PROTOCOL, methods=["all"])}
NUMBERS = numbers_of_the_paper()


def key_of(cell: Cell) -> Key:
    made_from = next((CELLS[one] for one in cell.parents if CELLS[one].stage == "pretrain"), None)
    tried = dict(made_from.hyperparameters).get("cutting_point") if made_from else None
    own = dict(PROTOCOL.method_values(cell.method, cell.trunk)) if cell.method and cell.trunk else {}
    trunk = cell.trunk if cell.method else None
    other = tried if tried != own.get("cutting_point") else None
    return (cell.method, cell.tokenizer, trunk, cell.evaluation or "", other)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """The paper's numbers as records of fair300's cells, one seed."""
    return planned_records(PROTOCOL, CELLS.values(), lambda cell: NUMBERS.get(key_of(cell), {}))


@pytest.fixture(scope="module")
def tables(records: list[Record]) -> dict[str, ViewTable]:
    return tables_of(records)


def tables_of(records: Sequence[Record], **more: Any) -> dict[str, ViewTable]:
    return {one.name: one for one in view_tables(board_of(PROTOCOL, records, **more), PROTOCOL)}


def changed(records: Sequence[Record], cell: Record, **update: Any) -> list[Record]:
    return [one.model_copy(update=update) if one is cell else one for one in records]


def record_of(records: Sequence[Record], *key: Any) -> Record:
    (found,) = [one for one in records if key_of(CELLS[one.cell_id]) == key]
    return found


def verdicts(tables: Mapping[str, ViewTable]) -> pd.Series:
    """By table, row and column."""
    frames = pd.concat({name: table.frame for name, table in tables.items()}, names=["table"])
    return frames.reset_index("table").set_index(["table", "row_label", "column_label"])["verdict"]


def test_every_number_of_the_paper_has_a_cell(records: list[Record]) -> None:
    measured = {key_of(CELLS[one.cell_id]) for one in records if CELLS[one.cell_id].evaluation}
    assert measured == set(NUMBERS)
    printed = [value for table in PAPER.values() for row in table["rows"] for value in row["values"]]
    # What other works report (9) and Table 6's cutting points and ratios (10) are measured by no cell.
    assert len([value for value in printed if value is not None]) - 9 - 10 == sum(
        len(table.frame[table.frame["mean"].notna()]) for table in tables_of(records).values()
    )


@pytest.mark.parametrize("name", ["table1", "table2", "table4", "table5"])
def test_a_table_cell_by_cell(tables: dict[str, ViewTable], name: str) -> None:
    table, printed = tables[name], PAPER[name]
    reads = {"ViT": "scratch", None: "-"}
    names = [[row.get("method"), row["tokenizer"]][name == "table4" :] for row in printed["rows"]]
    assert [list(row) for row in table.rows] == [[reads.get(one, one) for one in row] for row in names]
    assert_cells(table, [row["values"] for row in printed["rows"]])


def test_the_other_works_stand_as_reported_and_ours_are_measured(tables: dict[str, ViewTable]) -> None:
    table, rows = tables["table3"], PAPER["table3"]["rows"]
    others = [row for row in rows if "(" not in row["method"]]
    assert list(table.rows) == [
        *((f"{row['method']}, as reported", "-", "300") for row in others),
        ("MaPeT", "k-CLIP", "300"),
        ("MaPeT", "VQ-KD", "300"),
    ]
    assert_cells(table, [row["values"] for row in rows], others=len(others))
    theirs = table.frame[~table.frame["is_ours"]]
    assert len(theirs) == 9
    assert theirs["mean"].isna().all()
    assert set(theirs["verdict"]) == set(theirs["command"]) == {""}
    assert any("under other settings: not compared" in note for note in table.notes)
    assert any("800 and 1600 epochs is lost" in note for note in table.notes)


def test_the_ablation_shows_cutting_point_and_reconstruction_ratio(tables: dict[str, ViewTable]) -> None:
    table, rows = tables["table6"], [row["values"] for row in PAPER["table6"]["rows"]]
    assert table.row_headers == ("method", "tokenizer", "cutting point", "reconstruction ratio")
    assert list(table.rows) == [
        ("MaPeT", "VQ-KD", str(cutting_point), f"{ratio:.2f}") for cutting_point, ratio, _ in rows
    ]
    assert_cells(table, [[value] for _, _, value in rows])


def assert_cells(table: ViewTable, values: Sequence[Sequence[float | None]], *, others: int = 0) -> None:
    """Every cell of every form; the first `others` rows are reported alone."""
    shown = {show: wide(table, show) for show in ("measured", "reported", "difference", "verdict")}  # type: ignore[arg-type]
    for frame in shown.values():
        assert list(frame.columns) == [*table.row_headers, *table.columns]
        assert [tuple(row) for row in frame[list(table.row_headers)].to_numpy()] == list(table.rows)
    assert len(values) == len(table.rows)
    for row, expected in enumerate(values):
        assert len(expected) == len(table.columns)
        for column, value in enumerate(expected):
            cell = {show: frame.iat[row, len(table.row_headers) + column] for show, frame in shown.items()}
            if value is None:
                assert set(cell.values()) == {"-"}
                with pytest.raises(KeyError):
                    table.place(row, column)
                continue
            place = table.place(row, column)
            assert place["reported"] == value
            assert cell["reported"] == f"{value:.1f}"
            if row < others:
                assert (cell["measured"], cell["difference"], cell["verdict"]) == ("-", "-", "-")
                continue
            # No closer than one image of the test set.
            assert place["mean"] == pytest.approx(value, abs=100 / place["images"])
            assert f"{place['mean']:.1f}" == f"{value:.1f}"
            assert cell["measured"] == f"{place['mean']:.2f} (1)"
            assert cell["difference"] in ("0.00", "+0.01", "-0.01")
            assert cell["verdict"] == place["verdict"] == "reproduced"


def test_each_number_is_of_the_images_that_it_was_measured_on(tables: dict[str, ViewTable]) -> None:
    by_evaluation = {
        evaluation: set(places["images"])
        for table in tables.values()
        for evaluation, places in table.frame[table.frame["mean"].notna()].groupby("evaluation")
    }
    for cell in CELLS.values():
        if cell.evaluation and cell.evaluation != "knn":
            assert by_evaluation[cell.evaluation] == {images_of(PROTOCOL, cell)}
    assert by_evaluation["food-101"] == {25250}


@pytest.mark.parametrize(
    ("top1", "said"),
    [(84.4, "reproduced"), (84.7, "reproduced"), (84.702, "off"), (84.098, "off"), (0.0, "off")],
)
def test_an_altered_cell_turns_exactly_its_places(
    records: list[Record], tables: dict[str, ViewTable], top1: float, said: str
) -> None:
    cell = record_of(records, *SHARED, None)
    measured = {"top1_percent": Metric(value=top1, n=50000, unit="%")}
    before, after = verdicts(tables), verdicts(tables_of(changed(records, cell, metrics=measured)))
    turned = before[before != after]
    places = {
        ("table1", "MaPeT, VQ-KD", "ViT-B fine-tuning"), ("table2", "MaPeT, VQ-KD", "ViT-B fine-tuning"),
        ("table3", "MaPeT, VQ-KD", "ViT-B fine-tuning"),
        ("table6", "MaPeT, VQ-KD, cutting point 60", "fine-tuning"),
    }  # fmt: skip
    assert set(turned.index) == (places if said == "off" else set())
    assert set(after[turned.index]) <= {"off"}


@pytest.mark.parametrize("name", [None, 30])
def test_a_variant_and_the_protocols_own_setting_do_not_share_a_number(
    records: list[Record], tables: dict[str, ViewTable], name: int | None
) -> None:
    cell = record_of(records, *SHARED, name)
    before, after = verdicts(tables), verdicts(tables_of([one for one in records if one is not cell]))
    lost = before[before != after].index
    assert len(lost) == (4 if name is None else 1)
    assert set(after[lost]) == {"missing"}


def test_every_cell_turns_its_own_place_and_no_other(records: list[Record]) -> None:
    """Each thirtieth cell in turn: the places that change are those of its row, trunk and evaluation."""
    full = tables_of(records)
    for cell in [one for one in records if CELLS[one.cell_id].evaluation][::30]:
        method, tokenizer, trunk, evaluation, _ = key_of(CELLS[cell.cell_id])
        without = tables_of([one for one in records if one is not cell])
        turned = 0
        for name, table in full.items():
            gone = table.frame[table.frame["verdict"] != without[name].frame["verdict"]]
            turned += len(gone)
            for column, value in (("method", method), ("tokenizer", tokenizer), ("trunk", trunk)):
                assert set(gone[column]) <= {value or ""}
            assert set(gone["evaluation"]) <= {evaluation}
        assert turned


def test_what_was_modified_is_shown_and_compared_with_nothing(records: list[Record]) -> None:
    cell = record_of(records, *SHARED, None)
    compliance = Compliance(status="modified", deviations=("evaluations.finetune.epochs=1",))
    tables = tables_of(changed(records, cell, compliance=compliance))
    place = tables["table1"].place(2, 4)
    assert place["verdict"] == "modified"
    assert pd.isna(place["mean"])
    assert pd.isna(place["difference"])
    assert (place["seed_values"], place["cell_ids"], place["seeds"]) == ("0: 84.40", "", 0)
    assert wide(tables["table1"], "measured").iat[2, 6] == "modified: 84.40"
    assert 2 not in tables["table1"].measured_rows(4)
    assert any("1 of 36 places is modified" in note for note in tables["table1"].notes)


def test_what_other_code_made_is_stale_and_a_clean_cell_counts_before_it(records: list[Record]) -> None:
    stale = tables_of(records, sources={"method:mapet": "newer"})
    for name, count in (("table1", 12), ("table2", 12), ("table3", 4), ("table5", 3), ("table6", 5)):
        said = stale[name].frame.groupby("verdict")["method"].agg(set)
        assert said["stale"] == {"mapet"}
        assert (stale[name].frame["verdict"] == "stale").sum() == count
    place = stale["table6"].place(0, 0)
    assert place["seed_values"] == "0: 84.20"
    assert place["command"].endswith("--evaluations finetune --seeds 0 --redo-stale")
    assert wide(stale["table6"], "measured").iat[0, 4] == "stale: 84.20"
    (fill,) = [note for note in stale["table6"].notes if "stale" in note]
    assert fill.endswith(place["command"])


def test_blocks_stand_side_by_side_within_a_terminal(tables: dict[str, ViewTable]) -> None:
    sections = {section.name: section for section in views_sections(list(tables.values()))}
    assert list(sections) == list(tables)
    first = sections["table1"].blocks[0]
    assert first.caption == "ViT-T fine-tuning"
    assert [one.name for one in first.grid.columns] == [
        "method", "tokenizer", "measured", "reported", "difference", "verdict",
    ]  # fmt: skip
    assert first.grid.rows[0] == ("MIM", "VQ-KD", "74.60 (1)", "74.6", "0.00", "reproduced")
    assert [len(section.blocks) for section in sections.values()] == [6, 6, 2, 4, 3, 1, 1]
    for name, section in sections.items():
        held = sum(len(block.frame) for block in section.blocks)
        assert held == len(tables[name].frame)
        for block in section.blocks:
            widths = [max(map(len, column)) for column in zip(*block.grid.rows, strict=True)]
            assert sum(widths) + 2 * len(widths) <= 80
            assert not block.red


def test_what_is_off_is_red(records: list[Record]) -> None:
    cell = record_of(records, *SHARED, None)
    measured = {"top1_percent": Metric(value=80.0, n=50000, unit="%")}
    tables = tables_of(changed(records, cell, metrics=measured))
    (block,) = next(one for one in views_sections(list(tables.values())) if one.name == "table6").blocks
    assert block.red == {(3, 7)}
    assert block.grid.rows[3][4:] == ("80.00 (1)", "84.4", "-4.40", "off")
