"""`data NAME`: is a data set whole, can its images be decoded? And its manifest."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from benchmark.commands.options import Parser, check_least
from benchmark.commands.text import count, paragraph
from benchmark.data import open_split
from benchmark.data_check import DataCheck, PartSummary, check_files, manifest_path
from benchmark.data_faults import classes
from benchmark.data_listing import PUBLISHED
from benchmark.data_manifest import write_manifest
from benchmark.decoding import decode
from benchmark.image_part import ImagePart
from benchmark.inputs import EMBEDDED_SETS, EXTERNAL_SETS, FOLDER_PREFIX, external_set
from protocols.errors import HarnessError, unknown

SUMMARY = "check a data set: counts, classes, file sizes, damaged images"
DESCRIPTION = """\
Is a data set whole? Hold its images against the published counts, and every
file's size against the manifest if there is one. With --decode, also decode
images, and name each one that cannot be read.

The manifest states the size of every file. --write-manifest writes it beside
the data, once the counts are right and every image was decoded; from then on
a run names what is missing or cut short before it starts. CIFAR is held
against a digest whenever it is read, and Fashion-MNIST against the sizes that
its files state.

examples:
  python run_benchmark.py data imagenet-1k --data-root DIR
  python run_benchmark.py data imagenet-1k --data-root DIR --workers 16 \\
      --write-manifest
  python run_benchmark.py data folder-mine --data-root DIR --decode 1000

exit codes: 0 nothing is wrong; 1 something is: all of it is named; 2 usage,
or the data set is not there
"""
WHOLE, DAMAGED = 0, 1
SPLITS = ("train", "test")
EVERY_SECONDS = 1.0


def add_arguments(parser: Parser) -> None:
    """Which data set, and how closely to look."""
    parser.add_argument(
        "data_set", metavar="NAME", help="its name, as in a protocol; folder-F for a folder F"
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder that holds the data sets")
    parser.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="the manifest, where it is not to lie beside the data (a data root that is read-only)",
    )
    parser.add_argument(
        "--decode",
        metavar="N",
        help="images of each split to decode, drawn at random, or all (default: none)",
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="decoding processes (default: 0)")
    parser.add_argument(
        "--write-manifest",
        action="store_true",
        help="decode all images, then write the manifest; the one that is there is replaced",
    )
    parser.add_argument(
        "--subset",
        action="store_true",
        help="the images are a part of the published ones: take as many as there are",
    )


def run(options: Namespace) -> int:
    """Look, say what was found, write the manifest if asked."""
    check_least(("--workers", options.workers, 0))
    name = options.data_set.lower()
    wanted = _wanted(options)
    check, path = DataCheck(name), None
    if name in EMBEDDED_SETS:
        check.splits |= {split: open_split(name, split) for split in SPLITS}
    else:
        data_root = _provided(name, options.data_root)
        path = options.manifest or manifest_path(name, data_root)
        published = {} if options.subset else PUBLISHED.get(name, {})
        check_files(
            check,
            {split: published[split].images if published else None for split in SPLITS},
            data_root=data_root,
            manifest=options.manifest,
            is_compared=not options.write_manifest,
        )
    if options.write_manifest and not check.problems and not check.listings:
        raise HarnessError(f"data set {name} needs no manifest: it is read whole before a run")
    for split, images in check.splits.items():
        _print_split(split, images)
    if check.remark and not check.problems and not options.write_manifest:
        print(paragraph(check.remark, rest="  "))
    _print_problems(check)
    damaged = []
    if not (options.write_manifest and check.problems):
        damaged = [one for split in check.splits.values() for one in _decode(split, wanted, options.workers)]
    if damaged:
        print(f"{count(len(damaged), 'image')} cannot be read; fetch them again:")
        for image_id, reason in damaged:
            print(f"  {image_id}: {reason}")
    if check.problems or damaged:
        if options.write_manifest:
            print("no manifest was written")
        return DAMAGED
    if options.write_manifest:
        assert path is not None  # embedded sets, which have none, are refused above
        entries = (entry for listing in check.listings.values() for entry in listing.entries())
        manifest = write_manifest(path, name, entries)
        listed = sum(split.images for split in manifest.splits.values())
        print(f"wrote {path}: the sizes of {count(listed, 'image')}")
    return WHOLE


def _wanted(options: Namespace) -> int | None:
    """Images of each split to decode; None means all."""
    if options.decode == "all" or (options.write_manifest and options.decode is None):
        return None
    if options.write_manifest:
        raise HarnessError(
            f"--write-manifest vouches for every image: give --decode all with it, not {options.decode!r}"
        )
    given = options.decode or "0"
    if not (given.isascii() and given.isdecimal() and len(given) < 12):
        raise HarnessError(f"--decode: {given!r} is neither a number of images nor all")
    return int(given)


def _provided(name: str, data_root: Path | None) -> Path:
    """The data root, if the data set called `name` is there. HarnessError, with the remedy, if it is not."""
    external = external_set(name)
    if external is None:
        raise unknown("data set", name, (*EMBEDDED_SETS, *EXTERNAL_SETS, f"{FOLDER_PREFIX}NAME"))
    if data_root is None:
        raise HarnessError(f"data set {name} lies under the data root; give --data-root DIR")
    absent = [split for split in SPLITS if external.way(data_root, split) is None]
    if absent:
        raise HarnessError(
            f"data set {name}: no {' and no '.join(absent)} images in {data_root / external.folder}; "
            f"{external.remedy(data_root)}"
        )
    return data_root


def _print_split(split: str, images: ImagePart) -> None:
    summary = PartSummary.of(images)
    words = f"{count(summary.images, 'image')} of {classes(summary.classes)}"
    print(f"{images.data_set}, {split}: {words}\n  digest {summary.digest}")


def _print_problems(check: DataCheck) -> None:
    for one, following in zip_longest(check.problems, check.problems[1:]):
        print(paragraph(one.what, first="- ", rest="  "))
        if one.remedy and (following is None or following.remedy != one.remedy):
            print(paragraph(one.remedy, first="    ", rest="    "))


def _decode(images: ImagePart, wanted: int | None, workers: int) -> list[tuple[str, str]]:
    """Id and reason of the images that were to be decoded and cannot be; says how many were."""
    if wanted == 0:
        return []
    positions: Sequence[int] = range(len(images))
    if wanted is not None and wanted < len(images):
        drawn = np.random.default_rng(0).choice(len(images), size=wanted, replace=False)
        positions = np.sort(drawn).tolist()
    found: list[tuple[str, str]] = []
    done, said, began = 0, time.monotonic(), time.monotonic()
    is_shown = sys.stderr.isatty()
    for some in decode(images, positions, workers=workers):
        done += some.images
        found += some.unreadable
        if is_shown and time.monotonic() - said > EVERY_SECONDS:
            said = time.monotonic()
            rate = done / (said - began)
            text = f"\r  {done:,} of {len(positions):,} decoded, {rate:,.0f} images/s"
            print(text, end="", file=sys.stderr, flush=True)
    if is_shown:
        print("\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)
    print(f"{images.name}: decoded {count(done, 'image')}, {len(found)} of them cannot be")
    return sorted(found)
