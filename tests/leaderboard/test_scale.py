"""The work of a board grows with its records, not with their square.

How long it takes, `python -m tests.performance.board_size` says.
"""

from __future__ import annotations

import cProfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from leaderboard.fairness import left_out, prove
from leaderboard.fairness_section import fairness_section
from leaderboard.predictions import Predictions, PredictionsLoader
from leaderboard.record import PREDICTIONS_NAME, Record
from leaderboard.settings import Settings
from leaderboard.tables import Board, build_board
from leaderboard.views import view_tables
from protocols import load_protocol
from tests.leaderboard.whole_campaign import campaign_records

T = TypeVar("T")
MINI = load_protocol("mini")
# One table with a random trunk: what all tables cost whatever there is would hide what grows.
PROTOCOL = MINI.model_copy(update={"views": {"table2": MINI.views["table2"]}})
SEEDS = (6, 12, 24)
IMAGES = 40
# Linear probes of pre-trained trunks in that table.
GAINS = 6
# Twice as many more records take twice as much more work, four times if it grew with their square.
MOST_GROWTH = 2.2


def build(records: Sequence[Record]) -> Board:
    """The board as `report` builds it, but for the files."""
    return build_board(
        records,
        loader(),
        slices=PROTOCOL.slices,
        settings=Settings.of(PROTOCOL),
        methods=PROTOCOL.names("methods"),
        tokenizers=PROTOCOL.names("tokenizers"),
        evaluations=PROTOCOL.names("evaluations"),
        default_evaluations=PROTOCOL.defaults.evaluations,
    )


def show(board: Board) -> None:
    """The tables of all views, and their fairness."""
    tables = view_tables(board, PROTOCOL)
    proofs = prove(tables, board)
    assert not left_out(proofs)
    assert fairness_section(tables, board, proofs=proofs) is not None


def campaign(seeds: int) -> list[Record]:
    """All cells of one seed, and the same again under other seeds."""
    first = list(campaign_records(PROTOCOL, predictions="of no file"))
    return [
        record if seed == 0 else _reseeded(record, seed)
        for seed in range(seeds)
        for record in first
        if seed == 0 or record.seed is not None
    ]


def _reseeded(record: Record, seed: int) -> Record:
    """Another seed's cell; cells of no seed, which are tokens, stay its parents."""
    parents = {name.replace("-s0-", f"-s{seed}-"): digest for name, digest in record.parents.items()}
    cell_id = record.cell_id.replace("-s0-", f"-s{seed}-")
    return record.model_copy(update={"cell_id": cell_id, "seed": seed, "parents": parents})


def loader() -> PredictionsLoader:
    """Predictions of 40 images, others for each cell."""
    ids = np.array([f"test/{index:05d}" for index in range(IMAGES)])
    labels = np.arange(IMAGES) % 10

    def load(record: Record) -> Predictions | None:
        if PREDICTIONS_NAME not in record.artefacts:
            return None
        generator = np.random.default_rng(list(record.cell_id.encode()))
        predicted = np.where(generator.random(IMAGES) < 0.6, labels, (labels + 1) % 10)
        return Predictions(cell_id=record.cell_id, image_ids=ids, labels=labels, predicted=predicted)

    return load


def calls(work: Callable[[], T]) -> tuple[T, int]:
    """What `work` gives, and how many calls it makes: the same on every machine, however busy it is."""
    profile = cProfile.Profile()
    result = profile.runcall(work)
    return result, sum(entry.callcount for entry in profile.getstats())


def test_work_grows_with_the_number_of_records() -> None:
    sizes, building, showing = [], [], []
    for seeds in SEEDS:
        records = campaign(seeds)
        board, counted = calls(partial(build, records))
        assert {run.standing for run in board.cells} == {"board"}
        assert board.runs["gain_lower_bound_points"].notna().sum() == GAINS * seeds
        sizes.append(len(records))
        building.append(counted)
        showing.append(calls(partial(show, board))[1])
    for counted in (building, showing):
        assert _growth(counted) < MOST_GROWTH * _growth(sizes) / 2, (sizes, counted)


def _growth(values: Sequence[int]) -> float:
    """How much more the second step adds than the first: what is done once is in neither."""
    first, second, third = values
    return (third - second) / (second - first)
