"""What a board says of rows whose images were decoded otherwise, or whose libraries differ."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from benchmark import provenance
from benchmark.inputs import EMBEDDED_SETS
from benchmark.torchvision_sets import ARRAY_SETS as ARRAY_READERS
from leaderboard.environments import (
    ARRAY_SETS,
    DECODE_DIGEST,
    MOVES_NUMBERS,
    SELDOM_MOVES_NUMBERS,
    environment_notes,
)
from leaderboard.fairness import left_out, prove, unlike
from leaderboard.fairness_section import fairness_section
from leaderboard.record import Record
from leaderboard.settings import Settings
from leaderboard.tables import Board, build_board
from protocols import load_protocol
from tests.leaderboard.fairness_tables import table_of
from tests.leaderboard.whole_campaign import campaign_records

MINI = load_protocol("mini")
ROWS = ("scratch", "mim, k-pixel", "pim, k-pixel", "mim, k-feature", "pim, k-feature")
HERE, THERE = "12ab" * 16, "34cd" * 16
EMBEDDED = [
    record
    for record in campaign_records(
        MINI, seeds=(0, 1), views=["none"], evaluations=["finetune", "linear-probe"]
    )
    if not record.method or record.method.name in ("scratch", "mim", "pim")
]
# The same campaign over a data set of image files.
RECORDS = [
    one.model_copy(update={
        "data_set": one.data_set.model_copy(update={"name": "imagenet-1k"}),
        "environment": {DECODE_DIGEST: HERE, "torch": "2.15.0", "pillow": "13.0.0", "cpu": "A"},
    })
    for one in EMBEDDED
]  # fmt: skip


def is_row(
    record: Record, *, stage: str, method: str = "mim", tokenizer: str = "k-feature", seed: int | None = None
) -> bool:
    names = (record.method.name if record.method else "", record.tokenizer.name if record.tokenizer else "")
    return record.stage == stage and (seed is None or record.seed == seed) and names == (method, tokenizer)


def with_environment(
    change: dict[str, str | None], records: Iterable[Record] = RECORDS, **where: Any
) -> list[Record]:
    """Those that `where` describes with other values; None takes a key away."""
    changed = []
    for record in records:
        if is_row(record, **where):
            merged = {**record.environment, **change}
            values = {key: value for key, value in merged.items() if value is not None}
            record = record.model_copy(update={"environment": values})
        changed.append(record)
    return changed


def board_of(records: Iterable[Record]) -> Board:
    return build_board(
        list(records), lambda record: None, slices=MINI.slices, settings=Settings.of(MINI),
        methods=MINI.names("methods"), tokenizers=MINI.names("tokenizers"),
    )  # fmt: skip


def out_of(board: Board) -> set[str]:
    """The rows that are compared with no other."""
    return {ROWS[row] for _, row in left_out(prove([table_of(board.cells)], board))}


def notes_on(board: Board, word: str) -> list[str]:
    return [note for note in board.notes if word in note]


@pytest.mark.parametrize("stage", ["finetune", "pretrain", "linear-probe"])
def test_a_row_whose_images_were_decoded_otherwise_is_red_and_compared_with_none(stage: str) -> None:
    board = board_of(with_environment({DECODE_DIGEST: THERE}, stage=stage))
    assert out_of(board) == {"mim, k-feature"}
    section = fairness_section([table_of(board.cells)], board)
    assert section is not None
    (alert,) = section.alerts
    assert alert.startswith(
        "A table: mim, k-feature is compared with no other row: environment.decode digest"
    )
    assert THERE in alert
    (block,) = section.blocks
    (red,) = {row for row, _ in block.red}
    assert block.grid.rows[red][:2] == (
        f"environment.decode digest (decoded for {'pretrain' if stage == 'pretrain' else 'evaluation'})",
        "UNFAIR",
    )
    (note,) = notes_on(board, "decode digest")
    assert note.startswith(
        "Rows differ in decode digest (mim, k-feature: 12ab12ab12ab... and 34cd34cd34cd...; the 4 others: "
        "12ab12ab12ab...): their images"
    )
    assert "not decoded to the same pixels" in note
    assert "run them again with one Pillow" in note


def test_a_probe_has_no_gain_over_a_random_trunk_that_was_shown_other_pixels() -> None:
    def gains(records: list[Record]) -> set[tuple[str, bool]]:
        return {
            (", ".join(filter(None, (run.key.method, run.key.tokenizer))), run.gain_points is not None)
            for run in board_of(records).cells
            if run.evaluation == "linear-probe"
        }

    with_gain = {(name, name != "scratch") for name in ROWS}
    assert gains(RECORDS) == with_gain
    changed = with_environment({DECODE_DIGEST: THERE}, stage="linear-probe")
    assert gains(changed) == with_gain - {("mim, k-feature", True)} | {("mim, k-feature", False)}
    assert gains(with_environment({DECODE_DIGEST: None}, stage="linear-probe")) == with_gain
    # How it was pre-trained is another matter: the trunk is what is measured.
    assert gains(with_environment({DECODE_DIGEST: THERE}, stage="pretrain")) == with_gain


def test_seeds_of_one_row_that_were_decoded_otherwise() -> None:
    board = board_of(with_environment({DECODE_DIGEST: THERE}, stage="finetune", seed=1))
    assert out_of(board) == {"mim, k-feature"}
    proof = prove([table_of(board.cells)], board)[0]
    (reason,) = proof.left_out[ROWS.index("mim, k-feature")]
    assert reason == (
        f"its seeds differ in environment.decode digest (decoded for evaluation): {HERE} in seed 0, "
        f"{THERE} in seed 1"
    )


def test_the_command_compare_takes_them_apart_too() -> None:
    board = board_of(with_environment({DECODE_DIGEST: THERE}, stage="finetune"))
    rows = [
        [run for run in board.cells if run.key.method == method and run.key.tokenizer == "k-feature"
         and run.evaluation == "finetune"]
        for method in ("mim", "pim")
    ]  # fmt: skip
    assert unlike(rows) == {1}
    assert unlike([rows[1], rows[1]]) == set()


def test_pixels_that_come_from_arrays_are_not_decoded() -> None:
    records = with_environment({DECODE_DIGEST: HERE}, EMBEDDED, stage="pretrain")
    records = with_environment({DECODE_DIGEST: THERE}, records, stage="finetune")
    board = board_of(records)
    assert not out_of(board)
    assert not notes_on(board, "decode")


def test_older_records_do_not_know_and_are_compared_all_the_same() -> None:
    board = board_of(with_environment({DECODE_DIGEST: None}, stage="finetune"))
    assert not out_of(board)
    (note,) = notes_on(board, "decode")
    assert note.startswith("How images were decoded is unknown of mim, k-feature: records from before")
    # What is not known binds nobody; what two others know does.
    records = with_environment({DECODE_DIGEST: None}, stage="finetune")
    records = with_environment({DECODE_DIGEST: THERE}, records, stage="finetune", method="pim")
    assert out_of(board_of(records)) == {"pim, k-feature"}


def test_a_seed_that_does_not_know_hides_no_others() -> None:
    records = list(
        campaign_records(MINI, seeds=(0, 1, 2), views=["none"], methods=["mim"], evaluations=["finetune"])
    )
    digests = {0: "unknown: digests.json is damaged", 1: HERE, 2: THERE}
    changed = [
        one.model_copy(update={
            "data_set": one.data_set.model_copy(update={"name": "imagenet-1k"}),
            "environment": {DECODE_DIGEST: digests.get(one.seed, HERE) if one.stage == "finetune" else HERE},
        })
        for one in records
    ]  # fmt: skip
    board = board_of(changed)
    proof = prove([table_of(board.cells)], board)[0]
    assert len(proof.left_out) == len(proof.labels)
    assert len(notes_on(board, "unknown of all rows")) == 1


def test_all_rows_alike_need_no_note() -> None:
    board = board_of(RECORDS)
    assert not out_of(board)
    assert environment_notes(board.cells) == []


def test_libraries_that_differ_are_said_row_by_row_and_take_nobody_out() -> None:
    change: dict[str, str | None] = {"torch": "2.14.0", "pillow": "12.0.0"}
    board = board_of(with_environment(change, stage="finetune"))
    assert not out_of(board)
    (note,) = notes_on(board, "different versions")
    assert (
        "mim, k-feature: torch 2.14.0 and 2.15.0, pillow 12.0.0 and 13.0.0; the 4 others: torch 2.15.0, "
        "pillow 13.0.0. They are compared all the same"
    ) in note
    # A seed alone is enough, and of two rows each is named.
    board = board_of(with_environment({"torch": "2.14.0"}, stage="finetune", seed=1, method="pim"))
    (note,) = notes_on(board, "different versions")
    assert "number: pim, k-feature: torch 2.14.0 and 2.15.0; the 4 others" in note


def test_machines_that_differ_have_a_weaker_word() -> None:
    board = board_of(with_environment({"cpu": "B"}, stage="finetune"))
    assert not notes_on(board, "can move")
    assert notes_on(board, "cpu") == [
        "Rows also differ in cpu (A, B), which seldom moves more than the last digits."
    ]


def test_what_is_compared_is_what_records_state() -> None:
    """Names on both sides of the layers, which may not import each other."""
    stated = provenance.environment()
    assert {DECODE_DIGEST, *MOVES_NUMBERS, *SELDOM_MOVES_NUMBERS} <= set(stated)
    assert provenance.DECODE_DIGEST == DECODE_DIGEST
    assert {*EMBEDDED_SETS, *ARRAY_READERS} == ARRAY_SETS


@pytest.mark.parametrize("many", [5, 9])
def test_many_sets_of_versions_are_counted(many: int) -> None:
    numbers = iter(range(100))
    records = [
        one.model_copy(update={"environment": {**one.environment, "torch": f"2.{next(numbers) % many}"}})
        if one.stage == "finetune" else one
        for one in RECORDS
    ]  # fmt: skip
    (note,) = notes_on(board_of(records), "different versions")
    assert note.count("torch") <= 6
