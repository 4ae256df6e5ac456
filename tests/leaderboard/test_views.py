"""Which rows and columns a declared view has, what fills them, and the command for each place."""

from __future__ import annotations

import math
import shlex
import statistics
from typing import Any

import pandas as pd
import pytest

from benchmark.commands.options import Parser, add_protocol, add_selection
from benchmark.plan import Cell, make_plan
from benchmark.selection import select
from leaderboard.record import Attempt, Compliance, Record
from leaderboard.view_layout import lay_out, shown_reconstruction_ratio
from leaderboard.view_table import PLACE_COLUMNS, VERDICTS, ViewTable
from leaderboard.views import view_tables, views_sections, wide
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.schema import Protocol
from protocols.views import View, ViewCells
from tests.leaderboard.planned_records import board_of, images_of, measurable, planned_cells, planned_records

MINI = load_protocol("mini")
FAIR = load_protocol("fair300")
CELLS = {cell.id: cell for cell in planned_cells(MINI, seeds=(0, 1, 2))}


def score_of(cell: Cell) -> dict[str, float]:
    """A number of its own for every cell, the same in every run."""
    top1 = 20 + int(cell.id.rpartition("-")[2], 16) % 6000 / 100
    return {"top1_percent": top1, "top5_percent": top1 + 10}


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """Every cell of mini's views, three seeds."""
    return planned_records(MINI, CELLS.values(), score_of)


@pytest.fixture(scope="module")
def few(records: list[Record]) -> list[Record]:
    """Those of Table 1 alone."""
    return [one for one in records if "table1" in CELLS[one.cell_id].views or one.stage == "tokenise"]


@pytest.fixture(scope="module")
def filled(records: list[Record]) -> dict[str, ViewTable]:
    return tables_of(MINI, records)


def tables_of(protocol: Protocol, records: list[Record], **more: Any) -> dict[str, ViewTable]:
    return {one.name: one for one in view_tables(board_of(protocol, records, **more), protocol)}


def with_view(protocol: Protocol, **view: Any) -> Protocol:
    return protocol.model_copy(update={"views": {"one": View(title="One", **view)}})


def pretraining_of(cell: Cell) -> Cell | None:
    return next((CELLS[one] for one in cell.parents if CELLS[one].stage == "pretrain"), None)


def test_every_view_of_cells_is_a_table_in_the_protocols_order(filled: dict[str, ViewTable]) -> None:
    assert list(filled) == [name for name, view in MINI.views.items() if view.recipe is None]
    assert {
        "table1",
        "table2",
        "table3",
        "table4",
        "table5",
        "table6",
        "equal-compute",
        "sensitivity",
    } <= set(filled)
    for table in filled.values():
        assert tuple(table.frame.columns) == PLACE_COLUMNS
        assert set(table.frame["verdict"]) <= {*VERDICTS, ""}
        order = list(zip(table.frame["row"], table.frame["column"], strict=True))
        assert order == sorted(set(order))


def test_every_table_of_mini_is_filled_by_its_own_cells(filled: dict[str, ViewTable]) -> None:
    """Each place shows what its row and column say: method, tokenizer, tried values, trunk, evaluation."""
    for table in filled.values():
        for place in table.frame.to_dict(orient="records"):
            assert (place["verdict"], place["seeds"]) == ("", 3), (table.name, place["row_label"])
            cells = [CELLS[one] for one in place["cell_ids"].split("; ")]
            assert [cell.seed for cell in cells] == [0, 1, 2]
            texts = dict(zip(table.row_headers, table.rows[place["row"]], strict=True))
            values = []
            for cell in cells:
                row = (cell.method or "", cell.tokenizer or "", (cell.method and cell.trunk) or "")
                assert row == (place["method"], place["tokenizer"], place["trunk"])
                assert (cell.evaluation, table.name in cell.views) == (place["evaluation"], True)
                made_from = pretraining_of(cell)
                if made_from is not None:
                    recipe = MINI.pretraining.model_dump() | dict(made_from.pretraining)
                    used = recipe | dict(made_from.hyperparameters)
                    for header in set(texts) - {"method", "tokenizer", "reconstruction ratio"}:
                        assert texts[header] == str(used.get(header.replace(" ", "_"), "-"))
                values.append(measurable(score_of(cell)[place["metric"]], images_of(MINI, cell)))
            assert place["mean"] == pytest.approx(statistics.mean(values))
            assert place["sd"] == pytest.approx(statistics.stdev(values))
            assert place["standard_error"] == pytest.approx(place["sd"] / math.sqrt(3))
            assert [float(one.split(": ")[1]) for one in place["seed_values"].split("; ")] == pytest.approx(
                values, abs=0.005001
            )
    assert filled["table1"].columns == ("fine-tuning", "linear probe")
    assert "Trunk: ViT-mini." in filled["table1"].notes
    measured = wide(filled["table1"], "measured").iat[0, 2]
    assert measured.endswith(" (3)")
    assert " +- " in measured
    assert " ± " in wide(filled["table1"], "measured", plus_minus="±").iat[0, 2]


