"""Errors about data sets, as tests/error_cases.py builds them into cases."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmark.data_check import manifest_path
from benchmark.data_listing import list_class_folders
from benchmark.data_manifest import write_manifest
from tests.error_settings import folder_of

SCRATCH = "--protocol fair300 --methods scratch --trunks vit-t --data-root data"


@contextmanager
def damaged_imagenet(folder: Path) -> Iterator[None]:
    """Two classes of four and two files with their manifest; then a class, and half of a file, are lost."""
    root = folder / "data"
    for class_name in ("n01440764", "n01443537"):
        for split, count in (("train", 4), ("val", 2)):
            (root / "imagenet-1k" / split / class_name).mkdir(parents=True)
            for number in range(count):
                path = root / "imagenet-1k" / split / class_name / f"{class_name}_{number}.JPEG"
                path.write_bytes(bytes(1000))
    splits = (("train", "train"), ("test", "val"))
    listings = [list_class_folders(root / "imagenet-1k", split=split, name=name) for split, name in splits]
    entries = [entry for listing in listings for entry in listing.entries()]
    write_manifest(manifest_path("imagenet-1k", root), "imagenet-1k", entries)
    shutil.rmtree(root / "imagenet-1k" / "train" / "n01443537")
    (root / "imagenet-1k" / "val" / "n01440764" / "n01440764_1.JPEG").write_bytes(bytes(500))
    yield


@contextmanager
def damaged_manifest(folder: Path) -> Iterator[None]:
    """A folder of images and a manifest that is no such file."""
    for split in ("train", "test"):
        path = folder / "data" / "mine" / split / "cat" / "1.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    (folder / "mine.tsv.gz").write_bytes(b"notes")
    yield


DATA_CASES: tuple[dict[str, Any], ...] = (
    {"title": "data that is not whole", "command": SCRATCH, "setting": damaged_imagenet,
     "given": "1 class of the manifest missing: train/n01443537 (4 images)",
     "where": "val/n01440764/n01440764_1.JPEG (500 of 1,000 bytes)", "remedy": "fetch or extract them again"},
    {"title": "a manifest that is none", "command": f"{SCRATCH} --manifest mine.tsv.gz",
     "setting": damaged_manifest, "given": "is damaged", "where": "manifest mine.tsv.gz",
     "remedy": "give another with --manifest"},
    {"title": "a data set's name", "command": "data imagenet --data-root data", "setting": folder_of("data"),
     "given": "'imagenet'", "where": "data set", "remedy": "did you mean 'imagenet-1k'"},
    {"title": "a data set that is not there", "command": "data food-101 --data-root data",
     "setting": folder_of("data"), "given": "no train and no test images", "where": "data/food-101",
     "remedy": "d.Food101('data', download=True)"},
    {"title": "a number of images to decode", "command": "data fashion-mnist-12k --decode some",
     "given": "'some'", "where": "--decode", "remedy": "nor all"},
    {"title": "a manifest after a sample", "command": "data folder-mine --write-manifest --decode 5",
     "given": "'5'", "where": "--write-manifest", "remedy": "give --decode all with it"},
)  # fmt: skip
