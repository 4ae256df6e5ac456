"""The command on a card makes the very cell that the card is of, whoever gave the cell its values."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from benchmark.cli import build_parser
from benchmark.commands.deviations import chosen_cells
from benchmark.plan import Cell, make_plan
from benchmark.record_cell import write_cell_record
from benchmark.runtime import Runtime
from benchmark.selection import select
from benchmark.survey import present_sources
from leaderboard.card_parts import command, holds_equal, stated
from leaderboard.lineage import Lineage
from leaderboard.record import Compliance, Record
from protocols import load_protocol
from protocols.schema import Protocol


@cache
def mini() -> Protocol:
    return load_protocol("mini")


@cache
def cells() -> dict[str, Cell]:
    """What tables and studies of mini try in the place of its own values."""
    selection = select(mini(), seeds=[1], views=["table5", "table6", "sensitivity"])
    return {cell.id: cell for cell in make_plan(mini(), selection)}


def with_all_it_was_made_from(cell: Cell, work_dir: Path) -> list[Record]:
    """The records of `cell`, last, and of its ancestors, as if all were done."""
    before = [one for parent in cell.parents for one in with_all_it_was_made_from(cells()[parent], work_dir)]
    runtime = Runtime(device="cpu", jobs=1, threads=1)
    own = write_cell_record(cell, mini(), runtime, work_dir, status="done", sources=present_sources())
    return [*before, own]


def one_that_tries(field: str, value: object, stage: str) -> Cell:
    tried = (
        cell for cell in cells().values() if (field, value) in (*cell.hyperparameters, *cell.pretraining)
    )
    pretraining = next(tried)
    return next(
        one for one in (pretraining, *cells().values())
        if one.stage == stage and (one is pretraining or one.parents == (pretraining.id,))
    )  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "stage"),
    [
        ("cutting_point", 8, "pretrain"),
        ("cutting_point", 11, "finetune"),
        ("peak_lr", 0.008, "linear-probe"),
        ("mask_count", 25, "linear-probe"),
    ],
)
def test_values_that_a_view_tries(field: str, value: object, stage: str, tmp_path: Path) -> None:
    cell = one_that_tries(field, value, stage)
    records = with_all_it_was_made_from(cell, tmp_path)
    lineage = Lineage(records)
    words = command(records[-1], lineage, mini())
    planned = chosen_cells(build_parser("run").parse_args(words[2:]))[2]
    assert cell.id in {one.id for one in planned if not one.is_modified}
    assert any(f"{field}={value}" in word for word in words) == (value != 25), words
    assert holds_equal(records[-1], lineage, mini())
    assert f"digest {mini().digest}" in stated(records[-1], lineage, mini())["protocol"]


def test_what_set_moved_is_set_again_and_sentences_are_not(tmp_path: Path) -> None:
    """Of imported weights the deviations name their file, which may have = in its name."""
    (record,) = with_all_it_was_made_from(
        next(cell for cell in cells().values() if cell.method == "scratch"), tmp_path
    )
    assert record.method is not None
    deviations = ("weights of a=b.pth (SHA-256 0)", "evaluations.digits.epochs=2")
    imported = record.model_copy(
        update={
            "method": record.method.model_copy(update={"name": "imported-ours"}),
            "compliance": Compliance(status="imported", deviations=deviations),
            "resolved": record.resolved | {"checkpoint": {"file": "a=b.pth"}},
        }
    )
    words = command(imported, Lineage([imported]), mini())
    assert words[-2:] == ["--set", "evaluations.digits.epochs=2"]
    assert words.count("--set") == 1
    assert words[4:8] == ["--from-checkpoint", "a=b.pth", "--label", "ours"]
    assert "--views" not in words
    assert stated(imported, Lineage([imported]), mini())["compliance"] == f"imported: {'; '.join(deviations)}"


def test_a_protocol_that_the_harness_does_not_have_is_a_file(tmp_path: Path) -> None:
    (record,) = with_all_it_was_made_from(
        next(cell for cell in cells().values() if cell.method == "scratch"), tmp_path
    )
    forked = record.model_copy(update={"protocol": record.protocol.model_copy(update={"name": "my-mini"})})
    assert command(forked, Lineage([forked]), None)[3] == "my-mini.yaml"
    assert not holds_equal(forked, Lineage([forked]), mini())
