"""Nearest neighbours: the search and the vote against their definitions, and a whole cell by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from benchmark import knn
from benchmark.batch_checks import image_problems
from benchmark.classification import backbone_of
from benchmark.cli import main
from benchmark.cost import forward_flops
from benchmark.forecast import cell_time, disk_use
from benchmark.knn import nearest, unit, vote
from benchmark.placement import place
from benchmark.plan import Cell, make_plan
from benchmark.process_group import ShareDone
from benchmark.runtime import Runtime
from benchmark.selection import select
from benchmark.stage import CellContext
from benchmark.step_costs import recipe_of, step_shape
from benchmark.transforms import normalise
from leaderboard.record import PREDICTIONS_NAME
from methods.trunk import build_trunk
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.files import sha256_of_file
from protocols.recipes import NearestNeighbours
from protocols.schema import Protocol
from tokenizers.kmeans import Whitening

if TYPE_CHECKING:
    from tests.benchmark.conftest import Line

Ints = npt.NDArray[np.int64]
PIECES = [(256, 16384), (7, 5), (20, 1), (40, 3), (2, 64)]


def nearest_by_hand(cosines: npt.NDArray[np.float32], neighbours: int) -> Ints:
    """Positions of the largest of each row, the earlier of equal ones first."""
    return np.argsort(-cosines, axis=1, kind="stable")[:, :neighbours]


def vote_by_hand(
    cosines: npt.NDArray[np.float32], labels: Ints, *, classes: int, temperature: float
) -> list[int]:
    """Each neighbour adds exp(cosine / temperature) to its class."""
    winners = []
    for row, voted in zip(cosines.astype(np.float64), labels, strict=True):
        votes = [0.0] * classes
        for cosine, label in zip(row, voted, strict=True):
            votes[label] += float(np.exp(cosine / temperature))
        winners.append(votes.index(max(votes)))
    return winners


@pytest.mark.parametrize(("queries_at_once", "keys_at_once"), PIECES)
def test_the_nearest_are_those_of_the_definition_ties_included(
    queries_at_once: int, keys_at_once: int
) -> None:
    """Products of small whole numbers are exact and often equal, zero and negative."""
    generator = torch.Generator().manual_seed(1)
    queries = torch.randint(-1, 2, (40, 5), generator=generator).float()
    keys = torch.randint(-1, 2, (61, 5), generator=generator).float()
    expected = (queries @ keys.T).numpy()
    assert len(np.unique(expected)) < 12, "few ties: this shows nothing"
    cosines, positions = nearest(
        queries, keys, neighbours=9, device="cpu", queries_at_once=queries_at_once, keys_at_once=keys_at_once
    )
    by_hand = nearest_by_hand(expected, 9)
    assert positions.tolist() == by_hand.tolist()
    assert cosines.dtype == torch.float32
    assert cosines.tolist() == np.take_along_axis(expected, by_hand, axis=1).tolist()


@pytest.mark.parametrize(("queries_at_once", "keys_at_once"), PIECES)
def test_the_pieces_of_the_search_move_nothing(queries_at_once: int, keys_at_once: int) -> None:
    """Features of any size, some of them twice: whoever comes first is nearer, wherever the pieces end."""
    generator = torch.Generator().manual_seed(2)
    once = torch.randn(30, 16, generator=generator)
    keys, queries = unit(torch.cat([once, once.flip(0)])), unit(torch.randn(50, 16, generator=generator))
    expected = (queries.double() @ keys.double().T).float().numpy()
    cosines, positions = nearest(
        queries, keys, neighbours=7, device="cpu", queries_at_once=queries_at_once, keys_at_once=keys_at_once
    )
    assert positions.tolist() == nearest_by_hand(expected, 7).tolist()
    whole = nearest(queries, keys, neighbours=7, device="cpu")
    assert torch.equal(cosines, whole[0])
    assert torch.equal(positions, whole[1])


def test_both_zeros_are_equally_near() -> None:
    ranks = knn._ranks(torch.tensor([[-0.0, 0.0, -1e-30, 1e-30]]), torch.arange(4))
    assert ranks.argsort(descending=True).tolist() == [[3, 0, 1, 2]]
    assert torch.equal(knn._cosines(ranks), torch.tensor([[0.0, 0.0, -1e-30, 1e-30]]))


@pytest.mark.parametrize("temperature", [0.07, 0.5, 3.0])
def test_votes_are_those_of_the_definition(temperature: float) -> None:
    generator = np.random.default_rng(3)
    cosines = -np.sort(-generator.uniform(-1, 1, (600, 9)).astype(np.float32), axis=1)
    labels = generator.integers(0, 4, (600, 9))
    expected = vote_by_hand(cosines, labels, classes=5, temperature=temperature)
    predicted = vote(torch.from_numpy(cosines), torch.from_numpy(labels), classes=5, temperature=temperature)
    assert predicted.tolist() == expected
    nearest_alone = labels[:, 0].tolist()
    assert expected != nearest_alone, "the vote decides nothing: this shows nothing"


def test_of_equal_votes_the_lower_class_wins_and_a_low_temperature_overflows_nothing() -> None:
    cosines = torch.tensor([[0.5, 0.5, 0.25], [0.5, 0.5, 0.25], [0.9, 0.8, 0.8]])
    labels = torch.tensor([[2, 1, 0], [1, 2, 0], [2, 0, 0]])
    assert vote(cosines, labels, classes=3, temperature=1e-4).tolist() == [1, 1, 2]
    assert vote(cosines, labels, classes=3, temperature=100.0).tolist() == [1, 1, 0]


def test_features_that_are_not_finite_are_refused() -> None:
    features = torch.ones(3, 4)
    features[1, 2] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        unit(features)


def context_of(line: Line, method: str) -> CellContext:
    """The cell `knn` of a method, in the work dir of the line, where its parents are."""
    plan = make_plan(line.protocol, select(line.protocol, methods=[method], evaluations=["knn"], seeds=[3]))
    (cell,) = [one for one in plan if one.stage == "knn"]
    runtime = Runtime(device="cpu", jobs=1, threads=1)
    context = CellContext(cell=cell, protocol=line.protocol, runtime=runtime, work_dir=line.work_dir)
    context.folder.mkdir(parents=True, exist_ok=True)
    return context


@pytest.mark.parametrize("method", ["mim", "scratch"])
def test_a_cell_predicts_by_whitened_class_tokens_of_centre_crops(full_line: Line, method: str) -> None:
    """The whole computation again, with timm's trunk, numpy's products and a loop for the votes."""
    context, data = context_of(full_line, method), full_line.protocol.data
    result = knn.run(context)
    recipe = full_line.protocol.evaluations["knn"]
    assert isinstance(recipe, NearestNeighbours)
    trunk = build_trunk(context.trunk(drop_path=0.0)).eval()
    trunk.load_state_dict(full_line.export if method == "mim" else backbone_of(context))

    def features(part: str, count: int) -> torch.Tensor:
        # 28 x 28 at fraction 0.9: resized to 31, of which the centre begins at 2.
        crops = [
            np.array(image.convert("RGB").resize((31, 31), Image.Resampling.BICUBIC).crop((2, 2, 30, 30)))
            for image in context.images(part).first(count).images()
        ]
        pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        with torch.no_grad():
            tokens: torch.Tensor = trunk.forward_features(normalise(pixels, data.mean, data.std))
        return tokens[:, 0]

    labelled, evaluated = features("training", 96), features("test", 203)
    whitening = Whitening.fit(labelled, epsilon=1e-8 * float(labelled.var(dim=0).sum()))
    keys, queries = (whitening.apply(one).double().numpy() for one in (labelled, evaluated))
    cosines = queries @ keys.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(keys, axis=1)
    positions = nearest_by_hand(cosines, 12)
    labels = context.images("training").labels[:96][positions]
    near = np.take_along_axis(cosines, positions, axis=1).astype(np.float32)
    expected = vote_by_hand(near, labels, classes=10, temperature=0.2)
    with np.load(context.folder / PREDICTIONS_NAME, allow_pickle=False) as archive:
        assert archive["predicted"].tolist() == expected
        assert archive["labels"].tolist() == context.images("test").labels.tolist()
        assert archive["image_ids"].tolist() == list(context.images("test").image_ids)
    accuracy = result.metrics["top1_percent"]
    assert (accuracy.value, accuracy.n) == (
        pytest.approx(100 * np.mean(np.array(expected) == context.images("test").labels)), 203,
    )  # fmt: skip
    assert len(set(expected)) > 3
    assert result.artefacts == {PREDICTIONS_NAME: sha256_of_file(context.folder / PREDICTIONS_NAME)}
    assert result.images_seen == 96 + 203
    assert result.train_flops == forward_flops(context.trunk(drop_path=0.0)) * (96 + 203)
    assert result.seconds > 0


def test_reading_processes_change_nothing(full_line: Line) -> None:
    context = context_of(full_line, "mim")
    first = knn.run(context).artefacts
    workers = Runtime(device="cpu", jobs=1, threads=1, workers=2)
    assert knn.run(replace(context, runtime=workers)).artefacts == first


def test_of_several_processes_the_others_leave_at_once(
    full_line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "process_rank", lambda: 1)
    monkeypatch.setattr(CellContext, "images", None)  # they read nothing
    with pytest.raises(ShareDone):
        knn.run(context_of(full_line, "mim"))


# What surrounds the stage ----------------------------------------------------------------------------


def planned(protocol: Protocol) -> Cell:
    choice = select(protocol, methods=["scratch"], evaluations=["knn"], views=["none"])
    (cell,) = make_plan(protocol, choice)
    return cell


def test_a_plan_counts_the_features_of_both_sets_and_no_steps() -> None:
    protocol = load_protocol("mini")
    cell, trunk = planned(protocol), protocol.trunk_spec("vit-mini", drop_path=0.0)
    assert (cell.stage, cell.evaluation, cell.seed) == ("knn", "knn", 0)
    assert cell.train_flops == forward_flops(trunk) * (6000 + 4000)
    assert recipe_of(cell, protocol) is None
    assert step_shape(cell, protocol) is None
    assert disk_use(cell, protocol).while_running == 0
    time = cell_time(
        cell, protocol, Runtime(device="cpu", jobs=1, threads=1), costs=None, accelerators=4, teraflops=1e-3
    )
    assert (time.accelerators, time.images_per_second) == (1, None)
    assert time.hours == pytest.approx(cell.train_flops / 1e9 / 3600)


def test_one_process_does_it_whatever_others_take() -> None:
    protocol = load_protocol("mini")
    asked = Runtime(device="cpu", jobs=1, threads=1, gpus_per_cell=4, accumulation=7)
    placed = place(planned(protocol), protocol, asked, costs=None, memory_bytes=None, gpus=4)
    assert (placed.processes, placed.accumulation) == (1, 1)


@pytest.mark.parametrize(("view", "is_counted"), [("neighbours", True), ("table1", False)])
def test_a_plan_says_that_its_evaluated_images_are_counted(
    view: str, is_counted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--protocol", "mini", "--views", view, "--work-dir", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("not counted, but for knn" in said) == is_counted


def test_more_labelled_images_than_there_are_stop_a_run_before_it_starts() -> None:
    few = load_protocol("mini", overrides=["evaluations.knn.labelled_images=20"])
    assert image_problems([planned(few)], few) == []
    many = load_protocol("mini", overrides=["evaluations.knn.labelled_images=6001"])
    (problem,) = image_problems([planned(many)], many)
    assert "evaluation knn of protocol mini asks for 6001 labelled images" in problem.what


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluations.knn.neighbours=6001", "neighbours 6001 are more than the labelled images"),
        ("evaluations.knn.temperature=0", "temperature"),
        ("evaluations.knn.neighbours=0", "neighbours"),
    ],
)
def test_values_without_a_meaning_are_refused(override: str, message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        load_protocol("mini", overrides=[override])


@pytest.mark.parametrize("field", ["interpolation", "evaluation_crop_fraction"])
def test_half_a_crop_is_refused(field: str) -> None:
    with pytest.raises(HarnessError, match=f"{field}|also needs"):
        load_protocol("fair300", overrides=[f"evaluations.knn.{field}=null"])
