"""`compare`: two rows at two levels, in text of 80 columns and JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from benchmark.cli import main
from leaderboard.record import PREDICTIONS_NAME
from protocols import load_protocol
from tests.leaderboard.conftest import Campaign

MIM, MAPET = "mim/k-pixel/vit-mini", "mapet/k-pixel/vit-mini"


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """MIM and MaPeT with three seeds, scratch with one, MIM on other tokens with two."""
    made = Campaign(tmp_path_factory.mktemp("runs"))
    for seed in range(3):
        made.row("mim", "k-pixel", seed=seed, finetune=100 + seed, probe=90 + seed)
        made.row("mapet", "k-pixel", seed=seed, finetune=140 + seed, probe=91 + seed, shuffle=seed + 1)
    made.row("mim", "k-feature", seed=0, finetune=120, probe=100)
    made.row("mim", "k-feature", seed=5, finetune=122, probe=100)
    made.cell("scratch-finetune", "finetune", method="scratch", correct=60)
    return made


def _compare(campaign: Campaign, *arguments: str) -> int:
    with (
        mock.patch("benchmark.commands.compare.load_protocol", return_value=campaign.protocol),
        # The code that made a made-up record is no code of this checkout.
        mock.patch("benchmark.commands.board.present_sources", return_value={}),
    ):
        return main(["compare", *arguments, "--protocol", "mini", "--work-dir", str(campaign.work_dir)])


def _json(campaign: Campaign, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert _compare(campaign, *arguments, "--json") == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_both_levels_of_two_rows(campaign: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    assert _compare(campaign, MAPET, "mim/k-pixel") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert text.isascii()
    assert f"a: {MAPET}" in text
    assert f"b: {MIM}" in text
    assert "They differ in method." in text
    assert "a  70.50 +- 0.50  (3 seeds: 0, 1, 2)" in text
    assert "a - b  +20.00  (95 % interval +18.87 to +21.13)" in text
    one_line = " ".join(text.split())
    assert f"fine-tuning: {MAPET} is above {MIM} by 20.00 points" in one_line
    assert f"{MAPET} and {MIM} cannot be told apart." in one_line
    # 100 images of 200 are right in both, 40 in MaPeT alone.
    assert "0  70.00  50.00      40       0  +20.00" in text


def test_json_has_every_number(campaign: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    said = _json(campaign, capsys, MAPET, MIM)
    assert (said["a"], said["b"], said["differ_in"]) == (MAPET, MIM, ["method"])
    finetune, probe = said["evaluations"]
    assert (finetune["evaluation"], probe["evaluation"]) == ("finetune", "linear-probe")
    assert [each["seed"] for each in finetune["checkpoints"]] == [0, 1, 2]
    assert finetune["checkpoints"][0]["test"]["only_a"] == 40
    # Holm over the two evaluations, and over their six pairs of checkpoints.
    assert finetune["p_holm"] == pytest.approx(2 * finetune["p"])
    assert finetune["checkpoints"][0]["p_holm"] > finetune["checkpoints"][0]["test"]["p"]
    assert probe["p_holm"] == pytest.approx(probe["p"])


def test_fewer_than_three_seeds(campaign: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("mim/k-feature", MIM, "--evaluations", "finetune")
    (finetune,) = _json(campaign, capsys, *arguments)["evaluations"]
    assert finetune["says"] == "Fewer than three seeds: nothing is said about methods"
    assert (finetune["p"], finetune["low"], finetune["smallest_of_methods"]) == (None, None, None)
    assert [each["seed"] for each in finetune["checkpoints"]] == [0]
    assert _compare(campaign, *arguments) == 0
    text = capsys.readouterr().out
    assert "above" not in text
    assert "Fewer than three seeds: nothing is said about methods." in text


def test_unlike_numbers_of_seeds_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The printed means are of all seeds, the difference of the first three: it is not theirs."""
    made = Campaign(tmp_path)
    for seed in range(4):
        made.row("mim", "k-pixel", seed=seed, finetune=100 if seed < 3 else 140, probe=90)
        if seed < 3:
            made.row("mapet", "k-pixel", seed=seed, finetune=120, probe=90)
    assert _compare(made, MAPET, MIM) == 0
    text = capsys.readouterr().out
    assert "b  55.00 +- 10.00  (4 seeds: 0, 1, 2, 3)" in text
    assert "a - b  +10.00" in text
    assert "a - b is of the first 3 seeds of each" in text