def test_the_equal_compute_rows_hold_the_epochs_that_they_name(filled: dict[str, ViewTable]) -> None:
    table = filled["equal-compute"]
    assert table.row_headers == ("method", "tokenizer", "epochs")
    own = str(MINI.pretraining.epochs)
    for method, _, epochs in table.rows:
        tried = {
            cells.pretraining["epochs"][0]
            for cells in MINI.views["equal-compute"].cells
            if method.lower() in cells.methods
        }
        assert {int(epochs)} == tried
    assert {epochs == own for method, _, epochs in table.rows if method == "MaPeT"} == {True}


def test_cells_that_name_one_row_share_it_and_its_label_names_what_each_of_them_tries(
    filled: dict[str, ViewTable],
) -> None:
    own = MINI.method_values("mim", "vit-mini")["mask_count"]
    label = f"MIM, k-feature, mask count {own}, peak lr {MINI.pretraining.peak_lr}"
    assert list(filled["sensitivity"].frame["row_label"]).count(label) == 1


def test_rows_and_columns_follow_from_the_cells() -> None:
    view = View(
        title="t",
        metrics=("top1_percent", "top5_percent"),
        cells=(
            ViewCells(methods=("mapet", "scratch", "mim"), tokenizers=("k-clip", "vq-kd"),
                      trunks=("vit-s", "vit-t"), evaluations=("finetune",)),
            ViewCells(methods=("mim",), tokenizers=("k-clip",), trunks=("vit-s",),
                      evaluations=("linear-probe", "finetune")),
            ViewCells(tokenizers=("dall-e",), evaluations=("token-mlp",)),
        ),
    )  # fmt: skip
    layout = lay_out(FAIR, view)
    assert [(row.tokenizer, row.method) for row in layout.rows] == [
        ("", "scratch"), ("k-clip", "mapet"), ("k-clip", "mim"), ("vq-kd", "mapet"), ("vq-kd", "mim"),
        ("dall-e", ""),
    ]  # fmt: skip
    assert [(column.trunk, column.evaluation, column.metric[:4]) for column in layout.columns] == [
        ("vit-s", "finetune", "top1"), ("vit-s", "finetune", "top5"), ("vit-s", "linear-probe", "top1"),
        ("vit-s", "linear-probe", "top5"), ("vit-t", "finetune", "top1"), ("vit-t", "finetune", "top5"),
        ("", "token-mlp", "top1"), ("", "token-mlp", "top5"),
    ]  # fmt: skip
    fed = {row: {column for fed_row, column in layout.fed if fed_row == row} for row in range(6)}
    finetuned = {0, 1, 4, 5}
    assert fed == {0: finetuned, 1: finetuned, 2: finetuned | {2, 3}, 3: finetuned, 4: finetuned, 5: {6, 7}}


