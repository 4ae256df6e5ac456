"""Packs: their bytes, what a kill, damage and other decoders do to them, and who may read them."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark import packing
from benchmark.cli import main
from benchmark.data import open_part
from benchmark.image_part import ArrayPart, ImagePart, square_pixels
from benchmark.packed import MissingPack, UnusablePack, open_pack, read_manifest
from benchmark.packing import DAMAGED_NAME, DamagedRow, Packing
from benchmark.pixels import ImagePixels, pixel_reader
from protocols.errors import HarnessError
from protocols.schema import Part
from tests.benchmark.imagenet_folder import COUNT, imagenet_protocol, make_imagenet

ROOT = Path(__file__).parent.parent.parent
SIZE, SHARD = 28, 10  # 48 images: four shards and a shorter one
ALL = np.arange(COUNT)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PACK_SHARD_IMAGES", SHARD)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    make_imagenet(folder)
    imagenet_protocol(folder)
    return folder


def part(data: Path) -> ImagePart:
    return open_part("imagenet-1k", "pretraining", Part(split="train", count=COUNT), data_root=data)


@dataclass
class Made:
    """One command's work: what it said, the images that it went through, and those that were damaged."""

    packing: Packing
    said: list[str] = field(default_factory=list)
    images: int = 0
    damaged: list[DamagedRow] = field(default_factory=list)


def pack(images: ImagePart, work_dir: Path, *, workers: int = 0, verify: bool = False) -> Made:
    """As the command does it."""
    made = Made(Packing(images, size=SIZE, work_dir=work_dir))
    with made.packing.exclusive():
        if verify:
            made.packing.verify(workers=workers, progress=lambda _: None, say=made.said.append)
        if not made.packing.is_whole():

            def progress(now: packing.Progress) -> None:
                made.images = now.total

            made.damaged = made.packing.make(workers=workers, progress=progress, say=made.said.append)
    return made


def expected(images: ImagePart) -> np.ndarray:
    return np.stack([square_pixels(image, SIZE) for image in images.images()])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pack_holds_the_squares_of_its_images(data: Path, tmp_path: Path, workers: int) -> None:
    made = pack(part(data), tmp_path, workers=workers)
    assert (made.images, made.said) == (COUNT, [])
    opened = open_pack(part(data), size=SIZE, work_dir=tmp_path)
    np.testing.assert_array_equal(opened.read(ALL), expected(part(data)))
    np.testing.assert_array_equal(opened.read(np.array([40, 0, 40])), expected(part(data))[[40, 0, 40]])
    # The file is a plain array: whoever likes maps it.
    mapped = np.load(opened.folder / "pixels.npy", mmap_mode="r")
    np.testing.assert_array_equal(mapped.transpose(0, 3, 1, 2), expected(part(data)))
    assert pack(part(data), tmp_path).images == 0
    for position in (-1, COUNT):
        with pytest.raises(IndexError, match="48 packed images"):
            opened.read(np.array([position]))
    again = pickle.loads(pickle.dumps(opened))
    np.testing.assert_array_equal(again.read(ALL), opened.read(ALL))


