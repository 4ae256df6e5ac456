"""Faults of a data set in words: what is missing, extra, cut short or odd, each with what to do. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmark.commands.text import count
from benchmark.data_listing import PUBLISHED, SplitListing
from benchmark.data_manifest import Differences, Entry, Manifest, compare
from benchmark.image_part import ImagePart
from benchmark.inputs import Missing, external_set
from benchmark.plugins import words_of_plugins
from protocols.errors import HarnessError

MOST_NAMED = 10


class Faults:
    """Faults of one data set in words, each with what to do."""

    def __init__(self, data_set: str, data_root: Path) -> None:
        self.data_set = data_set
        external = external_set(data_set)
        assert external is not None
        self.folder = folder = data_root / external.folder
        self.writing = _writing_command(data_set, data_root)
        self.restore = f"fetch or extract them again into {folder}: {external.remedy(data_root)}"
        self.remove = (
            f"move them out of {folder}; if they belong there, write the manifest anew: {self.writing}"
        )
        self.rewrite = f"fetch the manifest again, or write it anew: {self.writing}"

    def of_listing(self, listing: SplitListing) -> Iterator[Missing]:
        """Odd and empty files."""
        where = f"data set {self.data_set}, {listing.split}"
        if listing.odd:
            what = f"{where}: {_files(listing.odd)} no image of a class folder: {_named(listing.odd)}"
            yield Missing(what, "nothing is passed over silently: move them away")
        empty = listing.empty_files()
        if empty:
            yield Missing(f"{where}: {_files(empty)} empty (0 bytes): {_named(empty)}", self.restore)

    def of_files(self, manifest: Manifest | None, split: str) -> Iterator[Missing]:
        """What the manifest says of the files of a split whose reader gives up at the first fault."""
        if manifest is None or split not in manifest.splits:
            return
        try:
            found = [
                Entry(split, entry.class_name, entry.image_id, path.stat().st_size)
                for entry in manifest.entries()
                if entry.split == split and (path := self.folder / entry.image_id).is_file()
            ]
            if found:  # images in an archive are no files
                differences = compare(found, manifest, splits=[split])
                yield from self.of_differences(differences, names_empty=True)
        except HarnessError as error:
            yield Missing(str(error), self.rewrite)

    def of_counts(self, images: ImagePart, split: str, stop: int | None) -> Iterator[Missing]:
        """Counts of a whole split that are not those published, or less than the `stop` that is wanted."""
        where = f"data set {self.data_set}, {split}"
        published = PUBLISHED.get(self.data_set, {}).get(split)
        labels = len(np.unique(images.labels))
        if published is not None and stop == published.images:
            if (len(images), labels) != (published.images, published.classes):
                what = (
                    f"{where}: {len(images):,} images in {classes(labels)}; the published data set has "
                    f"{published.images:,} in {published.classes:,}"
                )
                yield Missing(what, self.restore if len(images) <= published.images else self.remove)
        elif stop is not None and len(images) < stop:
            what = f"{where}: {len(images):,} images in {classes(labels)}; the first {stop:,} are wanted"
            yield Missing(what, self.restore)

    def of_classes(self, listings: Iterable[SplitListing]) -> Iterator[Missing]:
        """Class folders that one split has and another has not: labels would not mean the same."""
        splits = list(listings)
        everywhere = {name for listing in splits for name in listing.classes}
        for listing in splits:
            gone = sorted(everywhere - set(listing.classes))
            if gone:
                what = f"data set {self.data_set}, {listing.split}: no folder of {classes(len(gone))} that "
                yield Missing(f"{what}another split has: {_named(gone)}", self.restore)

    def of_splits(self, manifest: Manifest, splits: Iterable[str]) -> Iterator[Missing]:
        """Splits of which the manifest says nothing."""
        for split in splits:
            if split not in manifest.splits:
                what = f"manifest {manifest.path} lists no images of {split} of data set {self.data_set}"
                yield Missing(what, self.rewrite)

    def of_differences(self, found: Differences, *, names_empty: bool = False) -> Iterator[Missing]:
        """What the manifest says otherwise; empty files only if nothing else names them."""
        set_name = f"data set {self.data_set}"
        for words, groups, remedy in (
            ("of the manifest missing", found.classes_missing, self.restore),
            ("not in the manifest", found.classes_extra, self.remove),
        ):
            if groups:
                names = [f"{split}/{name} ({count(images, 'image')})" for split, name, images in groups]
                yield Missing(f"{set_name}: {classes(len(names))} {words}: {_named(names)}", remedy)
        for words, entries, remedy in (
            ("of the manifest missing", found.missing, self.restore),
            ("not in the manifest", found.extra, self.remove),
        ):
            if entries:
                names = [entry.image_id for entry in entries]
                yield Missing(f"{set_name}: {count(len(names), 'file')} {words}: {_named(names)}", remedy)
        resized = [_resized(entry, stated) for entry, stated in found.resized if entry.bytes or names_empty]
        if resized:
            what = f"{count(len(resized), 'file')} not as long as the manifest says: {_named(resized)}"
            yield Missing(f"{set_name}: {what}", self.restore)


def _resized(entry: Entry, stated: int) -> str:
    return f"{entry.image_id} ({entry.bytes:,} of {stated:,} bytes)"


def classes(number: int) -> str:
    """`1 class`, `2 classes`."""
    return "1 class" if number == 1 else f"{number:,} classes"


def _files(names: Sequence[str]) -> str:
    return f"{count(len(names), 'file')} {'is' if len(names) == 1 else 'are'}"


def _writing_command(data_set: str, data_root: Path) -> str:
    """The command that decodes all images and writes the manifest."""
    words = ["data", data_set, "--data-root", str(data_root), "--write-manifest", *words_of_plugins()]
    return f"python run_benchmark.py {shlex.join(words)}"


def _named(names: Sequence[str]) -> str:
    """At most ten of them, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
