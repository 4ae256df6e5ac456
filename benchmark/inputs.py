"""What a cell needs from outside the repository, and what of it is not there. No torch.

Found without reading an image: a folder that exists is taken to hold what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmark.plan import Cell
from protocols.errors import HarnessError
from protocols.recipes import LinearProbe
from protocols.schema import Protocol
from tokenizers import list_tokenizers, tokenizer_spec

EMBEDDED_SETS = ("fashion-mnist-12k",)
# Stages that read image folders so far: one pass over the images, or labels alone.
_STAGES_OF_FOLDERS = ("tokenise", "token-classification")


@dataclass(frozen=True, order=True)
class Missing:
    """One thing that is not there, and how to provide it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class ExternalSet:
    """A data set that users bring: its folder under the data root, and how it gets there.

    `splits` maps a part's split to the folder of its class folders, None where no reader exists yet.
    """

    folder: str
    remedy: str
    splits: Mapping[str, str] | None = None


_TORCHVISION = 'python -c "import torchvision.datasets as d; {}"'
EXTERNAL_SETS = {
    "imagenet-1k": ExternalSet(
        "imagenet-1k",
        "put ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz of "
        "https://image-net.org (an account is needed) into {root}/imagenet-1k, then "
        + _TORCHVISION.format("[d.ImageNet('{root}/imagenet-1k', s) for s in ('train', 'val')]"),
        splits={"train": "train", "test": "val"},  # ILSVRC 2012's validation images are the test images here
    ),
    "stanford-cars": ExternalSet(
        "stanford_cars",
        "its own server is gone: see https://github.com/pytorch/vision/issues/7545 for copies, and lay them "
        "out as torchvision.datasets.StanfordCars('{root}') reads them",
    ),
    "food-101": ExternalSet("food-101", _TORCHVISION.format("d.Food101('{root}', download=True)")),
    "fgvc-aircraft": ExternalSet(
        "fgvc-aircraft-2013b", _TORCHVISION.format("d.FGVCAircraft('{root}', download=True)")
    ),
}


def missing_inputs(cell: Cell, protocol: Protocol, *, data_root: Path | None) -> list[Missing]:
    """What `cell` itself lacks; what its parents lack is theirs."""
    found = [_missing_set(name, cell.stage, data_root) for name in data_sets_of(cell, protocol)]
    missing = [one for one in found if one is not None]
    if cell.stage == "tokenise":
        missing += _missing_tokenizer(cell, data_root)
    return missing


def data_sets_of(cell: Cell, protocol: Protocol) -> list[str]:
    """The data sets whose images `cell` reads; evaluations of tokens read tokens alone, and labels."""
    if cell.evaluation is not None:
        recipe = protocol.evaluation(cell.evaluation, cell.trunk)
        if isinstance(recipe, LinearProbe) and recipe.transfer_set is not None:
            return [protocol.transfer_sets[recipe.transfer_set].name]
    return [protocol.data.name]


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
        return [Missing(what, wanted.remedy("DIR/tokenizers"))]
    folder = weights_folder(data_root)
    path = wanted.find(folder)
    if path is None:
        what = f"tokenizer {name}: no file {wanted.name} in {folder}"
        return [Missing(what, wanted.remedy(str(folder)))]
    if wanted.sha256 is None:
        what = f"tokenizer {name}: no published SHA-256 is known here to hold {path} against"
        pin = f'--set "tokenizers.{name}.weights={wanted.name}@$(sha256sum < {path} | cut -c1-64)"'
        return [Missing(what, f"if you trust the file, say that it is meant, which the record keeps: {pin}")]
    return []


def _missing_set(name: str, stage: str, data_root: Path | None) -> Missing | None:
    if name in EMBEDDED_SETS:
        return None
    if name not in EXTERNAL_SETS:
        known = ", ".join((*EMBEDDED_SETS, *EXTERNAL_SETS))
        return Missing(f"data set {name}: not known", f"known: {known}")
    external = EXTERNAL_SETS[name]
    root = "DIR" if data_root is None else str(data_root)
    if data_root is not None and (data_root / external.folder).is_dir():
        if external.splits is not None and stage in _STAGES_OF_FOLDERS:
            folder = data_root / external.folder / external.splits["train"]
            if folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir()):
                return None  # the files are not looked at before they are read
            return Missing(
                f"data set {name}: no class folders in {folder}", external.remedy.format(root=root)
            )
        return Missing(
            f"data set {name}: found, but this version of the harness reads it for nothing but tokens"
            if external.splits is not None
            else f"data set {name}: found, but this version of the harness has no reader for it",
            "tokenise it with the command tokenize; train with --protocol mini until image folders are read",
        )
    where = f"no folder {data_root / external.folder}" if data_root else "no --data-root DIR is given"
    return Missing(f"data set {name}: {where}", external.remedy.format(root=root))
