"""Manifests of data sets: written, read as streams, compared, and refused where they are not whole."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from benchmark.data_manifest import Entry, compare, open_manifest, write_manifest
from protocols.errors import HarnessError

ENTRIES = [
    Entry("train", "n01", "train/n01/a.JPEG", 120),
    Entry("train", "n01", "train/n01/b.JPEG", 2**33),
    Entry("train", "n02", "train/n02/a.JPEG", 1),
    Entry("test", "n01", "val/n01/ä b.JPEG", 7),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_manifest(tmp_path / "manifest.tsv.gz", "folder-mine", ENTRIES)
    return tmp_path / "manifest.tsv.gz"


def rewrite(path: Path, old: str, new: str) -> None:
    text = gzip.decompress(path.read_bytes()).decode()
    assert old in text
    path.write_bytes(gzip.compress(text.replace(old, new, 1).encode()))


def test_a_manifest_gives_back_what_was_written_in_its_order(path: Path) -> None:
    manifest = open_manifest(path, "folder-mine")
    assert list(manifest.entries()) == sorted(ENTRIES)
    assert {split: (one.images, one.classes) for split, one in manifest.splits.items()} == {
        "train": (3, 2),
        "test": (1, 1),
    }


def test_its_bytes_depend_on_its_images_alone(path: Path) -> None:
    shuffled = random.Random(0).sample(ENTRIES, len(ENTRIES))
    other = path.with_name("elsewhere.tsv.gz")
    write_manifest(other, "folder-mine", shuffled)
    assert other.read_bytes() == path.read_bytes()


def test_it_is_lines_of_text_for_any_reader(path: Path) -> None:
    first, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert json.loads(first)["splits"]["train"] == {"images": 3, "classes": 2}
    assert lines[0].split("\t") == ["test", "n01", "val/n01/ä b.JPEG", "7"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("train/n02/a.JPEG\t1", "train/n02/a.JPEG\t0", "which no image has"),
        ("train/n02/a.JPEG\t1", f"train/n02/a.JPEG\t{2**41}", "which no image has"),
        ("train/n02/a.JPEG\t1", "train/n02/a.JPEG\t" + "9" * 4000, "which no image has"),
        ("train/n02/a.JPEG\t1", "train/n02/a.JPEG\t" + "9" * 5000, "longer than any manifest's"),
        ("train/n02/a.JPEG\t1", "train/n02/a.JPEG\t-1", "line 5 is not SPLIT, CLASS, ID and BYTES"),
        ("train/n02/a.JPEG\t1", "train/n02/a.JPEG", "line 5 is not SPLIT"),
        ("train/n02/a.JPEG", "../../etc/passwd", "leads out of the data set's folder"),
        ("train/n02/a.JPEG", "/etc/passwd", "leads out of the data set's folder"),
        ("train/n01/b.JPEG", "train/n01/a.JPEG", "line 4 is out of order, or stands there twice"),
        ("test\tn01", "holiday\tn01", "line 2 names split 'holiday'"),
        ('"images": 3', '"images": 4', "lists 3 images in 2 classes of train and states 4 in 2"),
        ('"classes": 2', '"classes": 9', "lists 3 images in 2 classes of train and states 3 in 9"),
        ('"images": 3', '"images": 0', "its first line is no manifest's"),
        ('"version": 1', '"version": 2', "reads fair-mim-manifest 1"),
        ("{", "[", "its first line is no manifest's"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(path: Path, old: str, new: str, reason: str) -> None:
    rewrite(path, old, new)
    with pytest.raises(HarnessError, match=r"manifest .*manifest\.tsv\.gz") as caught:
        list(open_manifest(path, "folder-mine").entries())
    assert reason in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip", "nothing", "no last line end", "not text"])
def test_damaged_bytes_are_told(path: Path, damage: str) -> None:
    content = path.read_bytes()
    text = gzip.decompress(content)
    path.write_bytes(
        {
            "cut": content[:-9],
            "flipped": content[:-8] + bytes([content[-8] ^ 1]) + content[-7:],  # of the check sum
            "no gzip": text,
            "nothing": b"",
            "no last line end": gzip.compress(text[:-1]),
            "not text": gzip.compress(text + b"\xff\xfe\n"),
        }[damage]
    )
    with pytest.raises(HarnessError, match="is damaged"):
        list(open_manifest(path, "folder-mine").entries())


def test_another_data_sets_manifest_is_refused(path: Path) -> None:
    with pytest.raises(HarnessError, match="is that of data set folder-mine, not of imagenet-1k"):
        open_manifest(path, "imagenet-1k")


def test_no_manifest_at_all(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no such file"):
        open_manifest(tmp_path / "nothing.tsv.gz")


def test_names_that_are_no_text_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="rename it"):
        write_manifest(tmp_path / "m.tsv.gz", "folder-mine", [Entry("train", "a", "train/a/x\ty.png", 3)])
    assert not list(tmp_path.iterdir())


def test_what_is_whole_does_not_differ(path: Path) -> None:
    manifest = open_manifest(path, "folder-mine")
    found = compare(sorted(ENTRIES), manifest, splits=["train", "test"])
    assert found == type(found)()
    only_train = [entry for entry in sorted(ENTRIES) if entry.split == "train"]
    assert compare(only_train, manifest, splits=["train"]) == type(found)()


def test_differences_are_those_of_sets(tmp_path: Path) -> None:
    """Against plain sets, on many random pairs of listings."""
    for seed in range(60):
        rng = random.Random(seed)
        names = [("train", f"c{label}", f"train/c{label}/{name}") for label in range(4) for name in "abc"]
        here = {name: rng.choice([5, 6]) for name in names if rng.random() < 0.6}
        there = {name: rng.choice([5, 6]) for name in names if rng.random() < 0.6}
        if not there:
            continue
        manifest = write_manifest(
            tmp_path / "m.tsv.gz", "folder-mine", [Entry(*name, size) for name, size in there.items()]
        )
        listed = sorted(Entry(*name, size) for name, size in here.items())
        found = compare(listed, manifest, splits=["train"])
        classes_here, classes_there = {name[1] for name in here}, {name[1] for name in there}
        assert {name for _, name, _ in found.classes_missing} == classes_there - classes_here
        assert {name for _, name, _ in found.classes_extra} == classes_here - classes_there
        both = classes_here & classes_there
        assert {entry[:3] for entry in found.missing} == {n for n in set(there) - set(here) if n[1] in both}
        assert {entry[:3] for entry in found.extra} == {n for n in set(here) - set(there) if n[1] in both}
        assert {entry[:3]: size for entry, size in found.resized} == {
            name: there[name] for name in set(here) & set(there) if here[name] != there[name]
        }
