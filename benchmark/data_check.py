"""Is a data set whole? Its files are held against published counts and its manifest; all faults at once.

No image is decoded here, and no torch is loaded for class folders; sets that torchvision reads load it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.data import check_same_classes, open_part, open_split
from benchmark.data_faults import Faults, classes
from benchmark.data_listing import SplitListing, list_class_folders, listing_of
from benchmark.data_manifest import MANIFEST_NAME, Manifest, compare, open_manifest
from benchmark.data_sets import registered_data_sets
from benchmark.image_part import ImagePart
from benchmark.inputs import CLASS_FOLDERS, EMBEDDED_SETS, Missing, external_set
from protocols.errors import HarnessError
from protocols.schema import Part

DIGEST_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class PartSummary:
    """What is said of one part: how many images of how many classes, and the digest that records keep."""

    images: int
    classes: int
    digest: str

    @classmethod
    def of(cls, part: ImagePart) -> PartSummary:
        """That of `part`."""
        return cls(images=len(part), classes=len(part.classes), digest=part.digest)


@dataclass
class DataCheck:
    """What was found of one data set: its splits' files, its parts, and everything that is wrong.

    `splits` are whole ones. `listings` have none of a set whose reader holds its pixels against a digest.
    `parts` are there where nothing is wrong.
    """

    data_set: str
    problems: list[Missing] = field(default_factory=list)
    splits: dict[str, ImagePart] = field(default_factory=dict)
    listings: dict[str, SplitListing] = field(default_factory=dict)
    parts: dict[str, PartSummary] = field(default_factory=dict)
    manifest: Manifest | None = None
    remark: str = ""

    def lines(self) -> list[str]:
        """What a person is told of it."""
        parts = [
            f"{name} {one.images:,} images of {classes(one.classes)} (digest {one.digest[:DIGEST_SHOWN]})"
            for name, one in self.parts.items()
        ]
        return [f"data {self.data_set}: {'; '.join([*parts, self.remark])}"]


def check_data(
    data_set: str,
    wanted: Mapping[str, Part],
    *,
    data_root: Path | None,
    manifest: Path | None = None,
) -> DataCheck:
    """Hold the splits of the parts `wanted` against what is published and a manifest, and open the parts.

    `manifest` is its file where it does not lie in the data set's folder. A split of which less is wanted
    than was published needs no more than that. Splits that are not there at all are left out:
    `benchmark.inputs` names them.
    """
    check = DataCheck(data_set, remark="comes with the repository")
    external = external_set(data_set)
    if external is not None and data_root is not None:
        wanted = {name: part for name, part in wanted.items() if external.way(data_root, part.split)}
        stops: dict[str, int | None] = {}
        for part in wanted.values():
            stops[part.split] = max(stops.get(part.split) or 0, part.start + part.count)
        check_files(check, stops, data_root=data_root, manifest=manifest)
    elif data_set in EMBEDDED_SETS:
        _check_embedded(check, wanted)
    if check.splits and not check.problems:
        cut = {
            part: check.splits[part.split].cut(part.start, part.start + part.count)
            for part in wanted.values()
        }
        summaries = {part: PartSummary.of(images) for part, images in cut.items()}
        check.parts |= {name: summaries[part] for name, part in wanted.items()}
    return check


def check_files(
    check: DataCheck,
    stops: Mapping[str, int | None],
    *,
    data_root: Path,
    manifest: Path | None,
    is_compared: bool = True,
) -> None:
    """List the splits of `stops`, which are there, and add what is wrong with them to `check`.

    A split needs as many images as `stops` says, and if these are all that were published no more; None
    takes as many as there are. The manifest is looked at only if `is_compared`.
    """
    faults = Faults(check.data_set, data_root)
    problems: list[Missing] = []
    if is_compared:
        try:
            check.manifest = find_manifest(check.data_set, data_root=data_root, given=manifest)
        except HarnessError as error:
            problems.append(Missing(str(error), faults.rewrite))
    for split, stop in stops.items():
        try:
            check.splits[split], listing = _list_split(check.data_set, split, data_root)
        except HarnessError as error:
            problems += [Missing(str(error), ""), *faults.of_files(check.manifest, split)]
            continue
        if listing is not None:
            check.listings[split] = listing
            problems += faults.of_listing(listing)
        problems += faults.of_counts(check.splits[split], split, stop)
    problems += _compared(check, faults)
    if len(stops) == len(check.splits) == 1:
        problems += _of_other_split(check, data_root)
    check.remark = "its pixels are held against a digest when they are read"
    if check.data_set in registered_data_sets():
        check.remark = "no digest of its images is known beforehand; records keep that of what was read"
    if check.data_set == "fashion-mnist":
        check.remark = "no digest of its unpacked files is published; records keep that of its pixels"
    if check.listings and check.manifest is not None:
        check.remark = f"sizes of all files as in {check.manifest.path}"
    elif check.listings:
        check.remark = f"file sizes were not compared, there is no manifest ({faults.writing} writes it)"
    # What the same command provides stands together.
    remedies = list(dict.fromkeys(one.remedy for one in problems))
    check.problems += sorted(dict.fromkeys(problems), key=lambda one: remedies.index(one.remedy))


def find_manifest(data_set: str, *, data_root: Path, given: Path | None = None) -> Manifest | None:
    """The manifest in the file `given`, else in the data set's folder; None if there is none."""
    path = given or manifest_path(data_set, data_root)
    return open_manifest(path, data_set) if given is not None or path.is_file() else None


