"""Every kind of data set that users bring, whole and damaged, held against its manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmark import torchvision_sets
from benchmark.data import open_part, open_split
from benchmark.data_check import DataCheck, check_data, check_files, manifest_path
from benchmark.data_manifest import write_manifest
from benchmark.inputs import external_set
from protocols.schema import Part
from tests.benchmark import published_sets as made

SPLITS = {"train": None, "test": None}  # as many images as there are
OF_FILES: dict[str, Callable[[Path], object]] = {
    "stanford-cars": made.make_stanford_cars,
    "food-101": made.make_food_101,
    "fgvc-aircraft": made.make_fgvc_aircraft,
    "imagenet-1k": made.make_whole_imagenet,
}


def checked(data_set: str, root: Path) -> DataCheck:
    check = DataCheck(data_set)
    check_files(check, SPLITS, data_root=root, manifest=None)
    return check


def with_manifest(data_set: str, root: Path) -> DataCheck:
    """The check of the set as it was made, after which its manifest is there."""
    check = checked(data_set, root)
    assert check.problems == []
    entries = [entry for listing in check.listings.values() for entry in listing.entries()]
    write_manifest(manifest_path(data_set, root), data_set, entries)
    return check


@pytest.mark.parametrize("data_set", OF_FILES)
def test_parts_are_told_as_readers_open_them(data_set: str, tmp_path: Path) -> None:
    OF_FILES[data_set](tmp_path)
    listed = with_manifest(data_set, tmp_path)
    parts = {
        f"a part of {split}": Part(split=split, start=1, count=len(images) - 1)
        for split, images in listed.splits.items()
    }
    check = check_data(data_set, parts, data_root=tmp_path)
    assert check.problems == []
    for name, part in parts.items():
        opened = open_part(data_set, name, part, data_root=tmp_path)
        assert (check.parts[name].images, check.parts[name].digest) == (len(opened), opened.digest)
    assert check.lines()[0].endswith(f"sizes of all files as in {manifest_path(data_set, tmp_path)}")


@pytest.mark.parametrize("data_set", OF_FILES)
def test_files_that_are_gone_cut_short_and_empty_are_named_together(data_set: str, tmp_path: Path) -> None:
    OF_FILES[data_set](tmp_path)
    train = with_manifest(data_set, tmp_path).splits["train"]
    external = external_set(data_set)
    assert external is not None
    gone, cut, empty = (tmp_path / external.folder / train.image_ids[row] for row in (0, 1, 2))
    gone.unlink()
    size = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[:100])
    empty.write_bytes(b"")
    text = "\n".join(one.what for one in checked(data_set, tmp_path).problems)
    assert f"1 file of the manifest missing: {train.image_ids[0]}" in text
    assert f"{train.image_ids[1]} (100 of {size:,} bytes)" in text
    assert text.count(train.image_ids[2]) == 1


@pytest.fixture
def archives(tmp_path: Path) -> Iterator[Path]:
    """ImageNet in its official archives."""
    made.make_whole_imagenet(tmp_path / "folders")
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path / "archives" / "imagenet-1k"
        made.archive_imagenet(tmp_path / "folders" / "imagenet-1k", folder, patch)
        yield tmp_path / "archives"


def test_archives_have_the_manifest_of_the_folders(archives: Path, tmp_path: Path) -> None:
    with_manifest("imagenet-1k", tmp_path / "folders")
    with_manifest("imagenet-1k", archives)
    of_folders, of_archives = (
        manifest_path("imagenet-1k", root).read_bytes() for root in (tmp_path / "folders", archives)
    )
    assert of_archives == of_folders
    tar = archives / "imagenet-1k" / "ILSVRC2012_img_train.tar"
    tar.write_bytes(tar.read_bytes()[:-20_000])
    (problem,) = checked("imagenet-1k", archives).problems
    assert f"{tar} is cut short or damaged" in problem.what


def test_pixels_in_memory_are_their_readers_business(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"train": made.labelled(20, 10), "test": made.labelled(8, 10)}
    monkeypatch.setattr(torchvision_sets, "CIFAR10_SHA256", made.binary_digest(splits))
    made.package_cifar(tmp_path / "cifar-10", splits, is_archive=False)
    parts = {"test": Part(split="test", count=8)}
    check = check_data("cifar-10", parts, data_root=tmp_path)
    assert check.parts["test"].digest == open_split("cifar-10", "test", data_root=tmp_path).digest
    assert check.lines()[0].endswith("its pixels are held against a digest when they are read")
    too_many = check_data("cifar-10", {"test": Part(split="test", count=9)}, data_root=tmp_path)
    classes = len(np.unique(splits["test"][1]))
    assert [one.what for one in too_many.problems] == [
        f"data set cifar-10, test: 8 images in {classes} classes; the first 9 are wanted"
    ]
    (tmp_path / "elsewhere").mkdir()
    made.package_cifar(tmp_path / "elsewhere" / "cifar-10", splits, is_archive=False)
    (tmp_path / "elsewhere" / "cifar-10" / "package" / "test_batch.png").write_bytes(b"")
    problems = checked("cifar-10", tmp_path / "elsewhere").problems
    assert problems
    assert all("test_batch.png" in one.what for one in problems)
