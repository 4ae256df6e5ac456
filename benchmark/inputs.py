"""What a cell needs from outside the repository, and what of it is not there. No torch.

Found without reading an image: a folder that exists is taken to hold what it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmark.plan import Cell
from protocols.recipes import LinearProbe
from protocols.schema import Protocol
from tokenizers import list_tokenizers

EMBEDDED_SETS = ("fashion-mnist-12k",)
RUNNABLE_STAGES = ("tokenise", "pretrain", "finetune", "linear-probe")


@dataclass(frozen=True, order=True)
class Missing:
    """One thing that is not there, and how to provide it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class _ExternalSet:
    """A data set that users bring: its folder under the data root, and how it gets there."""

    folder: str
    remedy: str


_TORCHVISION = 'python -c "import torchvision.datasets as d; {}"'
_EXTERNAL_SETS = {
    "imagenet-1k": _ExternalSet(
        "imagenet-1k",
        "put ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz of "
        "https://image-net.org (an account is needed) into {root}/imagenet-1k, then "
        + _TORCHVISION.format("[d.ImageNet('{root}/imagenet-1k', s) for s in ('train', 'val')]"),
    ),
    "stanford-cars": _ExternalSet(
        "stanford_cars",
        "its own server is gone: see https://github.com/pytorch/vision/issues/7545 for copies, and lay them "
        "out as torchvision.datasets.StanfordCars('{root}') reads them",
    ),
    "food-101": _ExternalSet("food-101", _TORCHVISION.format("d.Food101('{root}', download=True)")),
    "fgvc-aircraft": _ExternalSet(
        "fgvc-aircraft-2013b", _TORCHVISION.format("d.FGVCAircraft('{root}', download=True)")
    ),
}


def missing_inputs(cell: Cell, protocol: Protocol, *, data_root: Path | None) -> list[Missing]:
    """What `cell` itself lacks; what its parents lack is theirs."""
    found = [_missing_set(name, data_root) for name in data_sets_of(cell, protocol)]
    missing = [one for one in found if one is not None]
    if cell.stage == "tokenise" and cell.tokenizer not in list_tokenizers():
        missing.append(
            Missing(
                f"tokenizer {cell.tokenizer}: this version of the harness has no adapter for it",
                f"known are {', '.join(list_tokenizers())}; protocol mini runs with those",
            )
        )
    if cell.stage not in RUNNABLE_STAGES:
        missing.append(
            Missing(
                f"stage {cell.stage}: this version of the harness cannot run it",
                "name other evaluations with --evaluations",
            )
        )
    return missing


def data_sets_of(cell: Cell, protocol: Protocol) -> list[str]:
    """The data sets whose images `cell` reads; evaluations of tokens read tokens alone, and labels."""
    if cell.evaluation is not None:
        recipe = protocol.evaluation(cell.evaluation, cell.trunk)
        if isinstance(recipe, LinearProbe) and recipe.transfer_set is not None:
            return [protocol.transfer_sets[recipe.transfer_set].name]
    return [protocol.data.name]


def _missing_set(name: str, data_root: Path | None) -> Missing | None:
    if name in EMBEDDED_SETS:
        return None
    if name not in _EXTERNAL_SETS:
        known = ", ".join((*EMBEDDED_SETS, *_EXTERNAL_SETS))
        return Missing(f"data set {name}: not known", f"known: {known}")
    external = _EXTERNAL_SETS[name]
    root = "DIR" if data_root is None else str(data_root)
    if data_root is not None and (data_root / external.folder).is_dir():
        return Missing(
            f"data set {name}: found, but this version of the harness reads embedded images only",
            "use --protocol mini until image folders are read",
        )
    where = f"no folder {data_root / external.folder}" if data_root else "no --data-root DIR is given"
    return Missing(f"data set {name}: {where}", external.remedy.format(root=root))
