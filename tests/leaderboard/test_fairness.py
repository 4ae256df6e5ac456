"""The fairness proof: what counts as a difference, who is left out, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from leaderboard.fairness import left_out, prove, unlike
from leaderboard.fairness_record import EVALUATION, HELD, METHOD, RESULTS, SHOWN, TOKENIZER, RecordReader
from leaderboard.fairness_section import fairness_section
from leaderboard.lineage import PRETRAIN, TOKENISE
from leaderboard.record import Compliance, Git, Record
from leaderboard.settings import Settings
from leaderboard.tables import Board, build_board
from protocols import load_protocol
from protocols.frozen import digest_of
from tests.leaderboard.fairness_tables import table_of
from tests.leaderboard.whole_campaign import campaign_records

MINI = load_protocol("mini")
ROWS = ("scratch", "mim, k-pixel", "pim, k-pixel", "mim, k-feature", "pim, k-feature")
RECORDS = [
    record
    for record in campaign_records(
        MINI, seeds=(0, 1), views=["none"], evaluations=["finetune", "linear-probe"]
    )
    if not record.method or record.method.name in ("scratch", "mim", "pim")
]
STUDY = list(campaign_records(MINI, views=["sensitivity"]))


def board_of(records: Iterable[Record]) -> Board:
    return build_board(
        list(records), lambda record: None, slices=MINI.slices, settings=Settings.of(MINI),
        methods=MINI.names("methods"), tokenizers=MINI.names("tokenizers"),
    )  # fmt: skip


def with_changes(change: Callable[[Record], dict[str, Any]], **where: Any) -> list[Record]:
    """RECORDS, those that `where` describes changed, their children told of it."""
    return [
        record.model_copy(update=change(record)) if _is(record, **where) else record for record in RECORDS
    ]


def _is(
    record: Record, *, stage: str, method: str = "mim", tokenizer: str = "k-feature", seed: int = 0
) -> bool:
    names = (record.method.name if record.method else "", record.tokenizer.name if record.tokenizer else "")
    return record.stage == stage and record.seed in (seed, None) and names == (method, tokenizer)


def test_values_are_read_in_one_order() -> None:
    """In every process, or the same records would make tables of other bytes."""
    assert {tuple(scope.kind for scope in RecordReader().read(record).held) for record in RECORDS} == {
        (TOKENISE, TOKENIZER), (PRETRAIN, METHOD, TOKENIZER),
        (EVALUATION, METHOD), (EVALUATION, TOKENIZER, METHOD),
    }  # fmt: skip


def shown_of(records: Iterable[Record]) -> tuple[Any, frozenset[tuple[str, int]]]:
    """The section over one table of all records, and who is left out."""
    board = board_of(records)
    table = table_of(board.cells)
    section = fairness_section([table], board)
    assert section is not None
    return section, left_out(prove([table], board))


def test_every_field_of_a_record_is_held_shown_or_a_result() -> None:
    assert set(Record.model_fields) == HELD | SHOWN | RESULTS
    assert len(HELD) + len(SHOWN) + len(RESULTS) == len(Record.model_fields)


def test_rows_of_one_protocol_differ_in_what_they_declare() -> None:
    section, out = shown_of(RECORDS)
    assert not out
    assert not section.alerts
    (block,) = section.blocks
    assert not block.red
    assert block.caption == (
        "A table. These 5 rows differ only in: method, its declared hyperparameters (cutting_point, "
        "mask_count), tokenizer (image_size, model, patch_size, whitening_epsilon)."
    )
    lines = {row[0]: row[1:] for row in block.grid.rows}
    assert lines["hyperparameters.mask_count"] == (
        "declared", "25: mim, k-pixel / mim, k-feature", "not set: scratch / pim, k-pixel / pim, k-feature"
    )  # fmt: skip
    assert lines["pretraining: 14 values"] == ("equal", "all", "-")
    equal = block.frame[block.frame["kind"] == "equal"].set_index("field")
    assert equal.loc["pretraining.peak_lr", "value"] == "0.004"
    assert equal.loc["data.mean (pretrain)", "value"] == "[0.286,0.286,0.286]"


def test_nothing_measured_gives_no_section() -> None:
    board = board_of(one for one in RECORDS if one.stage in ("tokenise", "pretrain"))
    assert fairness_section([table_of(board.cells)], board) is None


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (lambda one: {"data_set": one.data_set.model_copy(update={"digest": "other"})}, "finetune"),
        (lambda one: {"data_set": one.data_set.model_copy(update={"n": 7})}, "pretrain"),
        (lambda one: {"data_set": one.data_set.model_copy(update={"part": "validation"})}, "linear-probe"),
        (lambda one: {"trunk": "vit-big"}, "pretrain"),
        (lambda one: {"seed": 5}, "pretrain"),
        (lambda one: {"method": one.method.model_copy(update={"source_digest": "x"})}, "pretrain"),
        (lambda one: {"tokenizer": one.tokenizer.model_copy(update={"digest": "x"})}, "pretrain"),
        (lambda one: {"tokenizer": one.tokenizer.model_copy(update={"teacher": "labels"})}, "finetune"),
        (lambda one: {"compliance": Compliance(status="modified", deviations=("a=1",))}, "pretrain"),
        (lambda one: {"compliance": Compliance(status="imported")}, "finetune"),
        (lambda one: {"artefacts": {"weights": "others"}}, "pretrain"),
        (lambda one: {"status": "failed"}, "pretrain"),
        (lambda one: {"parents": {}}, "pretrain"),
        (lambda one: {"parents": {}}, "finetune"),
        (lambda one: {"metrics": {"top1_percent": one.metrics["top1_percent"].model_copy(update={"n": 999})}},
         "linear-probe"),
        (lambda one: {"resolved": {**one.resolved, "extra": {"a": 1}}}, "finetune"),
        (lambda one: {"resolved": {k: v for k, v in one.resolved.items() if k != "data"}}, "finetune"),
        (lambda one: {"resolved": {**one.resolved, "hyperparameters": {"mask_count": 9}}}, "finetune"),
    ],
)  # fmt: skip
def test_what_else_a_record_states_is_held_too(change: Any, stage: str) -> None:
    section, out = shown_of(with_changes(change, stage=stage))
    assert out == {("table1", ROWS.index("mim, k-feature"))}
    (alert,) = section.alerts
    assert alert.startswith("A table: mim, k-feature is compared with no other row: ")


@pytest.mark.parametrize(
    "change",
    [
        lambda one: {"runtime": {**one.runtime, "precision": "bf16"}},
        lambda one: {"environment": {**one.environment, "package-3": "9"}},
        lambda one: {"git": Git(commit="d" * 40, dirty=True)},
        lambda one: {"cost": one.cost.model_copy(update={"device": "another processor"})},
        lambda one: {"protocol": one.protocol.model_copy(update={"version": 7})},
    ],
)
def test_what_no_protocol_holds_is_shown_and_takes_nobody_out(change: Any) -> None:
    section, out = shown_of(with_changes(change, stage="pretrain"))
    assert not out
    assert not section.alerts
    (line,) = [row for row in section.blocks[0].grid.rows if row[1] == "not held"]
    assert line[0].endswith("(pretrain)")
    assert line[2].endswith(": mim, k-pixel / pim, k-pixel / pim, k-feature")
    # Seed 1 of the row was run as the others were.
    assert " and " in line[3]
    assert line[3].endswith(": mim, k-feature")


def test_how_many_cells_ran_at_once_is_not_even_shown() -> None:
    section, _ = shown_of(with_changes(lambda one: {"runtime": {**one.runtime, "jobs": 8}}, stage="pretrain"))
    assert "not held" not in {row[1] for row in section.blocks[0].grid.rows}


def test_seeds_that_some_rows_lack_are_shown() -> None:
    lacking = [
        one for one in RECORDS
        if not (one.seed == 1 and one.stage == "finetune" and one.method and one.method.name == "pim")
    ]  # fmt: skip
    section, out = shown_of(lacking)
    assert not out
    (line,) = [
        row for row in section.blocks[0].grid.rows if row[0].startswith("seeds") and "0: pim" in row[3]
    ]
    assert line[1:3] == ("not held", "0, 1: scratch / mim, k-pixel / mim, k-feature")


def test_seeds_of_a_row_that_differ_take_it_out() -> None:
    """Both rows' values are the protocol's own to their digests: no slice says anything."""
    records = with_changes(
        lambda one: {"data_set": one.data_set.model_copy(update={"digest": "other"})},
        stage="finetune",
        seed=1,
    )
    section, out = shown_of(records)
    assert out == {("table1", 3)}
    assert "its seeds differ in data_set.digest (evaluation): " in section.alerts[0]
    assert section.blocks[0].caption.startswith("A table. These 4 rows differ only in: ")


def test_the_largest_set_of_like_rows_stays_and_of_equals_the_one_highest_up() -> None:
    def odd(rows: Iterable[int]) -> frozenset[int]:
        changed = [
            replace(run, record=run.record.model_copy(
                update={"data_set": run.record.data_set.model_copy(update={"digest": "other"})}
            )) if index in rows else run
            for index, run in enumerate(runs)
        ]  # fmt: skip
        return unlike([[run] for run in changed])

    runs = [run for run in board_of(RECORDS).cells if run.evaluation == "finetune" and run.record.seed == 0][
        :4
    ]
    assert len(runs) == 4
    assert odd([]) == set()
    assert odd([0]) == {0}
    assert odd([1, 2, 3]) == {0}
    assert odd([0, 1]) == {2, 3}
    assert unlike([]) == set()
    assert unlike([[], [runs[0]]]) == set()


def test_a_record_behind_a_row_that_is_missing_takes_the_row_out() -> None:
    lost = [one for one in RECORDS if not _is(one, stage="pretrain")]
    section, out = shown_of(lost)
    assert out == {("table1", 3)}
    assert "is not here" in section.alerts[0]


def test_a_place_whose_record_was_not_read_is_left_out() -> None:
    board = board_of(RECORDS)
    table = table_of(board.cells)
    table.frame.loc[table.frame["row"] == 1, "cell_ids"] = "no-such-cell"
    section = fairness_section([table], board)
    assert section is not None
    assert section.alerts == (
        "A table: mim, k-pixel is compared with no other row: no record of no-such-cell was read.",
    )


def test_a_value_under_its_old_digest_is_red() -> None:
    def lie(one: Record) -> dict[str, Any]:
        return {"resolved": {**one.resolved, "pretraining": {**one.resolved["pretraining"], "epochs": 50}}}

    section, out = shown_of(with_changes(lie, stage="pretrain"))
    assert out == {("table1", 3)}
    assert "contradicts itself: its values of pretraining have the digest" in section.alerts[0]
    (block,) = section.blocks
    (line,) = {row for row, _ in block.red}
    others = "5: mim, k-pixel / pim, k-pixel / pim, k-feature"
    assert block.grid.rows[line] == ("pretraining.epochs", "UNFAIR", others, "50: mim, k-feature")
    assert block.red == {(line, column) for column in range(4)}


def test_values_that_a_view_tries_are_declared_by_the_rows_name() -> None:
    board = board_of(STUDY)
    rows = [run for run in board.cells if run.is_evaluation]
    assert {run.standing for run in rows} == {"board"}
    assert any("peak_lr" in run.key.variant for run in rows)
    table = table_of(rows)
    section = fairness_section([table], board)
    assert section is not None
    assert not section.alerts
    assert "pretraining (peak_lr)" in section.blocks[0].caption
    # A row that is called by another value than its records have is left out.
    lying = next(run for run in rows if "peak_lr" in run.key.variant)
    renamed = replace(lying, key=lying.key._replace(variant="peak_lr 77"))
    assert unlike([[renamed if run is lying else run] for run in rows]) == {rows.index(lying)}
    # And one that differs in what its name does not say.
    recipe = lying.pretraining
    assert recipe is not None
    values = {**recipe.resolved["pretraining"], "epochs": 50}
    use = recipe.protocol.model_copy(
        update={"slices": {**recipe.protocol.slices, "pretraining": digest_of(values)}}
    )
    odd = recipe.model_copy(update={"resolved": {**recipe.resolved, "pretraining": values}, "protocol": use})
    others = tuple(odd if one is recipe else one for one in lying.ancestors)
    worse = replace(lying, ancestors=others)
    assert unlike([[worse if run is lying else run] for run in rows]) == {rows.index(lying)}


def test_a_stale_row_is_left_out_with_its_reason() -> None:
    board = build_board(
        RECORDS, lambda record: None, slices=MINI.slices, settings=Settings.of(MINI),
        sources={"method:mim": "newer"},
    )  # fmt: skip
    table = table_of(board.cells)
    out = left_out(prove([table], board))
    assert {table.rows[row][0] for _, row in out} == {"k-pixel, mim", "k-feature, mim"}


def test_names_from_records_stay_on_one_line() -> None:
    records = with_changes(
        lambda one: {"runtime": {**one.runtime, "precision": "\x1b[31mbf16\n# title"}}, stage="pretrain"
    )
    section, _ = shown_of(records)
    texts = [*section.alerts, *(cell for row in section.blocks[0].grid.rows for cell in row)]
    assert any("bf16 # title" in text for text in texts)
    assert not any("\x1b" in text or "\n" in text for text in texts)