def test_a_value_that_is_one_trunks_own_is_tried_on_another() -> None:
    """50 is set for ViT-T and tried on ViT-B: one row, whose places hold different variants."""
    cells = ViewCells(methods=("mapet",), tokenizers=("vq-kd",), trunks=("vit-t", "vit-b"),
                      evaluations=("finetune",), hyperparameters={"cutting_point": (50, 60)})  # fmt: skip
    protocol = with_view(FAIR, cells=(cells,))
    (table,) = view_tables(board_of(protocol, []), protocol)
    assert [row[2:] for row in table.rows] == [("50", "0.75"), ("60", "0.70")]
    variants = dict(
        zip(zip(table.frame["row"], table.frame["trunk"], strict=True), table.frame["variant"], strict=True)
    )
    assert variants == {
        (0, "vit-t"): "", (0, "vit-b"): "cutting_point 50",
        (1, "vit-t"): "cutting_point 60", (1, "vit-b"): "",
    }  # fmt: skip
    # Neither row is the protocol's own setting on both trunks: that one is a row more.
    both = with_view(FAIR, cells=(cells, cells.model_copy(update={"hyperparameters": {}})))
    assert len(lay_out(both, both.views["one"]).rows) == 3


def test_the_reconstruction_ratio_is_printed_as_the_paper_prints_it() -> None:
    printed = {30: "0.85", 40: "0.80", 50: "0.75", 60: "0.70", 98: "0.50"}
    assert {one: shown_reconstruction_ratio(one, patches=196) for one in printed} == printed


def test_numbers_of_another_setting_have_no_reported_number() -> None:
    cells = {
        "methods": ("mapet",),
        "tokenizers": ("vq-kd",),
        "trunks": ("vit-b",),
        "evaluations": ("finetune",),
    }
    tried = (ViewCells(**cells, pretraining={"peak_lr": (1.5e-3, 1e-3)}),)
    protocol = with_view(FAIR, cells=tried, reported="table1")
    (table,) = view_tables(board_of(protocol, []), protocol)
    assert [row[2] for row in table.rows] == ["0.0015", "0.001"]
    assert table.frame["reported"].fillna(-1).tolist() == [84.4, -1]


def test_a_view_that_names_no_table_of_the_paper_is_refused() -> None:
    cells = (ViewCells(tokenizers=("vq-kd",), evaluations=("token-mlp",)),)
    protocol = with_view(FAIR, cells=cells, reported="table44")
    with pytest.raises(HarnessError, match=r"view one .* 'table44', which leaderboard/paper.yaml.*table4"):
        view_tables(board_of(protocol, []), protocol)


@pytest.fixture(scope="module")
def empty() -> dict[str, dict[str, ViewTable]]:
    return {protocol.name: tables_of(protocol, []) for protocol in (MINI, FAIR)}


@pytest.mark.parametrize("protocol", [MINI, FAIR], ids=lambda one: one.name)
def test_the_command_of_a_missing_place_runs_its_cell(
    empty: dict[str, dict[str, ViewTable]], protocol: Protocol
) -> None:
    """Each command, read as the command line reads it, plans that evaluation, and no other row or column."""
    seen: dict[str, dict[str, Any]] = {}
    for table in empty[protocol.name].values():
        for place in table.frame[table.frame["is_ours"]].to_dict(orient="records"):
            assert place["verdict"] == "missing"
            seen[place["command"]] = place
    # Each command on its own is one view's; every third is enough of them.
    for command, place in [*seen.items()][::3]:
        planned = [cell for cell in planned_by(command, protocol) if cell.evaluation]
        named = {(cell.method or "", cell.tokenizer or "", cell.evaluation, cell.seed) for cell in planned}
        assert named == {(place["method"], place["tokenizer"], place["evaluation"], 0)}
        assert {cell.trunk if cell.method else "" for cell in planned} == {place["trunk"]}


@pytest.mark.parametrize("protocol", [MINI, FAIR], ids=lambda one: one.name)
def test_the_commands_of_a_tables_note_run_all_that_is_missing(
    empty: dict[str, dict[str, ViewTable]], protocol: Protocol
) -> None:
    for name, table in empty[protocol.name].items():
        (note,) = [note for note in table.notes if "missing" in note]
        ours = int(table.frame["is_ours"].sum())
        assert note.startswith(f"{ours} of {ours} places are missing; filled by: ")
        planned = {
            cell.id
            for command in note.partition("filled by: ")[2].split(" && ")
            for cell in planned_by(command, protocol)
        }
        assert planned == {cell.id for cell in make_plan(protocol, select(protocol, views=[name]))}


