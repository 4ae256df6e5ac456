"""Pre-training on image files and on their pack: the same weights, whoever reads the pixels."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmark import pretrain, tokenise
from benchmark.image_files import DamagedImage
from benchmark.image_part import ImagePart
from benchmark.packing import Packing
from benchmark.plan import make_plan, select
from benchmark.pretrain import PretrainingBatches, PretrainingObjective
from benchmark.record_cell import write_cell_record
from benchmark.runtime import Runtime
from benchmark.stage import CellContext
from methods import build_method
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.schema import Protocol
from tests.benchmark.imagenet_folder import imagenet_protocol, make_imagenet

TINY = str(Path(__file__).parent.parent / "tiny.yaml")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    make_imagenet(folder / "data")
    imagenet_protocol(folder)
    return folder


@pytest.fixture(scope="module")
def pretraining(root: Path) -> CellContext:
    """The pre-training of MIM on a folder of image files, which are tokenised and packed."""
    protocol = load_protocol(str(root / "mine.yaml"))
    plan = make_plan(protocol, select(protocol, methods=["mim"]))
    runtime = Runtime(device="cpu", jobs=1, threads=1)
    contexts = {
        cell.stage: CellContext(
            cell=cell, protocol=protocol, runtime=runtime, work_dir=root / "runs", data_root=root / "data"
        )
        for cell in plan
    }
    tokenising = contexts["tokenise"]
    result = tokenise.run(tokenising)
    write_cell_record(tokenising.cell, protocol, runtime, root / "runs", status="done", result=result)
    packing = Packing(images_of(tokenising), size=protocol.data.image_size, work_dir=root / "runs")
    assert packing.make(workers=0, progress=lambda _: None, say=pytest.fail) == []
    return contexts["pretrain"]


def images_of(context: CellContext) -> ImagePart:
    return context.images("pretraining")


def trained(context: CellContext, folder: Path, **runtime: Any) -> tuple[float, dict[str, str]]:
    """The last loss and the digests of the weights of a training in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CellContext, "folder", folder)
        result = pretrain.run(replace(context, runtime=Runtime(device="cpu", jobs=1, threads=1, **runtime)))
    return result.metrics["loss"].value, result.artefacts


def test_files_and_pack_train_the_same_weights(
    pretraining: CellContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_from_files = trained(pretraining, tmp_path / "files", images="files")
    assert trained(pretraining, tmp_path / "workers", images="files", workers=2) == read_from_files
    with monkeypatch.context() as patch:
        patch.setattr("benchmark.image_files.FilePart.image", lambda *_: pytest.fail("a file was decoded"))
        for images, workers in (("packed", 0), ("auto", 2)):
            folder = tmp_path / f"{images}-{workers}"
            assert trained(pretraining, folder, images=images, workers=workers) == read_from_files
    # And other pixels would have been seen.
    monkeypatch.setattr("benchmark.packed.PackedImages.read", darker)
    assert trained(pretraining, tmp_path / "darker", images="packed") != read_from_files


def darker(pack: Any, positions: np.ndarray) -> np.ndarray:
    return np.full((len(positions), 3, 28, 28), 3, dtype=np.uint8)


def test_a_pack_that_was_asked_for_and_is_not_there_is_an_error(
    pretraining: CellContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmark.packed.PACKED_NAME", "elsewhere")
    with pytest.raises(HarnessError, match=r"there is no whole pack .* run_benchmark\.py pack"):
        trained(pretraining, tmp_path / "missing", images="packed")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named_in_one_line(
    pretraining: CellContext, root: Path, tmp_path: Path, workers: int
) -> None:
    image_id = images_of(pretraining).image_ids[9]
    path = root / "data" / "imagenet-1k" / image_id
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    try:
        with pytest.raises(DamagedImage) as caught:
            trained(pretraining, tmp_path / "damaged", images="files", workers=workers)
    finally:
        path.write_bytes(content)
    assert str(caught.value).startswith(f"{image_id} cannot be read as an image (")
    assert len(str(caught.value).splitlines()) == 1
    # The loader is in these frames; left to the garbage collection, it would wait 10 s for its processes.
    traceback.clear_frames(caught.tb)


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    return load_protocol(TINY)


def parts(protocol: Protocol) -> tuple[PretrainingObjective, PretrainingBatches]:
    method = build_method(
        "mim", trunk=protocol.trunk_spec("vit-tiny-test", drop_path=0.0), codebook_size=16, mask_count=8
    )
    pixels = np.random.default_rng(0).integers(256, size=(32, 3, 28, 28)).astype(np.uint8)
    batches = PretrainingBatches(
        method,
        read=pixels.__getitem__,
        sample_ids=np.arange(32) * 1000,
        tokens=np.zeros((32, 16), np.int64).__getitem__,
        jitter=protocol.pretraining.color_jitter,
        seed=5,
    )
    return PretrainingObjective(method, mean=protocol.data.mean, std=protocol.data.std), batches


def test_jitter_is_the_images_own_however_they_are_batched(protocol: Protocol) -> None:
    objective, batches = parts(protocol)
    positions = np.array([9, 4, 30, 2])
    together = objective.images(batches(positions, 3))
    apart = [objective.images(batches(positions[[index]], 3)) for index in (2, 0, 3, 1)]
    assert torch.equal(torch.cat(apart), together[[2, 0, 3, 1]])
    assert not torch.equal(objective.images(batches(positions, 4)), together)
    # Only numbers that are the same on every device travel with the pixels.
    batch = batches(positions, 3)
    assert (batch["pixels"].dtype, batch["pixels"].shape) == (torch.uint8, (4, 3, 28, 28))
    assert batch["jitter_factors"].shape == batch["jitter_order"].shape == (4, 3)
    assert 0.6 <= batch["jitter_factors"].min() < batch["jitter_factors"].max() <= 1.4


def test_jitter_is_float32_under_autocast(protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, batches = parts(protocol)
    batch = batches(np.arange(8), 0)
    seen: list[bool] = []

    def watched(step: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def watching(*arguments: Any) -> torch.Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return step(*arguments)

        return watching

    for name in ("color_jitter", "normalise"):
        monkeypatch.setattr(pretrain, name, watched(getattr(pretrain, name)))
    with torch.autocast("cpu", torch.bfloat16):
        images = objective.images(batch)
    assert seen == [False, False]  # none of these operations shows it on a CPU
    assert images.dtype == torch.float32
    assert torch.equal(images, objective.images(batch))


def test_without_jitter_pixels_are_normalised_alone(protocol: Protocol) -> None:
    still = load_protocol(TINY, overrides=["pretraining.color_jitter=0"])
    objective, batches = parts(still)
    batch = batches(np.arange(4), 0)
    assert not {"jitter_factors", "jitter_order"} & set(batch)
    expected = (batch["pixels"].numpy() / 255 - 0.286) / 0.353
    np.testing.assert_allclose(objective.images(batch).numpy(), expected, atol=1e-5)
