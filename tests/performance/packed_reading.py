"""How many images one core reads for pre-training at 224 x 224: from a pack, and from JPEG files.

    python -m tests.performance.packed_reading [IMAGES]

Makes JPEGs of ImageNet's usual size (500 x 375, soft shapes and noise), packs them, and reads both in
shuffled batches. A core's rate is images a second of CPU time, with the files in the page cache; the pack
is also read in wall time after its pages were dropped from the cache, where this file system allows it.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmark.data import open_part
from benchmark.image_part import ImagePart
from benchmark.packed import PackedImages, open_pack
from benchmark.packing import Packing
from benchmark.pixels import ImagePixels, ReadPixels
from protocols.schema import Part
from tests.performance.tokenizer_rates import photograph

SIZE, BATCH = 224, 64
IMAGES = 512
SECONDS = 5.0


def make_folder(data_root: Path, images: int) -> ImagePart:
    """`images` JPEGs of 10 classes, in ImageNet's layout."""
    for number in range(images):
        folder = data_root / "imagenet-1k" / "train" / f"n{number % 10:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}.JPEG").write_bytes(photograph(seed=number))
    return open_part("imagenet-1k", "pretraining", Part(split="train", count=images), data_root=data_root)


def batches(images: int) -> Iterator[npt.NDArray[np.int64]]:
    """Positions of shuffled batches, without end."""
    generator = np.random.default_rng(0)
    while True:
        order = generator.permutation(images)
        yield from (order[start : start + BATCH] for start in range(0, images - BATCH + 1, BATCH))


def rate(read: ReadPixels, images: int) -> float:
    """Images a second of CPU time."""
    drawn = batches(images)
    read(next(drawn))
    started, done = time.process_time(), 0
    while time.process_time() - started < SECONDS:
        done += len(read(next(drawn)))
    return done / (time.process_time() - started)


def uncached_rate(pack: PackedImages) -> float:
    """Images a second of wall time, every row once, after the kernel was asked to forget the file."""
    descriptor = os.open(pack.folder / "pixels.npy", os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    order = np.random.default_rng(1).permutation(len(pack))
    started = time.perf_counter()
    for start in range(0, len(pack), BATCH):
        pack.read(order[start : start + BATCH])
    return len(pack) / (time.perf_counter() - started)


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def main() -> None:
    """Print the rates."""
    images = int(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    with tempfile.TemporaryDirectory() as folder:
        part = make_folder(Path(folder), images)
        packing = Packing(part, size=SIZE, work_dir=Path(folder))
        started = time.process_time()
        packing.make(workers=0, progress=lambda _: None, say=print)
        packed_at = images / (time.process_time() - started)
        pack = open_pack(part, size=SIZE, work_dir=Path(folder))
        mapped = np.load(pack.folder / "pixels.npy", mmap_mode="r")
        from_files, from_pack = rate(ImagePixels(part, SIZE).read, images), rate(pack.read, images)
        print(f"{processor()}, {date.today()}: {images} images, {SIZE} x {SIZE}, one core")
        print(f"JPEG files: {from_files:.0f} images/s of CPU time; packing them: {packed_at:.0f}")
        print(f"pack:       {from_pack:.0f} images/s of CPU time, {from_pack / from_files:.0f} times as many")
        print(f"  mapped instead of read: {rate(mapped.__getitem__, images):.0f} images/s of CPU time")
        print(f"  not in the page cache: {uncached_rate(pack):.0f} images/s of wall time")


if __name__ == "__main__":
    main()
