"""Classification from tokens alone: both classifiers by hand, their training, top-5, and what is refused.

The stores hold made-up tokens, so that what can be learned from them is known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.classification import Classification, most_likely_classes, write_predictions
from benchmark.image_part import ImagePart
from benchmark.interrupt import Interrupted, StopFlag
from benchmark.plan import Cell, make_plan, select
from benchmark.record_cell import write_cell_record
from benchmark.runtime import Runtime
from benchmark.stage import CellContext, StageResult
from benchmark.token_classification import TokenMlp, run, seeded_classifier, token_vit
from leaderboard.predictions import read_predictions
from leaderboard.record import Record
from methods.trunk import encode, with_cls
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.files import sha256_of_file
from protocols.recipes import TokenClassification
from protocols.schema import Protocol, TrunkSpec
from tests.tokenizers.made_stores import StandIn, write_made
from tokenizers.store import MANIFEST_NAME, open_store

FULL = str(Path(__file__).parent.parent / "full.yaml")
SEED = 3
EVALUATIONS = ("token-mlp", "token-vit")
GRID, CODES = 4, 16  # of the protocol's images of 28 pixels and patches of 7
Tokens = Callable[[ImagePart], npt.NDArray[np.int64]]


def of_the_label(images: ImagePart) -> npt.NDArray[np.int64]:
    """(n, 16): every patch carries the label, but for one that carries anything."""
    tokens = np.repeat(images.labels[:, None], GRID**2, axis=1)
    tokens[:, 5] = np.random.default_rng(0).integers(CODES, size=len(images))
    return tokens


def of_another_image(images: ImagePart) -> npt.NDArray[np.int64]:
    """(n, 16): tokens of the label of some other image."""
    return np.random.default_rng(1).permutation(of_the_label(images))


@dataclass
class Made:
    """Stores of made-up tokens under a work dir, and the cells that are planned on them."""

    work_dir: Path
    protocol: Protocol
    cells: dict[str, Cell]

    @classmethod
    def of(cls, work_dir: Path, tokens: Tokens, *overrides: str, **by_part: StandIn) -> Made:
        protocol = load_protocol(FULL, overrides=overrides)
        plan = make_plan(protocol, select(protocol, evaluations=EVALUATIONS, seeds=[SEED]))
        made = cls(work_dir, protocol, {cell.evaluation or cell.part or "pretraining": cell for cell in plan})
        for part, cell in made.cells.items():
            if cell.stage == "tokenise":
                made.tokenise(part, tokens, by_part.get(part, stand_in()))
        return made

    def context(self, name: str, stop: StopFlag | None = None) -> CellContext:
        runtime = Runtime(device="cpu", jobs=1, threads=1)
        context = CellContext(
            cell=self.cells[name], protocol=self.protocol, runtime=runtime, work_dir=self.work_dir
        )
        return replace(context, stop=stop) if stop else context

    def tokenise(self, part: str, tokens: Tokens, by: StandIn) -> None:
        images = self.context(part).images(part)
        # The store has an order of its own: rows must be found by image id.
        order = np.random.default_rng(2).permutation(len(images))
        path = f"tokens/k-pixel-{by.digest[:12]}/{part}"
        write_made(
            self.work_dir / path,
            [images.image_ids[position] for position in order],
            tokenizer=by,
            tokens=[tokens(images)[order]],
        )
        manifest = f"{path}/{MANIFEST_NAME}"
        self.record(part, data=images, artefacts={manifest: sha256_of_file(self.work_dir / manifest)})

    def record(self, name: str, *, data: ImagePart, artefacts: dict[str, str]) -> Record:
        result = StageResult(
            metrics={}, data=data, seconds=1.0, images_seen=1, train_flops=0.0, artefacts=artefacts
        )
        return self.write(name, result)

    def write(self, name: str, result: StageResult) -> Record:
        context = self.context(name)
        return write_cell_record(
            context.cell, self.protocol, context.runtime, self.work_dir, status="done", result=result
        )

    def predictions(self, name: str) -> dict[str, npt.NDArray[Any]]:
        with np.load(self.context(name).folder / "predictions.npz", allow_pickle=False) as archive:
            return dict(archive)


def stand_in(**more: Any) -> StandIn:
    return StandIn(**{"name": "k-pixel", "codebook_size": CODES, "grid": GRID} | more)


@cache
def trunk() -> TrunkSpec:
    return load_protocol(FULL).trunk_spec("vit-tiny-test", drop_path=0.2)


# The classifiers ---------------------------------------------------------------------------------------


def test_the_mlp_by_hand() -> None:
    """Embedding, Linear, ReLU, mean over positions, Linear: plain matrix products of chosen weights."""
    mlp = TokenMlp(codebook_size=3, width=2, hidden_width=2, classes=2)
    weights = {
        "embedding.weight": [[1, 0], [0, 1], [-2, 3]],
        "hidden.weight": [[1, -1], [2, 0]], "hidden.bias": [0, -1],
        "head.weight": [[1, 1], [-1, 2]], "head.bias": [0, 10],
    }  # fmt: skip
    mlp.load_state_dict({name: torch.tensor(value).float() for name, value in weights.items()})
    # Code 0: (1, 2) - (0, 1) -> (1, 1). Code 1: (-1, 0) - (0, 1) -> (0, 0). Code 2: (-5, -4 - 1) -> (0, 0).
    hidden = {0: (1, 1), 1: (0, 0), 2: (0, 0)}
    tokens = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 1]])
    mean = torch.tensor([[sum(hidden[int(t)][j] for t in row) / 4 for j in (0, 1)] for row in tokens])
    assert mean.tolist() == [[1, 1], [0.25, 0.25]]
    # (1, 1) -> (2, 1 + 10); (1/4, 1/4) -> (1/2, 1/4 + 10).
    assert mlp(tokens).tolist() == [[2, 11], [0.5, 10.25]]


def test_the_vit_takes_embeddings_in_the_place_of_patches() -> None:
    """Class token, positions, blocks, a fresh norm on the mean over patches, the head: as fine-tuning."""
    model = token_vit(trunk(), codebook_size=CODES, classes=10).eval()
    tokens = torch.randint(CODES, (3, GRID**2), generator=torch.Generator().manual_seed(0))
    embedded = model.patch_embed.weight[tokens]
    assert embedded.shape == (3, GRID**2, trunk().width)
    rows = encode(model, with_cls(model, embedded))
    expected = model.head(model.fc_norm(rows[:, 1:].mean(dim=1)))
    torch.testing.assert_close(model(tokens), expected)
    assert not torch.allclose(model(tokens), model(tokens.flip(1)), atol=1e-4), "positions count"
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.2])


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_weight_gets_a_gradient(name: str, made: Made) -> None:
    model = classifier_of(made, name, seed=SEED)
    tokens = torch.arange(CODES).repeat(2, 1)
    torch.manual_seed(SEED)  # by chance a path is dropped for both images
    Classification(model).loss({"inputs": tokens, "labels": torch.tensor([1, 2])}).backward()
    lacking = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert lacking == []


@pytest.mark.parametrize("name", EVALUATIONS)
def test_weights_are_drawn_from_the_seed_alone(name: str, made: Made) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    first = classifier_of(made, name, seed=SEED).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    again, other = (classifier_of(made, name, seed=seed).state_dict() for seed in (SEED, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = {key for key in first if not torch.equal(first[key], other[key])}
    assert drawn >= ({"embedding.weight", "head.weight"} if name == "token-mlp" else {"patch_embed.weight"})


def classifier_of(made: Made, name: str, *, seed: int) -> nn.Module:
    context = made.context(name)
    context = replace(context, cell=replace(context.cell, seed=seed))
    recipe = made.protocol.evaluations[name]
    assert isinstance(recipe, TokenClassification)
    ((manifest, _),) = context.done(context.cell.parents[0]).artefacts.items()
    store = open_store((made.work_dir / manifest).parent)
    return seeded_classifier(context, recipe, store=store, classes=10)


# The stage ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Tokens that carry the label."""
    return Made.of(tmp_path_factory.mktemp("label"), of_the_label)


