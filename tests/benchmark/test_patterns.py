"""What predictions see, held against the objectives' definitions; and the command that draws it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.cli import main
from benchmark.patterns_figure import attention_rule, observe, shown_methods, small_method
from leaderboard.figure_patterns import Seen
from leaderboard.pattern_sheets import read_patterns
from methods.two_stream import PermutedPrediction, visibility
from protocols import load_protocol

TINY = str(Path(__file__).parent.parent / "tiny.yaml")
PATCHES, SEED = 16, 5


@pytest.fixture(scope="module")
def seen() -> dict[str, Seen]:
    protocol = load_protocol(TINY)
    return {
        name: observe(name, small_method(protocol, name, "vit-tiny-test"), sample_id=3, seed=SEED)
        for name in shown_methods(protocol)
    }


def drawn_pattern(name: str) -> np.ndarray:
    method = small_method(load_protocol(TINY), name, "vit-tiny-test")
    return method.draw(torch.tensor([3]), 0, SEED)[0].numpy()


class TestObserved:
    def test_every_objective_of_the_protocol_is_shown(self, seen: dict[str, Seen]) -> None:
        assert list(seen) == ["mim", "pim", "mapet", "beit", "cae"]

    @pytest.mark.parametrize("name", ["mim", "beit", "cae"])
    def test_masks_hide_content_and_leave_every_position(self, seen: dict[str, Seen], name: str) -> None:
        is_masked, found = drawn_pattern(name), seen[name]
        assert np.array_equal(np.flatnonzero(is_masked), found.predicted)
        assert (found.content == ~is_masked[None]).all()
        assert found.position[:, is_masked].all()
        assert not found.is_ordered

    def test_pim_sees_what_went_before_and_nothing_of_the_rest(self, seen: dict[str, Seen]) -> None:
        found, order = seen["pim"], drawn_pattern("pim")[1:] - 1
        targets = order[-len(found.predicted) :]
        assert np.array_equal(found.predicted, targets)
        for place, target in enumerate(targets):
            before = np.isin(np.arange(PATCHES), order[: PATCHES - len(targets) + place])
            assert np.array_equal(found.content[place], before)
            # Of itself it knows where it is; of later ones not even that.
            own = np.arange(PATCHES) == target
            assert np.array_equal(found.position[place], before | own)

    def test_mapet_sees_the_same_content_and_every_position(self, seen: dict[str, Seen]) -> None:
        assert np.array_equal(seen["mapet"].content, seen["pim"].content)
        assert seen["mapet"].position.all()
        assert seen["mapet"].is_ordered

    def test_a_prediction_that_sees_itself_would_show(self) -> None:
        """The picture is of the code as it runs: a leak in it is a leak in the picture."""
        method = small_method(load_protocol(TINY), "pim", "vit-tiny-test")
        assert isinstance(method, PermutedPrediction)
        method.sees[method.targets :] = method.sees[: method.targets].clone()
        leaking = observe("pim", method, sample_id=3, seed=SEED)
        assert leaking.content[np.arange(method.targets), leaking.predicted].all()

    def test_looking_leaves_the_method_as_it_was(self) -> None:
        method = small_method(load_protocol(TINY), "cae", "vit-tiny-test")
        before = {name: value.clone() for name, value in method.state_dict().items()}
        observe("cae", method, sample_id=3, seed=SEED)
        assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


class TestAttention:
    @pytest.mark.parametrize("name", ["pim", "mapet"])
    def test_it_is_the_mask_of_training(self, name: str) -> None:
        method = small_method(load_protocol(TINY), name, "vit-tiny-test")
        assert isinstance(method, PermutedPrediction)
        rule = attention_rule(name, method, sample_id=3, seed=SEED)
        assert rule is not None
        context, targets = method.cutting_point, method.targets
        streams = visibility(context, targets, mask_tokens=name == "mapet").numpy()
        assert np.array_equal(rule.sees[-2 * targets :], streams)
        dense = rule.sees[: -2 * targets]
        assert dense[:, : len(dense)].all()
        assert not dense[:, len(dense) :].any()
        assert sum(count for _, count in rule.rows) == len(rule.sees)
        assert sum(count for _, count in rule.keys) == rule.sees.shape[1]

    def test_other_objectives_have_no_mask(self) -> None:
        method = small_method(load_protocol(TINY), "mim", "vit-tiny-test")
        assert attention_rule("mim", method, sample_id=3, seed=SEED) is None


class TestCommand:
    def run(self, *arguments: Any) -> int:
        return main(["patterns", "--protocol", TINY, *map(str, arguments)])

    def test_pictures_lie_beside_their_facts_and_are_the_same_again(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("leaderboard.figure_patterns._DPI", 40)
        work_dir = tmp_path / "runs"
        assert self.run("--work-dir", work_dir, "--image", 3, "--seed", SEED) == 0
        folder = work_dir / "tiny" / "leaderboard" / "patterns"
        first = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert sorted(first) == [
            f"{kind}.{ending}" for kind in ("attention", "objectives") for ending in ("json", "png", "svg")
        ]
        facts = json.loads(first["objectives.json"])
        assert (facts["sample_id"], facts["seed"], facts["epoch"]) == (3, SEED, 0)
        assert facts["image_id"] == "train/0000003"
        assert list(json.loads(first["attention.json"])["sources"]) == ["pim", "mapet"]
        assert "puts them on the page" in capsys.readouterr().out
        sheets = read_patterns(folder, load_protocol(TINY), {})
        assert [sheet.facts.kind for sheet in sheets.sheets] == ["objectives", "attention"]
        # Into the same work dir, which holds nothing else so far.
        assert self.run("--work-dir", work_dir, "--image", 3, "--seed", SEED) == 0
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == first

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--image", "256"], "--image 256: protocol tiny pre-trains on 256 images of fashion-mnist-12k; "
                                 "give a number from 0 to 255"),
            (["--image", "-1"], "--image must be 0 or more, got -1"),
            (["--seed", str(2**32)], "--seed must be 4294967295 at most"),
            (["--trunk", "vit-x"], "unknown trunk of protocol tiny 'vit-x'"),
        ],
    )  # fmt: skip
    def test_its_errors(
        self, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(*arguments, "--work-dir", tmp_path) == 2
        assert said in capsys.readouterr().err

    def test_a_file_is_no_folder_for_pictures(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "out").write_text("")
        assert self.run("--out", tmp_path / "out", "--work-dir", tmp_path / "runs") == 2
        assert "is a file, and pictures need a folder" in capsys.readouterr().err