def test_scratch_and_the_evaluations_of_one_alone(
    campaign: Campaign, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("scratch", "scratch/vit-mini", "SCRATCH//vit-mini"):
        said = _json(campaign, capsys, name, MIM)
        assert said["a"] == "scratch/vit-mini"
        assert said["differ_in"] == ["method", "tokenizer"]
        assert said["only_in_one"] == ["linear-probe"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mapett/k-pixel", MIM), "unknown method 'mapett'; did you mean 'mapet'?"),
        (("mim/k-pixl", MIM), "unknown tokenizer 'k-pixl'; did you mean 'k-pixel'?"),
        (("mim/k-pixel/vit-b", MIM), "unknown trunk 'vit-b'"),
        (("mim", MIM), "a row is METHOD/TOKENIZER/TRUNK"),
        (("", MIM), "a row is METHOD/TOKENIZER/TRUNK"),
        ((MIM, "MIM/k-pixel"), "are one row, mim/k-pixel/vit-mini; give two different rows"),
        (("tokens/k-pixel", MIM), "tokens alone are classified by evaluations of their own"),
        (("mapet/k-feature", MIM), "--methods mapet --tokenizers k-feature --trunks vit-mini"),
        (("scratch", MIM, "--evaluations", "linear-probe"), "--trunks vit-mini --evaluations linear-probe"),
        ((MAPET, MIM, "--evaluations", "finetun"), "unknown evaluation 'finetun'; did you mean 'finetune'?"),
        ((MAPET, MIM, "--evaluations", ","), "--evaluations names nothing"),
        (("mapet/k-pixel@cutting_point=3", MIM), "no view of protocol tiny tries"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(
    campaign: Campaign, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert _compare(campaign, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error


def test_what_a_view_tries_is_a_row_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Campaign(tmp_path)
    view = load_protocol("mini").views["sensitivity"]
    cells = view.cells[1].model_copy(
        update={
            "methods": ("mapet",),
            "tokenizers": ("k-pixel",),
            "evaluations": ("finetune", "linear-probe"),
        }
    )
    views = {"tried": view.model_copy(update={"cells": (cells,)})}
    made.protocol = made.protocol.model_copy(update={"views": views})
    own = made.protocol.method_values("mapet", "vit-mini")["cutting_point"]
    other = next(value for value in cells.hyperparameters["cutting_point"] if value != own)
    made.tokenizer("k-pixel")
    for value in (own, other):
        row: dict[str, Any] = {"method": "mapet", "tokenizer": "k-pixel"}
        tried = {"hyperparameters": {"cutting_point": value}}
        made.cell(f"pretrain-{value}", "pretrain", parents=("tok-k-pixel",), **row, **tried)
        made.cell(f"finetune-{value}", "finetune", parents=(f"pretrain-{value}",), correct=140, **row)
    for name in (f"mapet/k-pixel@cutting_point={other}", f"mapet/k-pixel/vit-mini@cutting_point={other}"):
        said = _json(made, capsys, MAPET, name)
        assert said["b"] == f"{MAPET}@cutting_point={other}"
        assert said["differ_in"] == ["tried values"]
    assert _compare(made, MAPET, f"mapet/k-pixel@cutting_point={own}") == 2
    assert "are one row" in capsys.readouterr().err


def test_rows_that_are_not_proven_alike_are_refused(
    campaign: Campaign, capsys: pytest.CaptureFixture[str]
) -> None:
    with mock.patch("leaderboard.compare_rows.unlike", return_value=frozenset({1})):
        assert _compare(campaign, MAPET, MIM) == 3
    assert "do not prove that all else was equal" in capsys.readouterr().err


def test_a_stale_row_is_made_anew(campaign: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        mock.patch("benchmark.commands.compare.load_protocol", return_value=campaign.protocol),
        mock.patch("benchmark.commands.board.present_sources", return_value={"method:mapet": "newer"}),
    ):
        arguments = ["compare", MAPET, MIM, "--protocol", "mini", "--work-dir", str(campaign.work_dir)]
        assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "(6 stale)" in error
    assert error.rstrip().endswith("--redo-stale")


def test_without_records_and_with_lost_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", MAPET, MIM, "--protocol", "mini", "--work-dir", str(tmp_path)]) == 2
    assert "make some with python run_benchmark.py --protocol mini" in capsys.readouterr().err
    made = Campaign(tmp_path)
    for method in ("mim", "mapet"):
        made.row(method, "k-pixel", finetune=140, probe=90)
    (made.cells / "mim-k-pixel-0-finetune" / PREDICTIONS_NAME).unlink()
    assert _compare(made, MAPET, MIM) == 2
    assert "predictions.npz is missing" in capsys.readouterr().err
