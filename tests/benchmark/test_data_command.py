"""`data NAME`: counts, manifest, damaged images, and what it writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark.cli import main
from benchmark.data import open_split
from benchmark.data_manifest import MANIFEST_NAME, open_manifest

PER_CLASS = 40  # more than one process decodes before it reports


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with folder-mine: two classes, train and test."""
    root = tmp_path_factory.mktemp("data_command")
    rng = np.random.default_rng(0)
    for split, count in (("train", PER_CLASS), ("test", 3)):
        for class_name in ("cat", "dog"):
            (root / "mine" / split / class_name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
                image.save(root / "mine" / split / class_name / f"{number:02d}.png")
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "data"))


def data(root: Path, *more: str, name: str = "folder-mine") -> int:
    return main(["data", name, "--data-root", str(root), *more])


def test_a_whole_set_is_told_with_its_digests(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data(root) == 0
    text = capsys.readouterr().out
    for split, images in (("train", 2 * PER_CLASS), ("test", 6)):
        assert f"folder-mine, {split}: {images} images of 2 classes" in text
        assert open_split("folder-mine", split, data_root=root).digest in text
    assert "file sizes were not compared" in text
    assert not (root / "mine" / MANIFEST_NAME).exists()


def test_the_manifest_is_written_when_every_image_was_decoded(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data(root, "--write-manifest", "--workers", "2") == 0
    path = root / "mine" / MANIFEST_NAME
    assert f"wrote {path}: the sizes of 86 images" in capsys.readouterr().out
    entries = list(open_manifest(path, "folder-mine").entries())
    assert {entry.image_id: entry.bytes for entry in entries} == {
        str(file.relative_to(root / "mine")): file.stat().st_size for file in (root / "mine").rglob("*.png")
    }
    assert data(root) == 0
    assert f"sizes of all files as in {path}" in " ".join(capsys.readouterr().out.split())
    (root / "mine" / "train" / "cat" / "07.png").write_bytes(b"longer or shorter")
    assert data(root) == 1
    assert "train/cat/07.png (17 of" in " ".join(capsys.readouterr().out.split())
    assert data(root, "--write-manifest") == 1, "it cannot be decoded"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_damaged_image_is_named_and_none_vouched_for(
    workers: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = [root / "mine" / name for name in ("test/dog/02.png", "train/cat/00.png", "train/dog/39.png")]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:50])
    assert data(root, "--decode", "all", "--workers", workers) == 1
    text = capsys.readouterr().out
    assert "3 images cannot be read" in text
    assert all(f"  {path.relative_to(root / 'mine')}: " in text for path in damaged)
    assert data(root, "--write-manifest", "--workers", workers) == 1
    assert "no manifest was written" in capsys.readouterr().out
    assert not (root / "mine" / MANIFEST_NAME).exists()


def test_a_sample_is_decoded(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data(root, "--decode", "5") == 0
    text = capsys.readouterr().out
    assert "train: decoded 5 images, 0 of them cannot be" in text
    assert "test: decoded 5 images" in text


def test_a_manifest_beside_a_data_root_that_is_not_written_to(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "mine.tsv.gz"
    assert data(root, "--write-manifest", "--manifest", str(elsewhere)) == 0
    assert not (root / "mine" / MANIFEST_NAME).exists()
    assert data(root, "--manifest", str(elsewhere)) == 0
    (root / "mine" / "test" / "dog" / "02.png").unlink()
    assert data(root, "--manifest", str(elsewhere)) == 1


def test_a_smaller_imagenet_is_one_only_if_it_is_said(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole / "mine" / "train", tmp_path / "imagenet-1k" / "train")
    shutil.copytree(whole / "mine" / "test", tmp_path / "imagenet-1k" / "val")
    assert data(tmp_path, "--write-manifest", name="imagenet-1k") == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "80 images in 2 classes; the published data set has 1,281,167 in 1,000" in text
    assert "decoded" not in text
    assert data(tmp_path, "--write-manifest", "--subset", name="imagenet-1k") == 0
    manifest = open_manifest(tmp_path / "imagenet-1k" / MANIFEST_NAME, "imagenet-1k")
    assert manifest.splits["test"].images == 6


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["folder-none"], "give --data-root DIR"),
        (["folder-none", "--data-root", "."], "no train and no test images in none; put its images into"),
        (["imagenet"], "did you mean 'imagenet-1k'"),
        (["fashion-mnist-12k", "--decode", "some"], "'some' is neither a number of images nor all"),
        (["fashion-mnist-12k", "--write-manifest"], "needs no manifest"),
        (["fashion-mnist-12k", "--write-manifest", "--decode", "5"], "give --decode all with it"),
        (["fashion-mnist-12k", "--workers", "-1"], "--workers must be 0 or more"),
    ],
)
def test_what_cannot_be_done_is_said(
    more: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *more]) == 2
    assert reason in capsys.readouterr().err