def planned_by(command: str, protocol: Protocol) -> list[Cell]:
    words = shlex.split(command)
    assert words[:2] == ["python", "run_benchmark.py"]
    parser = Parser(prog="run", description="")
    add_protocol(parser)
    add_selection(parser)
    options = parser.parse_args(words[2:])
    assert options.protocol == protocol.name
    names = {
        kind: getattr(options, kind) for kind in ("methods", "tokenizers", "trunks", "evaluations", "views")
    }
    return make_plan(protocol, select(protocol, seeds=map(int, options.seeds), **names))


def test_a_seed_that_is_missing_leaves_the_mean_of_the_others(few: list[Record]) -> None:
    left = [one for one in few if one.seed != 2 or one.stage != "finetune"]
    place = tables_of(MINI, left)["table1"].place(0, 0)
    assert (place["seeds"], place["verdict"]) == (2, "")
    assert place["command"].endswith("--seeds 0 1")
    one_seed = [one for one in few if not one.seed]
    place = tables_of(MINI, one_seed)["table1"].place(0, 0)
    assert place["seeds"] == 1
    assert math.isnan(place["sd"])
    assert math.isnan(place["standard_error"])


@pytest.mark.parametrize("stage", ["finetune", "pretrain", "tokenise"])
def test_what_has_failed_is_missing_and_its_command_tries_again(few: list[Record], stage: str) -> None:
    made = {"method": "mim", "tokenizer": "k-pixel"}

    def is_hit(one: Record) -> bool:
        cell = CELLS[one.cell_id]
        return cell.stage == stage and cell.tokenizer == "k-pixel" and cell.part is None and (
            stage == "tokenise" or (cell.method == "mim" and not cell.pretraining)
        )  # fmt: skip

    failed = [
        one.model_copy(update={"status": "failed", "error": "no memory", "metrics": {}})
        if is_hit(one)
        else one
        for one in few
        # What was to be made from it was never made.
        if is_hit(one) or stage == "finetune" or not one.method or one.method.name != "mim"
    ]
    table = tables_of(MINI, failed)["table1"]
    place = table.frame[(table.frame[list(made)] == pd.Series(made)).all(axis=1)].iloc[0]
    assert place["verdict"] == "missing"
    assert place["command"].endswith("--seeds 0 --redo-failed")
    assert any(note.endswith("--redo-failed") for note in table.notes)
    other = table.frame[(table.frame["method"] == "mapet") & (table.frame["tokenizer"] == "k-feature")]
    assert not any("--redo" in command for command in other["command"])


def test_of_two_stale_runs_of_a_seed_the_newest_is_shown(few: list[Record]) -> None:
    old = next(one for one in few if one.stage == "finetune" and one.method and one.method.name == "mim")
    later = Attempt(started="2026-03-01T00:00:00Z", ended="2026-03-02T00:00:00Z", outcome="done")
    value = old.metrics["top1_percent"].model_copy(update={"value": 12.5})
    new = old.model_copy(
        update={"cell_id": "again", "attempts": (later,), "metrics": {"top1_percent": value}}
    )
    tables = tables_of(MINI, [*few, new], sources={"method:mim": "newer"})
    frame = tables["table1"].frame
    place = frame[(frame["method"] == "mim") & (frame["evaluation"] == "finetune")
                  & (frame["tokenizer"] == old.tokenizer.name)].iloc[0]  # type: ignore[union-attr]  # fmt: skip
    assert place["verdict"] == "stale"
    assert f"{old.seed}: 12.50" in place["seed_values"].split("; ")
    assert len(place["seed_values"].split("; ")) == 3