@pytest.fixture(scope="module")
def results(made: Made) -> dict[str, StageResult]:
    return {name: run(made.context(name)) for name in EVALUATIONS}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_tokens_that_carry_the_label_are_told_apart(
    made: Made, results: dict[str, StageResult], name: str
) -> None:
    result = results[name]
    assert {key: (one.value, one.n, one.unit) for key, one in result.metrics.items()} == {
        "top1_percent": (100.0, 203, "%"), "top5_percent": (100.0, 203, "%"),
    }  # fmt: skip
    assert (result.data.name, len(result.data)) == ("test", 203)
    assert result.images_seen == 192 * made.protocol.evaluations[name].epochs
    assert result.train_flops == made.cells[name].train_flops > 0


@pytest.mark.parametrize("name", EVALUATIONS)
def test_shuffled_tokens_reach_chance(tmp_path: Path, name: str) -> None:
    """Ten classes of about twenty images each: 10 % and 50 %, within four standard errors."""
    metrics = run(Made.of(tmp_path, of_another_image).context(name)).metrics
    assert metrics["top1_percent"].value == pytest.approx(10, abs=4 * 100 * (0.1 * 0.9 / 203) ** 0.5)
    assert metrics["top5_percent"].value == pytest.approx(50, abs=4 * 100 * (0.5 * 0.5 / 203) ** 0.5)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_predictions_are_kept_as_the_board_reads_them(
    made: Made, results: dict[str, StageResult], name: str
) -> None:
    record = made.write(name, results[name])
    read = read_predictions(made.work_dir / "full" / "cells", record)
    assert read is not None
    images = made.context("test").images("test")
    assert read.image_ids.tolist() == list(images.image_ids)
    assert read.labels.tolist() == images.labels.tolist()
    kept = made.predictions(name)
    assert kept["most_likely"].shape == (203, 5)
    assert kept["most_likely"].dtype == np.int64
    assert kept["most_likely"][:, 0].tolist() == read.predicted.tolist()
    assert all(len(set(row)) == 5 for row in kept["most_likely"].tolist())
    assert record.method is None
    assert record.tokenizer is not None
    assert (record.tokenizer.name, record.trunk) == ("k-pixel", made.cells[name].trunk)


