"""A data set against what a protocol needs of it: both splits, sound labels, the same bytes twice.

What is measured on the way is what a protocol for it has to say: counts, classes, mean and deviation.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmark.conformance import Blocked, Check, Finding, info, judged
from benchmark.data import open_split
from benchmark.data_sets import registered_data_sets
from benchmark.image_part import ImagePart
from protocols.errors import HarnessError

SPLITS = ("train", "test")
DECODED = 2000  # of each split; all where it is smaller


@dataclass(frozen=True)
class DataSetUnderTest:
    """A data set by its name, under `data_root` where it has to lie somewhere."""

    name: str
    data_root: Path | None = None

    def open(self, split: str) -> ImagePart:
        """All images of `split`, read anew."""
        return open_split(self.name, split, data_root=self.data_root)

    def reads_alike(self, split: str) -> bool:
        """Whether a plug-in's reader, which the harness asks but once, gives the same twice."""
        spec = registered_data_sets().get(self.name)
        if spec is None or self.data_root is None:
            return True
        one, other = (spec.read(self.data_root / spec.place, split) for _ in range(2))
        if isinstance(one, list):
            return one == other
        return all(np.array_equal(mine, again) for mine, again in zip(one, other, strict=True))

    @property
    def files(self) -> Sequence[Path]:
        """The file of a plug-in's reader."""
        spec = registered_data_sets().get(self.name)
        source = None if spec is None else inspect.getsourcefile(spec.read)
        return [Path(source)] if source else []

    @cached_property
    def splits(self) -> dict[str, ImagePart]:
        """Both, kept open."""
        return {split: self.open(split) for split in SPLITS}

    def sample(self, split: str) -> list[int]:
        """Positions that are decoded: all, or spread evenly."""
        length = len(self.splits[split])
        return np.unique(np.linspace(0, length - 1, min(DECODED, length)).astype(int)).tolist()


def opens(subject: DataSetUnderTest) -> Iterator[Finding]:
    """Both splits are there, with the same classes."""
    parts = subject.splits
    train, test = parts["train"], parts["test"]
    yield judged(
        "splits",
        len(train) > 0 and len(test) > 0,
        good=f"{len(train):,} images to train on, {len(test):,} to test on",
        bad=f"{len(train):,} images to train on, {len(test):,} to test on: none is too few",
        remedy="give both splits: boards are made of test images",
    )
    if not (len(train) and len(test)):
        raise Blocked
    yield judged(
        "classes",
        train.classes == test.classes and len(set(train.classes)) == len(train.classes) > 1,
        good=f"{len(train.classes)}, the same in both splits: {_few(train.classes)}",
        bad=f"train {_few(train.classes)}; test {_few(test.classes)}",
        remedy="give both splits the same class names in the same order, each once: labels are their numbers",
    )


def labels(subject: DataSetUnderTest) -> Iterator[Finding]:
    """Labels are numbers of classes; each class has images."""
    for split, part in subject.splits.items():
        low, high, classes = int(part.labels.min()), int(part.labels.max()), len(part.classes)
        counts = np.bincount(part.labels[(part.labels >= 0) & (part.labels < classes)], minlength=classes)
        empty = [part.classes[number] for number in np.flatnonzero(counts == 0)]
        yield judged(
            f"labels of {split}",
            low >= 0 and high < classes and not empty,
            good=f"from {low} to {high}; {counts.min():,} to {counts.max():,} images a class",
            bad=f"from {low} to {high} for {classes} classes" + (f"; none of {_few(empty)}" if empty else ""),
            remedy="labels are positions in `classes`, from 0; leave out classes that have no images",
        )
        is_bound = len(part.image_ids) == len(part.labels) == len(part.sample_ids)
        is_unique = len(set(part.image_ids)) == len(part) == len(np.unique(part.sample_ids))
        yield judged(
            f"ids of {split}",
            is_bound and is_unique,
            good="each image has one of its own",
            bad="two images share one, or some image has none",
            remedy="name each image once: tokens and masks are found by its id",
        )


def repeats(subject: DataSetUnderTest) -> Iterator[Finding]:
    """Read a second time, it is the same."""
    for split, part in subject.splits.items():
        again = subject.open(split)
        positions = subject.sample(split)[:100]
        same = again.digest == part.digest and all(
            again.image(one).tobytes() == part.image(one).tobytes() for one in positions
        )
        same &= subject.reads_alike(split)
        yield judged(
            f"{split} repeats",
            same,
            good=f"read twice it is the same, digest {part.digest[:12]}",
            bad="read twice it is another",
            remedy="read in a fixed order (sorted names) and decode without random numbers",
        )


def images(subject: DataSetUnderTest) -> Iterator[Finding]:
    """They decode; none is in both splits; and what a protocol says of them."""
    digests: dict[str, Counter[bytes]] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    sums, squares, pixels = np.zeros(3), np.zeros(3), 0
    damaged: list[str] = []
    for split, part in subject.splits.items():
        digests[split] = Counter()
        for position in subject.sample(split):
            try:
                picture = part.image(position).convert("RGB")
            except HarnessError as error:
                damaged.append(f"{part.image_ids[position]} ({error})")
                continue
            sizes[picture.size] += 1
            content = picture.tobytes()
            digests[split][hashlib.blake2b(content, digest_size=16).digest()] += 1
            if split == "train":
                values = np.frombuffer(content, dtype=np.uint8).reshape(-1, 3) / 255
                sums += values.sum(0)
                squares += (values**2).sum(0)
                pixels += len(values)
    looked_at = {split: sum(one.values()) for split, one in digests.items()}
    told = " and ".join(f"{number:,} of {split}" for split, number in looked_at.items())
    yield judged(
        "decode",
        not damaged,
        good=f"{told}",
        bad=f"{len(damaged)} cannot be: {_few(damaged)}",
        remedy="provide these files again; the command `data NAME --decode all` names every one",
    )
    if not sizes:
        return
    shared = sum(number for key, number in digests["test"].items() if key in digests["train"])
    words = f"{shared:,} of {looked_at['test']:,} test images looked at are pixel for pixel training images"
    yield info("overlap", words if shared else f"none of the images looked at is in both splits ({told})")
    smallest, largest = min(sizes), max(sizes)
    shown = f"{smallest[0]} x {smallest[1]}"
    yield info(
        "size", f"{shown} pixels, all" if len(sizes) == 1 else f"from {shown} to {largest[0]} x {largest[1]}"
    )
    mean = sums / pixels
    deviation = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    yield info("for a protocol", f"mean: {_numbers(mean)}, std: {_numbers(deviation)} (of training images)")


def _numbers(values: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in values) + "]"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


DATA: tuple[Check[DataSetUnderTest], ...] = (
    Check("splits", opens, is_essential=True),
    Check("labels", labels),
    Check("repeats", repeats),
    Check("images", images),
)
