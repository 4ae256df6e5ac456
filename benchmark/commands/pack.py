"""`pack`: decode the images of pre-training once, so that every training reads raw pixels."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from benchmark.commands.options import Parser, add_protocol
from benchmark.commands.text import count, size
from benchmark.data import open_part
from benchmark.image_part import ImagePart
from benchmark.layout import check_work_dir
from benchmark.packing import DAMAGED_NAME, DamagedRow, Packing, Progress
from benchmark.stopping import Stopped, stopped_by_signals
from protocols import load_protocol
from protocols.errors import HarnessError

SUMMARY = "decode the images of pre-training once, for all methods"
DESCRIPTION = """\
Crop, resize and store the images that a protocol pre-trains on, as raw pixels
in one file under WORK_DIR/packed: 150 kB an image at 224 x 224, 193 GB for
ImageNet-1k. Trainings then read pixels instead of decoding files (--images);
their numbers are the same to the bit. The same command again goes on where it
stopped.

examples:
  python run_benchmark.py pack --protocol fair300 --data-root DIR --workers 16
  python run_benchmark.py pack --protocol fair300 --data-root DIR --verify

exit codes: 0 the pack is whole; 1 some images cannot be decoded: all are
named, and there is no pack; 2 usage, or something is missing; 130 and 143
interrupted
"""
WHOLE, DAMAGED = 0, 1
MOST_NAMED = 10
EVERY_SECONDS = 10.0


def add_arguments(parser: Parser) -> None:
    """Which images, and how to make the pack."""
    add_protocol(parser)
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder that holds the data sets")
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="PATH=VALUE",
        help="change a protocol value: trainings with other images need another pack",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="image-reading processes (default: 0)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="read what is packed and make anew what is damaged"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(options: Namespace) -> int:
    """Make the pack, or go on; or check one."""
    if options.workers < 0:
        raise HarnessError(f"--workers must be 0 or more, got {options.workers}")
    data = load_protocol(options.protocol, overrides=options.set).data
    check_work_dir(options.work_dir)
    images = open_part(data.name, "pretraining", data.pretraining, data_root=options.data_root)
    packing = Packing(images, size=data.image_size, work_dir=options.work_dir)
    verified = None
    try:
        with packing.exclusive(), stopped_by_signals(), _Line(is_silent=options.quiet) as line:
            if options.verify:
                verified = packing.verify(workers=options.workers, progress=line, say=line.say)
            if not packing.is_whole():
                damaged = packing.make(workers=options.workers, progress=line, say=line.say)
                if damaged:
                    line.say(_refusal(damaged, images, packing))
                    return DAMAGED
    except Stopped as stopped:
        print(
            f"\nstopped by {stopped}; what was finished is kept. The same command goes on from here.",
            file=sys.stderr,
        )
        return stopped.exit_code
    if verified is not None:
        print(f"read again and held against their digests: {count(verified, 'image')}")
    print(
        f"{packing.folder}\n  {count(len(images), 'image')} of {images.data_set}, {data.image_size} x "
        f"{data.image_size}, {size(packing.bytes)}; trainings in this work dir read it (--images auto)"
    )
    return WHOLE


def _refusal(damaged: Sequence[DamagedRow], images: ImagePart, packing: Packing) -> str:
    named = ", ".join(row.image_id for row in damaged[:MOST_NAMED])
    more = f" and {len(damaged) - MOST_NAMED} more" if len(damaged) > MOST_NAMED else ""
    return (
        f"error: {len(damaged)} of {len(images)} images cannot be decoded: {named}{more} (all, with reasons, "
        f"in {packing.unfinished / DAMAGED_NAME}); there is no pack without them: fetch them again and give "
        "the command again, which goes on from what was finished"
    )


class _Line:
    """Progress on stderr: one line that changes, or, in a file or a pipe, one every ten seconds."""

    def __init__(self, *, is_silent: bool) -> None:
        self._is_silent, self._is_terminal = is_silent, sys.stderr.isatty()
        self._started = self._said = time.monotonic()
        self._width = 0

    def __call__(self, progress: Progress) -> None:
        """Show it where it is due."""
        now = time.monotonic()
        if progress.images == 0:
            self._started = now
        is_due = self._is_terminal or now - self._said >= EVERY_SECONDS or progress.images == progress.total
        if self._is_silent or not is_due:
            return
        self._said = now
        rate = progress.images / max(now - self._started, 1e-9)
        text = f"{progress.what}: {progress.images:,} of {progress.total:,} images"
        if progress.images and now > self._started:
            text += f", {rate:,.0f} images/s, {(progress.total - progress.images) / rate:,.0f} s left"
        if self._is_terminal:
            print(f"\r{text:<{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A sentence of its own, quiet or not."""
        self.end()
        print(text, file=sys.stderr)

    def end(self) -> None:
        """Leave the line that changes as it is."""
        if self._width:
            print(file=sys.stderr)
            self._width = 0

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