# The command in a process of its own, which stops at image 30 of the only shard that is left to it.
STUCK = """
import os, sys, time
from pathlib import Path
from benchmark import image_files, packing
from benchmark.cli import main
packing.PACK_SHARD_IMAGES = 10
read = image_files.FilePart.image
def image(self, position):
    if position == 35:
        Path(sys.argv[1]).write_text(str(os.getpid()))
        time.sleep(60)
    return read(self, position)
image_files.FilePart.image = image
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_ended_command_leaves_nothing_running_and_goes_on_where_it_was(
    data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    arguments = ["--protocol", str(data / "mine.yaml"), "--data-root", str(data), "--workers", "2"]
    stuck = tmp_path / "stuck"
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(stuck), "pack", *arguments, "--work-dir", str(tmp_path / "runs")],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    work = Packing(part(data), size=SIZE, work_dir=tmp_path / "runs")
    wait_until(lambda: stuck.exists() and work.shards.done_count() == 4)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert ("The same command goes on from here" in errors) is (number != signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{stuck.read_text()}").exists())
    with pytest.raises(MissingPack):
        open_pack(part(data), size=SIZE, work_dir=tmp_path / "runs")
    assert pack(part(data), tmp_path / "runs").images == SHARD
    whole = pack(part(data), tmp_path / "whole")
    assert contents(work.folder) == contents(whole.packing.folder)


def wait_until(is_so: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("pixels.npy", "manifest.json")}


def test_damaged_images_are_all_named_and_move_their_own_shards_alone(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "data")
    ids = part(data).image_ids
    for position in (3, 5, 47):
        path = tmp_path / "data" / "imagenet-1k" / ids[position]
        path.write_bytes(path.read_bytes()[:60])
    arguments = ["--protocol", str(data / "mine.yaml"), "--data-root", str(tmp_path / "data")]
    command = ["pack", *arguments, "--work-dir", str(tmp_path / "runs"), "--workers", "2"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert f"3 of 48 images cannot be decoded: {ids[3]}, {ids[5]}, {ids[47]} (all, with reasons" in said
    work = Packing(part(tmp_path / "data"), size=SIZE, work_dir=tmp_path / "runs")
    listed = (work.unfinished / DAMAGED_NAME).read_text().splitlines()
    assert [line.partition("\t")[0] for line in listed] == [ids[3], ids[5], ids[47]]
    assert work.shards.done_count() == 3
    assert not work.folder.exists()
    with pytest.raises(HarnessError, match=r"make it with python run_benchmark\.py pack"):
        pixel_reader(part(data), SIZE, choice="packed", work_dir=tmp_path / "runs")
    # The files as they were have other sizes, and the part another digest: what is whole stays all the same.
    assert pack(part(data), tmp_path / "runs").images == 18
    opened = open_pack(part(data), size=SIZE, work_dir=tmp_path / "runs")
    np.testing.assert_array_equal(opened.read(ALL), expected(part(data)))
    assert not list((tmp_path / "runs" / "packed").glob(".*.unfinished"))


@pytest.mark.parametrize("harm", ["altered", "cut", "gone", "longer", "header"])
def test_damage_is_found_and_made_anew(data: Path, tmp_path: Path, harm: str) -> None:
    folder = pack(part(data), tmp_path).packing.folder
    before, pixels = contents(folder), folder / "pixels.npy"
    content = pixels.read_bytes()
    at = 50 if harm == "header" else len(content) - 25 * SIZE * SIZE * 3  # in the third shard
    altered = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    damaged = {"cut": content[:at], "longer": content + b"\0", "gone": b""}.get(harm, altered)
    pixels.write_bytes(damaged) if damaged else pixels.unlink()
    if harm in ("cut", "gone", "longer"):
        with pytest.raises(UnusablePack, match=f"{len(damaged)} bytes instead of {len(content)}"):
            pixel_reader(part(data), SIZE, choice="auto", work_dir=tmp_path)
    made = pack(part(data), tmp_path, verify=True, workers=2)
    assert made.images == {"altered": 10, "cut": 28, "gone": COUNT}.get(harm, 0)
    assert ["made anew" in line for line in made.said] == [True]
    assert contents(folder) == before
    assert pack(part(data), tmp_path, verify=True).said == []


def test_unfinished_work_is_verified_too(data: Path, tmp_path: Path) -> None:
    whole = pack(part(data), tmp_path / "whole").packing
    shutil.copytree(whole.folder, (half := Packing(part(data), size=SIZE, work_dir=tmp_path)).unfinished)
    (half.unfinished / "manifest.json").unlink()
    half.shards.mark_open(4)
    with (half.unfinished / "pixels.npy").open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"altered")
    assert pack(part(data), tmp_path, verify=True).images == 18
    assert contents(half.folder) == contents(whole.folder)


def test_an_edited_manifest_is_refused_and_its_shards_are_held_against_their_own_digests(
    data: Path, tmp_path: Path
) -> None:
    folder = pack(part(data), tmp_path).packing.folder
    before = contents(folder)
    manifest = read_manifest(folder)
    assert manifest is not None
    of_others = manifest.model_copy(update={"data_digest": "0" * 64}).sealed().model_dump_json().encode()
    for edited in (
        before["manifest.json"].replace(b'"images": 48', b'"images": 47'),
        b"{",
        b"[[]]",
        of_others,
    ):
        (folder / "manifest.json").write_bytes(edited)
        with pytest.raises(UnusablePack, match=r"manifest.* --verify"):
            open_pack(part(data), size=SIZE, work_dir=tmp_path)
        with pytest.raises(UnusablePack):
            pack(part(data), tmp_path)
        made = pack(part(data), tmp_path, verify=True)
        assert made.images == 0
        assert contents(folder) == before


def test_a_pack_by_other_decoders_is_not_this_pack(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pack(part(data), tmp_path).packing.folder
    manifest = read_manifest(folder)
    assert manifest is not None
    others = {**manifest.decoders, "Pillow": "9.5.0"}
    other = manifest.model_copy(update={"decoders": others}).sealed()
    (folder / "manifest.json").write_text(other.model_dump_json())
    for choice in ("auto", "packed"):
        with pytest.raises(UnusablePack, match=r"Pillow 9\.5\.0 then, .* now.*--images files"):
            pixel_reader(part(data), SIZE, choice=choice, work_dir=tmp_path)
    read = pixel_reader(part(data), SIZE, choice="files", work_dir=tmp_path)
    np.testing.assert_array_equal(read(ALL), expected(part(data)))
    command = ["pack", "--protocol", str(data / "mine.yaml"), "--data-root", str(data)]
    for more in ([], ["--verify"]):
        assert main([*command, "--work-dir", str(tmp_path), *more]) == 2
        assert "delete the folder and give the command pack again" in " ".join(
            capsys.readouterr().err.split()
        )
    assert json.loads((folder / "manifest.json").read_text())["decoders"] == others


def test_unfinished_work_by_other_decoders_is_dropped_and_said_to_be(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = packing.decoders()
    monkeypatch.setattr(packing, "decoders", lambda: {**here, "libjpeg": "8"})
    old = Packing(part(data), size=SIZE, work_dir=tmp_path)
    old.shards.prepare()
    monkeypatch.setattr(packing, "decoders", lambda: here)
    made = pack(part(data), tmp_path)
    assert "is dropped" in made.said[0]
    assert made.images == COUNT


def test_where_pixels_are_read_is_chosen_and_logged(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="benchmark.pixels")
    images, positions = part(data), np.array([7, 30, 2])
    seen = [pixel_reader(images, SIZE, choice="auto", work_dir=tmp_path)(positions)]
    folder = pack(images, tmp_path).packing.folder
    for choice in ("auto", "packed", "files"):
        seen.append(pixel_reader(images, SIZE, choice=choice, work_dir=tmp_path)(positions))
    for one in seen:
        np.testing.assert_array_equal(one, expected(images)[positions])
        # The layout moves the last bits of what is computed from them.
        assert one.strides == seen[0].strides
    assert [record.message for record in caplog.records] == [
        "pixels are read from the images, batch by batch",
        *[f"pixels are read from the pack {folder}"] * 2,
        "pixels are read from the images, batch by batch",
    ]


def test_small_arrays_are_kept_in_memory_as_they_always_were(tmp_path: Path) -> None:
    images = open_part("fashion-mnist-12k", "pretraining", Part(split="train", count=20))
    kept = pixel_reader(images, SIZE, choice="auto", work_dir=tmp_path)
    assert isinstance(images, ArrayPart)
    before = images.pixels(SIZE)[[5, 3]]
    np.testing.assert_array_equal(kept(np.array([5, 3])), before)
    assert kept(np.array([5, 3])).strides == ImagePixels(images, SIZE).read(np.array([5, 3])).strides
    assert pack(images, tmp_path).images == 20
    packed = pixel_reader(images, SIZE, choice="packed", work_dir=tmp_path)
    np.testing.assert_array_equal(packed(np.array([5, 3])), before)


def test_two_commands_do_not_pack_the_same_images_at_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pack", "--protocol", str(data / "mine.yaml"), "--data-root", str(data)]
    with Packing(part(data), size=SIZE, work_dir=tmp_path).exclusive():
        assert main([*command, "--work-dir", str(tmp_path)]) == 2
    assert "another process packs these images" in capsys.readouterr().err
    assert main([*command, "--work-dir", str(tmp_path), "--quiet"]) == 0
    shown = capsys.readouterr()
    assert "48 images of imagenet-1k, 28 x 28" in shown.out
    assert shown.err == ""
    assert main([*command, "--work-dir", str(tmp_path), "--workers", "-1"]) == 2


def test_a_disk_without_room_is_named_before_anything_is_decoded(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", ["free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000))
    monkeypatch.setattr("benchmark.image_files.FilePart.image", lambda *_: pytest.fail("decoded"))
    with pytest.raises(HarnessError, match=r"packing needs .* GB more"):
        pack(part(data), tmp_path)


def test_a_reading_process_that_is_killed_is_an_error_and_what_was_finished_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, read = part(data), type(part(data)).image

    def image(self: ImagePart, position: int) -> Image.Image:
        if position == 15:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, position)

    with monkeypatch.context() as patch:
        patch.setattr(type(images), "image", image)
        with pytest.raises(HarnessError, match="was killed by SIGKILL"):
            pack(images, tmp_path, workers=5)
    made = pack(images, tmp_path)
    assert SHARD <= made.images <= COUNT
    assert contents(made.packing.folder) == contents(pack(images, tmp_path / "whole").packing.folder)
