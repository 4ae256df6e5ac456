"""fair300 itself, on a miniature ImageNet of 1,000 classes: files to board, in one process and in two.

Only sizes of data and steps, and which weights, are changed (tests/miniature.py); the small CLIP network
is made known to open_clip as a user's own would be.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmark.cell_command import cell_arguments
from benchmark.cli import build_parser, main
from benchmark.commands.deviations import chosen_cells
from benchmark.data import open_part
from benchmark.runtime import Runtime
from leaderboard.record import Record, read_record
from protocols.schema import Part
from tests.benchmark.forked_ranks import in_processes, run_command
from tests.miniature import BATCH, CLASSES, IMAGES, TRAINING, make_images, overrides, write_vqkd
from tests.tokenizers.small_networks import SMALL_RESNET, register_small_networks, write_clip

pytestmark = pytest.mark.usefixtures("boards_without_drawings")


def run_with_small_networks(rank: int, port: int, processes: int, words: Sequence[str]) -> None:
    register_small_networks()
    run_command(rank, port, processes, words)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fair300")
    make_images(folder / "data")
    return folder


def options_of(place: Path, *selection: str) -> Namespace:
    weights = place / "data" / "tokenizers"
    changes = overrides(clip=write_clip(weights), clip_model=SMALL_RESNET, vqkd=write_vqkd(weights))
    options: Namespace = build_parser("run").parse_args(
        ["--protocol", "fair300", "--trunks", "vit-t", "--views", "none", *selection, "--work-dir",
         str(place / "runs"), "--data-root", str(place / "data"), "--device", "cpu", "--set", *changes]
    )  # fmt: skip
    return options


def run_all(options: Namespace, *, processes: int) -> dict[str, Record]:
    """Every cell of the selection, each in as many processes; its record by stage."""
    runtime = Runtime(device="cpu", jobs=1, threads=1)
    found = {}
    for cell in chosen_cells(options)[2]:
        words = cell_arguments(options, cell.id, runtime)
        # Only fitting k-clip needs the small network; open_clip takes seconds to load.
        is_clip = (cell.stage, cell.tokenizer) == ("tokenise", "k-clip")
        run = run_with_small_networks if is_clip else run_command
        in_processes(run, processes, words, processes=processes)
        record = read_record(options.work_dir / "fair300" / "cells" / cell.id)
        assert record is not None
        assert record.status == "done", record.error
        assert record.compliance.status == "modified"
        found[cell.stage] = record
    return found


@pytest.mark.parametrize(
    ("processes", "selection"),
    [
        (1, ("--methods", "mapet", "--tokenizers", "k-clip", "--evaluations", "finetune", "linear-probe")),
        (2, ("--methods", "mim", "--tokenizers", "vq-kd", "--evaluations", "finetune")),
    ],
)
def test_from_image_files_to_a_board(
    place: Path, capsys: pytest.CaptureFixture[str], processes: int, selection: tuple[str, ...]
) -> None:
    options = options_of(place, *selection)
    records = run_all(options, processes=processes)
    assert records["pretrain"].runtime["processes"] == processes
    assert records["pretrain"].cost.images_seen == IMAGES, f"two steps of {BATCH}"
    accuracy = records["finetune"].metrics["top1_percent"]
    assert accuracy.n == IMAGES
    with (
        options.work_dir / "fair300" / "cells" / records["finetune"].cell_id / "metrics.jsonl"
    ).open() as lines:
        assert json.loads(lines.readline())["steps"] == IMAGES // BATCH
    assert records["tokenise"].data_set.n == IMAGES
    capsys.readouterr()
    assert main(["report", "--protocol", "fair300", "--work-dir", str(options.work_dir)]) == 0
    board = capsys.readouterr().out
    assert "modified" in board
    assert records["finetune"].method is not None
    assert (
        str(options.work_dir) not in (options.work_dir / "fair300" / "leaderboard" / "index.html").read_text()
    )


def test_the_classes_are_those_of_the_folders(place: Path) -> None:
    """16 images of 8 classes do not make a classifier of 8."""
    part = Part(split="train", count=IMAGES)
    images = open_part("imagenet-1k", "training", part, data_root=place / "data")
    assert len(images.classes) == CLASSES
    assert len(set(images.labels.tolist())) == IMAGES // TRAINING
