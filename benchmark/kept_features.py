"""Features of a frozen trunk, computed once: whichever evaluation comes first keeps them for the others.

    WORK_DIR/features/KEY.safetensors    features (n, D) float32, beside them all that KEY is the digest of

KEY covers whatever the features depend on to the bit: the trunk and its weights, the images, how they are
cropped and normalised, the precision, the device, the libraries and the code. Images that are files are known
by their names, sizes and times of writing. So a file is never out of date, two cells that write the same one
write the same bytes, and deleting any of them costs time alone. n images, D width.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from benchmark.classification import EVALUATION_BATCH, evaluation_batches
from benchmark.image_part import ImagePart
from benchmark.layout import FEATURES_NAME as FEATURES_NAME
from benchmark.stage import CellContext
from benchmark.token_work import READING, device_kind, libraries
from protocols.files import sha256_of_file, write_atomically
from protocols.frozen import canonical_json, digest_of
from protocols.recipes import LinearProbe, NearestNeighbours
from tokenizers.base import digest_of_tensors

if TYPE_CHECKING:
    from benchmark.probe import FrozenTrunk

# Larger ones are computed anew: they would fill the disk with what is seldom read twice.
MOST_KEPT_BYTES = 1024**3
_HERE = Path(__file__).parent
_CODE = (
    *READING,
    *(_HERE / name for name in ("augment.py", "classification.py", "probe.py", "transforms.py")),
    Path(__file__),
    _HERE.parent / "methods" / "trunk.py",
    _HERE.parent / "protocols" / "geometry.py",
)
log = logging.getLogger(__name__)


def features_of(
    images: ImagePart, frozen: FrozenTrunk, recipe: LinearProbe | NearestNeighbours, context: CellContext
) -> Tensor:
    """(n, D) on the CPU: the features of all `images`, not augmented; kept ones where there are any.

    DamagedImage for the first image that cannot be read, if they are computed.
    """
    identity = _identity(images, frozen, recipe, context)
    path = context.work_dir / FEATURES_NAME / f"{digest_of(identity)}.safetensors"
    said = canonical_json(identity)
    kept = _read(path, said)
    if kept is not None:
        log.info("features of %d images are those kept in %s", len(images), path.name)
        return kept
    batches = evaluation_batches(images, recipe, context.protocol.data, workers=context.runtime.workers)
    features = frozen.of_all(batches)
    if features.nbytes <= MOST_KEPT_BYTES:
        _write(path, said, features)
    return features


def _identity(
    images: ImagePart, frozen: FrozenTrunk, recipe: LinearProbe | NearestNeighbours, context: CellContext
) -> dict[str, Any]:
    """What moves any bit of the features."""
    data, runtime = context.protocol.data, context.runtime
    return {
        "trunk": context.trunk(drop_path=0.0).model_dump(mode="json"),
        "weights": frozen.weights_digest,
        "features": frozen.features,
        "data_set": images.data_set,
        "images": images.digest,
        "written": images.last_written(),
        "image_size": data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
        "crop": recipe.evaluation_crop_fraction,
        "interpolation": None if recipe.evaluation_crop_fraction is None else recipe.interpolation,
        "batch": EVALUATION_BATCH,
        "precision": runtime.precision,
        "device": device_kind(runtime.device),
        "threads": torch.get_num_threads() if runtime.device == "cpu" else None,
        "libraries": {**libraries(), "torchvision": version("torchvision")},
        "code": _code_digests(),
    }


@cache
def _code_digests() -> list[str]:
    return [sha256_of_file(path) for path in _CODE]


def _read(path: Path, identity: str) -> Tensor | None:
    """The features in `path`; None where there are none, or they are not those that were written."""
    try:
        with safe_open(path, framework="pt") as opened:
            facts, features = opened.metadata(), opened.get_tensor("features").clone()
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        log.warning("features are computed anew: %s cannot be read (%s)", path, error)
        return None
    if facts != _facts(identity, features):
        log.warning("features are computed anew: %s is not what was written", path)
        return None
    return features


def _write(path: Path, identity: str, features: Tensor) -> None:
    """Keep the features under their name, all at once; where that cannot be, the log says so."""
    content = save({"features": features.contiguous()}, metadata=_facts(identity, features))
    try:
        write_atomically(path, content)
    except OSError as error:
        log.warning("features are not kept for other evaluations: %s", error)


def _facts(identity: str, features: Tensor) -> dict[str, str]:
    # One entry: safetensors writes several in any order, and equal features are to be equal files.
    return {"facts": canonical_json({"identity": identity, "digest": digest_of_tensors({"": features})})}