class StopAt(StopFlag):
    """Asks to stop once the engine has looked `looks` times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        super().__init__()

    @property
    def raised(self) -> bool:
        self.looks -= 1
        return self.looks <= 0

    @raised.setter
    def raised(self, value: bool) -> None:
        assert not value


@pytest.mark.parametrize("name", EVALUATIONS)
def test_stopped_and_resumed_it_ends_with_the_same_bits(tmp_path: Path, name: str) -> None:
    """Of tokens that leave room for doubt, so that a step more or less would show; drop path included."""
    whole, parts = (Made.of(tmp_path / part, of_another_image) for part in ("whole", "parts"))
    expected = run(whole.context(name))
    for looks in (5, 9):
        with pytest.raises(Interrupted):
            run(parts.context(name, StopAt(looks)))
    found = run(parts.context(name))
    assert found.artefacts == expected.artefacts
    assert found.metrics == expected.metrics
    assert found.images_seen == expected.images_seen


def test_labels_are_smoothed_as_the_recipe_says(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """(1 - 0.1) of the label's nats and 0.1 of the mean over all classes."""
    caught: list[Classification] = []

    def stop_there(context: CellContext, recipe: object, *, objective: Classification, **_: Any) -> None:
        caught.append(objective)
        raise Interrupted

    monkeypatch.setattr("benchmark.token_classification.train_recipe", stop_there)
    with pytest.raises(Interrupted):
        run(made.context("token-mlp"))
    batch = {"inputs": torch.arange(CODES).reshape(1, -1), "labels": torch.tensor([4])}
    with torch.no_grad():
        nats = -F.log_softmax(caught[0].classifier(batch["inputs"]), dim=1)
        torch.testing.assert_close(caught[0].loss(batch), 0.9 * nats[0, 4] + 0.1 * nats.mean())


def test_labelled_images_that_nothing_was_fitted_on_have_a_store_of_their_own(tmp_path: Path) -> None:
    overrides = ("data.training.start=600", "data.training.count=256")
    made = Made.of(tmp_path, of_the_label, *overrides)
    assert made.cells["token-mlp"].parents == (made.cells["training"].id, made.cells["test"].id)
    assert run(made.context("token-mlp")).metrics["top1_percent"].value == 100.0