def manifest_path(data_set: str, data_root: Path) -> Path:
    """Where the manifest lies beside its data."""
    external = external_set(data_set)
    assert external is not None
    return data_root / external.folder / MANIFEST_NAME


def _compared(check: DataCheck, faults: Faults) -> Iterator[Missing]:
    """Differences of what was listed from the manifest, and of the splits' classes from one another."""
    differences = None
    if check.manifest is not None and check.listings:
        yield from faults.of_splits(check.manifest, check.listings)
        known = sorted(set(check.listings) & set(check.manifest.splits))
        found = (entry for split in known for entry in check.listings[split].entries())
        try:
            differences = compare(found, check.manifest, splits=known)
            yield from faults.of_differences(differences)
        except HarnessError as error:
            yield Missing(str(error), faults.rewrite)
    if differences is None or not (differences.classes_missing or differences.classes_extra):
        yield from faults.of_classes(check.listings.values())


def _list_split(data_set: str, split: str, data_root: Path) -> tuple[ImagePart, SplitListing | None]:
    """All images of a split, and its files; None for a set that is read into memory."""
    external = external_set(data_set)
    assert external is not None
    way = external.way(data_root, split) or ("",)
    if way[0].endswith(CLASS_FOLDERS):
        folder = data_root / external.folder
        listing = list_class_folders(folder, split=split, name=way[0].removesuffix(CLASS_FOLDERS))
        return listing.as_part(folder, data_set=data_set), listing
    part = open_split(data_set, split, data_root=data_root)
    sizes = getattr(part, "bytes_of_files", None)
    return part, None if sizes is None else listing_of(part, split, sizes)


def _of_other_split(check: DataCheck, data_root: Path) -> Iterator[Missing]:
    """The split that nothing is wanted of must have the same classes, for the readers ask for that."""
    ((split, images),) = check.splits.items()
    try:
        check_same_classes(check.data_set, split, images.classes, data_root)
    except HarnessError as error:
        yield Missing(str(error), "")


def _check_embedded(check: DataCheck, wanted: Mapping[str, Part]) -> None:
    for name, part in wanted.items():
        try:
            check.splits[part.split] = open_split(check.data_set, part.split)
            open_part(check.data_set, name, part)
        except HarnessError as error:
            check.problems.append(Missing(str(error), ""))
