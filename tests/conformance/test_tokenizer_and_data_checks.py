"""`check` of a tokenizer and of a data set finds what is broken, and by the right name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmark import conformance_tokenizer
from benchmark.cli import main
from benchmark.conformance import Finding, examined
from benchmark.conformance_data import DATA, DataSetUnderTest
from benchmark.conformance_tokenizer import TOKENIZER, TokenizerUnderTest
from benchmark.data import open_part, register_data_set
from benchmark.data_sets import DataSetSpec, unregister_data_set
from protocols import load_protocol
from tests.plugins.plugin_texts import TOKENIZER as PLUGIN
from tests.plugins.plugin_texts import changed
from tokenizers.base import Tokenizer
from tokenizers.specs import TokenizerSpec

ROOT = Path(__file__).parent.parent.parent
LABELS = np.arange(30) % 3


class Brightness(Tokenizer):
    """The mean of a patch in 16 steps."""

    image_size, grid, codebook_size, is_fitted = 28, 4, 16, True

    def encode(self, images: Tensor) -> Tensor:
        means = images.unfold(2, 7, 7).unfold(3, 7, 7).mean((1, 4, 5)).flatten(1)
        return (means * 15.99).long()

    def weights(self) -> dict[str, Tensor]:
        return {"steps": torch.tensor([16])}

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        return None


class NeverReady(Brightness):
    is_fitted = False

    def fit(self, images: Any, *, report: Any = None) -> None:
        type(self).is_fitted = True


class TooFine(Brightness):
    grid = 7


class CountsToTen(Brightness):
    codebook_size = 10


class SeesTheBatch(Brightness):
    def encode(self, images: Tensor) -> Tensor:
        return super().encode(images - images.mean() + 0.5) % 16


class Guesses(Brightness):
    def encode(self, images: Tensor) -> Tensor:
        return torch.randint(16, (len(images), 16))


class SaysOneThing(Brightness):
    def encode(self, images: Tensor) -> Tensor:
        return 0 * super().encode(images)


class StretchesImages(Brightness):
    def transform(self, image: Image.Image) -> Tensor:
        pixels = np.asarray(image.convert("RGB").resize((28, 28)), dtype=np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1) / 255


class ForgetsItsSteps(Brightness):
    def __init__(self, spec: TokenizerSpec, config: Mapping[str, Any]) -> None:
        super().__init__(spec, config)
        self.steps = torch.randint(2**31, (1,), generator=torch.Generator().manual_seed(next(_SEEDS)))

    def weights(self) -> dict[str, Tensor]:
        return {"steps": self.steps}


_SEEDS = iter(range(100))
TOKENIZERS: dict[type[Tokenizer], set[str]] = {
    Brightness: set(),
    NeverReady: {"is made ready", "unfitted"},
    TooFine: {"grid", "tokens"},
    CountsToTen: {"tokens"},
    SeesTheBatch: {"independence"},
    Guesses: {"independence", "no random numbers", "repeats", "saved and loaded"},
    SaysOneThing: {"use"},
    StretchesImages: {"geometry"},
    ForgetsItsSteps: {"repeats", "saved and loaded"},
}


def failures(found: list[Finding]) -> set[str]:
    return {one.what for one in found if one.status == "FAILED"}


@pytest.mark.parametrize("broken", TOKENIZERS, ids=lambda one: one.__name__)
def test_what_is_broken_in_a_tokenizer_is_found(
    broken: type[Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = load_protocol(str(ROOT / "tests" / "tiny.yaml"))
    spec = TokenizerSpec(
        name="mine",
        target=f"{__name__}:{broken.__name__}",
        summary="brightness",
        teacher="none",
        hyperparameters=(),
        sources=(__file__,),
    )
    monkeypatch.setattr(conformance_tokenizer, "build_tokenizer", lambda name, **config: broken(spec, config))
    part = open_part("fashion-mnist-12k", "pretraining", protocol.data.pretraining)
    subject = TokenizerUnderTest(spec, {}, protocol, part.first(24))
    assert failures(list(examined(TOKENIZER, subject))) == TOKENIZERS[broken]


def _images(split: str) -> np.ndarray:
    return np.random.default_rng(split == "test").integers(0, 256, (30, 8, 8), dtype=np.uint8)


def _fresh(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng().integers(0, 256, (30, 8, 8), dtype=np.uint8), LABELS


READERS = {
    "whole": (lambda folder, split: (_images(split), LABELS), set()),
    "one class is empty": (
        lambda folder, split: (_images(split), LABELS % 2),
        {"labels of train", "labels of test"},
    ),
    "another each time": (_fresh, {"train repeats", "test repeats"}),
}


@pytest.fixture
def registered(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[DataSetUnderTest, set[str]]]:
    read, expected = READERS[request.param]
    spec = DataSetSpec(
        name="mine", summary="noise", licence="none", classes=("a", "b", "c"), needs=("images",),
        remedy="make some", read=read, origin="a test",
    )  # fmt: skip
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "images").touch()
    register_data_set(spec)
    yield DataSetUnderTest("mine", tmp_path), expected
    unregister_data_set("mine")


@pytest.mark.parametrize("registered", READERS, indirect=True)
def test_what_is_broken_in_a_data_set_is_found(registered: tuple[DataSetUnderTest, set[str]]) -> None:
    subject, expected = registered
    found = list(examined(DATA, subject))
    assert failures(found) == expected
    if not expected:
        (told,) = [one.found for one in found if one.what == "overlap"]
        assert told.startswith("none of the images")


def test_test_images_among_the_training_images_are_counted(tmp_path: Path) -> None:
    arrays = _images("train"), LABELS
    spec = DataSetSpec(
        name="mine", summary="noise", licence="none", classes=("a", "b", "c"), needs=("images",),
        remedy="make some", read=lambda folder, split: arrays, origin="a test",
    )  # fmt: skip
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "images").touch()
    register_data_set(spec)
    try:
        found = list(examined(DATA, DataSetUnderTest("mine", tmp_path)))
    finally:
        unregister_data_set("mine")
    (told,) = [one.found for one in found if one.what == "overlap"]
    assert told == "30 of 30 test images looked at are pixel for pixel training images"


@pytest.mark.parametrize(
    ("text", "code", "shown"),
    [
        (
            PLUGIN.replace('source="trunk"', 'source="as the trunk has it"'),
            0,
            "grid: 4 x 4 tokens, one for each patch of vit-tiny-test",
        ),
        (
            changed(PLUGIN, ('config["grid"]', 'config["gird"]')),
            1,
            "class: KeyError at mine.py, line 14: 'gird'",
        ),
    ],
)
def test_sizes_follow_the_trunk_and_a_constructor_that_fails_is_a_finding(
    text: str, code: int, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(text)
    words = ["check", "brightness", "--protocol", "tests/tiny.yaml", "--plugin", str(tmp_path / "mine.py")]
    assert main(words) == code
    assert shown in " ".join(capsys.readouterr().out.split())