def test_what_another_protocol_version_measured_fills_nothing(few: list[Record]) -> None:
    def moved(one: Record) -> Record:
        slices = {**one.protocol.slices, "pretraining": "other"} if one.stage == "pretrain" else None
        return (
            one.model_copy(update={"protocol": one.protocol.model_copy(update={"slices": slices})})
            if slices
            else one
        )

    table = tables_of(MINI, [moved(one) for one in few])["table1"]
    assert set(table.frame["verdict"]) == {"missing"}


def test_places_side_by_side_are_as_many_as_fit(filled: dict[str, ViewTable]) -> None:
    for section in views_sections(list(filled.values())):
        shown: list[str] = []
        names = len(filled[section.name].row_headers)
        for block in section.blocks:
            header = [one.name for one in block.grid.columns]
            shown += header[names:]
            texts = [header, *map(list, block.grid.rows)]
            widths = [max(len(row[index]) for row in texts) for index in range(len(header))]
            assert sum(widths) + 2 * len(widths) <= 80 or len(header) == names + 1
        assert tuple(shown) == filled[section.name].columns
    assert len(next(one for one in views_sections(list(filled.values())) if one.name == "table1").blocks) == 1


def changed_row(few: list[Record], **update: Any) -> list[Record]:
    """`few` with every pre-training of MIM on k-pixel changed."""

    def is_hit(one: Record) -> bool:
        cell = CELLS[one.cell_id]
        return (cell.stage, cell.method, cell.tokenizer) == ("pretrain", "mim", "k-pixel")

    assert sum(map(is_hit, few)) == 3
    return [one.model_copy(update=update) if is_hit(one) else one for one in few]


def test_what_is_stale_and_modified_is_modified(few: list[Record]) -> None:
    """A new run of the code alone would not make it the protocol's: the command does not offer that."""
    compliance = Compliance(status="modified", deviations=("pretraining.epochs=1",))
    records = changed_row(few, compliance=compliance)
    place = tables_of(MINI, records, sources={"method:mim": "newer"})["table1"].place(0, 0)
    assert place["verdict"] == "modified"
    assert place["command"].endswith("--seeds 0")


def test_what_is_stale_and_of_another_protocol_version_fills_nothing(few: list[Record]) -> None:
    protocol = few[-1].protocol.model_copy(update={"slices": {"pretraining": "other"}})
    table = tables_of(MINI, changed_row(few, protocol=protocol), sources={"method:mim": "newer"})["table1"]
    assert table.place(0, 0)["verdict"] == "missing"
    assert table.place(3, 0)["verdict"] == "stale"


def test_a_whole_number_in_a_view_finds_the_decimal_that_ran() -> None:
    cells = ViewCells(methods=("cae",), tokenizers=("k-pixel",), trunks=("vit-mini",),
                      evaluations=("finetune",), hyperparameters={"alignment_weight": (1, 3)})  # fmt: skip
    protocol = with_view(MINI, cells=(cells,))
    protocol = protocol.model_copy(update={"defaults": protocol.defaults.model_copy(update={"views": None})})
    planned = planned_cells(protocol)
    tried = [dict(cell.hyperparameters)["alignment_weight"] for cell in planned if cell.stage == "pretrain"]
    assert list(map(repr, tried)) == ["1.0", "3.0"]
    (table,) = view_tables(board_of(protocol, planned_records(protocol, planned, score_of)), protocol)
    assert table.row_headers[-1] == "alignment weight"
    assert list(table.frame["verdict"]) == ["", ""]
    assert list(table.frame["variant"]) == ["alignment_weight 1.0", "alignment_weight 3.0"]


@pytest.mark.parametrize(("length", "blocks"), [(22, 1), (23, 2)])
def test_the_blanks_between_columns_take_room_too(length: int, blocks: int) -> None:
    """Three columns and a name of five characters, each with two blanks: 79 of 80 characters, and 82."""
    labels = tuple(one * length for one in "abc")
    table = ViewTable(name="one", title="One", row_headers=("row12",), rows=(("x",),), columns=labels,
                      frame=pd.DataFrame(columns=PLACE_COLUMNS))  # fmt: skip
    (section,) = views_sections([table])
    assert len(section.blocks) == blocks