# Top-5 -------------------------------------------------------------------------------------------------


def logits_as_they_are(inputs: Tensor) -> Tensor:
    return inputs


def test_the_five_most_likely_classes_come_in_order_and_ties_by_number() -> None:
    logits = torch.tensor([[0, 5, 1, 4, 2, 3, -1.0], [1, 1, 1, 1, 1, 1, 1], [0, 2, 0, 2, 0, 1, 0]])
    ids = ["a", "b", "c"]
    found = most_likely_classes(logits_as_they_are, logits.split(2), device="cpu", image_ids=ids)
    assert found.tolist() == [[1, 3, 5, 4, 2], [0, 1, 2, 3, 4], [1, 3, 5, 0, 2]]
    few = most_likely_classes(logits_as_they_are, [logits[:, :3]], device="cpu", image_ids=ids)
    assert few.tolist() == [[1, 2, 0], [0, 1, 2], [1, 0, 2]]


def test_top5_counts_labels_among_the_five(made: Made, tmp_path: Path) -> None:
    """Image i's label stands at place i of its line, from the sixth on nowhere."""
    images = made.context("test").images("test").first(8)
    others = [[c for c in range(10) if c != label] for label in images.labels]
    lines = [[*row[:place], int(label), *row[place:]] for place, (row, label) in
             enumerate(zip(others, images.labels, strict=True))]  # fmt: skip
    most_likely = np.array([line[:5] for line in lines])
    metrics, _ = write_predictions(tmp_path, images, most_likely[:, 0], most_likely=most_likely)
    assert {name: (one.value, one.n) for name, one in metrics.items()} == {
        "top1_percent": (12.5, 8), "top5_percent": (62.5, 8),
    }  # fmt: skip
    few, _ = write_predictions(tmp_path, images, most_likely[:, 0], most_likely=most_likely[:, :4])
    assert set(few) == {"top1_percent"}, "of four classes there are no five"


# What is refused ---------------------------------------------------------------------------------------


def test_tokens_that_do_not_lie_on_the_trunks_patches(tmp_path: Path) -> None:
    def smaller(images: ImagePart) -> npt.NDArray[np.int64]:
        return np.zeros((len(images), 4), dtype=np.int64)

    of_four = stand_in(grid=2)
    made = Made.of(tmp_path, smaller, pretraining=of_four, test=of_four)
    with pytest.raises(HarnessError, match="k-pixel gives 4 tokens an image, the trunk has 16 patches"):
        run(made.context("token-vit"))


def test_stores_of_two_fittings(tmp_path: Path) -> None:
    made = Made.of(tmp_path, of_the_label, test=stand_in(digest="1" * 64))
    with pytest.raises(HarnessError, match=r"tokenise-k-pixel-.* were made by differently fitted tokenizers"):
        run(made.context("token-mlp"))


def test_a_store_that_is_gone_or_was_replaced(tmp_path: Path) -> None:
    made = Made.of(tmp_path, of_the_label)
    cell = made.cells["test"]
    (manifest,) = tmp_path.glob(f"tokens/*/test/{MANIFEST_NAME}")
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(HarnessError, match=f"is not the one that was recorded.*{cell.id}, and run with --re"):
        run(made.context("token-mlp"))


def test_classes_that_are_not_those_of_the_evaluated_images(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = CellContext.images

    def one_class_less(self: CellContext, name: str, **more: Any) -> ImagePart:
        part = images(self, name, **more)
        return replace(part, classes=part.classes[:9]) if name == "test" else part

    monkeypatch.setattr(CellContext, "images", one_class_less)
    with pytest.raises(HarnessError, match=r"training images \(10\) are not those of its test images \(9\)"):
        run(made.context("token-mlp"))


def test_a_parent_that_is_not_done(tmp_path: Path) -> None:
    made = Made.of(tmp_path, of_the_label)
    (made.context("test").folder / "record.json").unlink()
    with pytest.raises(HarnessError, match=r"cell tokenise-k-pixel-test-\w+, which this one needs, is not"):
        run(made.context("token-vit"))
