"""Image folders: which files, in which order, decoded how, and what is said of damaged ones."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from benchmark.data import open_images, open_part
from benchmark.disk_trouble import DiskTrouble
from benchmark.image_files import DamagedImage, FilePart
from benchmark.image_part import square_pixels
from protocols.errors import HarnessError
from protocols.schema import Part
from tests.benchmark.imagenet_folder import COUNT, PER_CLASS, WNIDS, make_imagenet
from tokenizers import build_tokenizer

ALL = Part(split="train", start=0, count=COUNT)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_imagenet(tmp_path)
    return tmp_path


def opened(root: Path, part: Part = ALL) -> FilePart:
    images = open_part("imagenet-1k", "pretraining", part, data_root=root)
    assert isinstance(images, FilePart)
    return images


def test_order_is_by_class_then_name_and_ids_are_paths(root: Path) -> None:
    images = opened(root)
    names = [
        sorted(path.name for path in (root / "imagenet-1k" / "train" / wnid).iterdir()) for wnid in WNIDS
    ]
    expected = [
        f"train/{wnid}/{name}" for wnid, of_class in zip(WNIDS, names, strict=True) for name in of_class
    ]
    assert list(images.image_ids) == expected
    assert images.classes == WNIDS
    assert images.labels.tolist() == [0] * PER_CLASS + [1] * PER_CLASS + [2] * PER_CLASS
    assert images.sample_ids.tolist() == list(range(COUNT))


def test_a_part_is_a_range_of_that_order_and_the_test_split_lies_in_val(root: Path) -> None:
    make_imagenet(root, split="val", seed=1)
    whole, some = opened(root), opened(root, Part(split="train", start=10, count=20))
    assert some.image_ids == whole.image_ids[10:30]
    assert some.sample_ids.tolist() == list(range(10, 30))
    assert np.array_equal(some.labels, whole.labels[10:30])
    assert some.first(5).image_ids == whole.image_ids[10:15]
    assert some.first(5).bytes_of_files.tolist() == whole.bytes_of_files[10:15].tolist()
    test = opened(root, Part(split="test", start=0, count=3))
    assert all(image_id.startswith("val/n01440764/") for image_id in test.image_ids)


def test_hidden_files_are_passed_over_and_others_are_named(root: Path) -> None:
    before = opened(root).digest
    stray = root / "imagenet-1k" / "train" / WNIDS[1]
    (stray / ".DS_Store").write_bytes(b"x")
    assert opened(root).digest == before
    (stray / "notes.txt").write_bytes(b"x")
    with pytest.raises(HarnessError, match=r"notes\.txt: no image by its ending .*move it away"):
        opened(root)
    (stray / "notes.txt").rename(stray.parent / "lost.JPEG")
    with pytest.raises(HarnessError, match=r"lost\.JPEG: no class folder; .*move it away"):
        opened(root)
    (stray.parent / "lost.JPEG").unlink()
    (stray / "a\nb.JPEG").write_bytes(b"x")
    with pytest.raises(HarnessError, match=r"a\\nb\.JPEG': its name is no printable UTF-8 text; rename it"):
        opened(root)
    (stray / "a\nb.JPEG").unlink()
    (stray / os.fsdecode(b"\xff.JPEG")).write_bytes(b"x")
    with pytest.raises(HarnessError, match=r"\\xff\.JPEG': its name is no printable"):
        opened(root)


def test_a_failing_disk_is_no_damaged_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    images = opened(root)
    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(DiskTrouble, match="Input/output error"):
        images.image(0)


def test_the_digest_knows_ids_labels_and_sizes(root: Path) -> None:
    before = opened(root)
    path = root / "imagenet-1k" / before.image_ids[4]
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    assert opened(root).digest != before.digest
    path.write_bytes(content)
    assert opened(root).digest == before.digest
    path.rename(path.with_name("z.JPEG"))
    assert opened(root).digest != before.digest


def test_times_of_writing_tell_apart_what_sizes_do_not(root: Path) -> None:
    part = opened(root)
    path = root / "imagenet-1k" / part.image_ids[4]
    before, written = part.last_written(), path.stat().st_mtime_ns
    assert opened(root).last_written() == before
    os.utime(path, ns=(written, written + 1))
    assert opened(root).digest == part.digest
    assert opened(root).last_written() != before


def test_too_few_images_and_no_folder_are_errors(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        HarnessError, match=f"wants images 0 to {COUNT + 1} of train, which has {COUNT} in 3 classes"
    ):
        opened(root, Part(split="train", start=0, count=COUNT + 1))
    with pytest.raises(
        HarnessError, match=r"imagenet-1k has no class folders in val, nor ILSVRC2012_img_val\.tar and"
    ):
        opened(root, Part(split="test", start=0, count=1))
    with pytest.raises(HarnessError, match="give --data-root DIR"):
        open_part("imagenet-1k", "pretraining", ALL)


@pytest.mark.parametrize("oddity", range(5), ids=["grey", "cmyk", "png", "exif", "plain"])
@pytest.mark.parametrize("size", [28, 112])
def test_odd_files_give_the_pixels_of_the_shared_square(root: Path, oddity: int, size: int) -> None:
    images = opened(root)
    path = root / "imagenet-1k" / "train" / WNIDS[0] / f"{WNIDS[0]}_{oddity * 7919 % 10007}.JPEG"
    position = images.image_ids.index(str(path.relative_to(root / "imagenet-1k")))
    # By hand: as decoded, RGB, the centred square of the original, bicubic.
    with Image.open(path) as plain:
        assert plain.format == ("PNG" if oddity == 2 else "JPEG")
        rgb = plain.convert("RGB")
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    square = rgb.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    expected = np.asarray(square).transpose(2, 0, 1)
    # The pre-training pixels, and the tokenizer's.
    assert np.array_equal(square_pixels(images.image(position), size), expected)
    tokenizer = build_tokenizer("k-pixel", image_size=size, patch_size=size // 4)
    transformed = tokenizer.transform(images.image(position))
    assert np.array_equal((transformed * 255).round().numpy().astype(np.uint8), expected)
    if oddity == 3:
        turned = square_pixels(ImageOps.exif_transpose(Image.open(path)), size)
        assert not np.array_equal(turned, expected)


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_file_is_an_error_that_names_it(root: Path, damage: str) -> None:
    images = opened(root)
    path = root / "imagenet-1k" / images.image_ids[20]
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"no image"}[damage])
    with pytest.raises(DamagedImage, match=f"{images.image_ids[20]} cannot be read as an image") as caught:
        images.image(20)
    assert caught.value.image_id == images.image_ids[20]
    images.image(19)


def test_images_are_found_by_id_and_nothing_outside_the_folder_is_read(root: Path) -> None:
    images = opened(root)
    (root / "secret.JPEG").write_bytes((root / "imagenet-1k" / images.image_ids[0]).read_bytes())
    found = open_images("imagenet-1k", [images.image_ids[7], images.image_ids[2]], data_root=root)
    assert np.array_equal(np.asarray(found.image(1)), np.asarray(images.image(2)))
    for bad in ("../secret.JPEG", "train/../../secret.JPEG", str(root / "secret.JPEG")):
        with pytest.raises(HarnessError, match="leads out of"):
            open_images("imagenet-1k", [bad], data_root=root)
    gone = open_images("imagenet-1k", ["train/nothing.JPEG"], data_root=root)
    with pytest.raises(DamagedImage, match=r"train/nothing\.JPEG cannot be read"):
        gone.image(0)
    embedded = open_images("fashion-mnist-12k", ["test/0000003"])
    there = open_part("fashion-mnist-12k", "test", Part(split="test", start=3, count=1))
    assert np.array_equal(np.asarray(embedded.image(0)), np.asarray(there.image(0)))
    for bad in ("test/9999999", "test/-1", "val/0000001", "x"):
        with pytest.raises(HarnessError, match="has no image"):
            open_images("fashion-mnist-12k", [bad])


def test_images_of_more_than_8_bits_are_refused_and_not_clipped(root: Path) -> None:
    images = opened(root)
    path = root / "imagenet-1k" / images.image_ids[20]
    Image.fromarray(np.full((40, 50), 30000, dtype=np.uint16)).save(path, "PNG")
    with pytest.raises(DamagedImage, match=r"mode I;16: only images of 8 bits a channel are read"):
        images.image(20)
