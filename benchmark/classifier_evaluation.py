"""A fine-tuned classifier's file -> the shared trunk with its weights -> its record, nothing trained.

The classifier is fine-tuning's: timm's ViT, the mean of the patch tokens through `fc_norm` and a head; or
the class token through `norm`, where that is asked for. Every tensor has to fit; none is left out or drawn.

B images of (3, S, S), C classes.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from timm.data import ImageNetInfo
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmark import provenance
from benchmark.classification import evaluation_batches, most_likely_classes, write_predictions
from benchmark.classifier_file import read_classifier
from benchmark.image_part import ImagePart
from benchmark.published_classifiers import publication
from benchmark.validation import Pooling, Validation, imported_record
from leaderboard.record import RECORD_NAME, Record, write_record
from methods.trunk import build_trunk
from protocols.errors import HarnessError
from protocols.schema import Protocol, TrunkSpec
from tokenizers.precision import exact_float32

IMAGENET = "imagenet-1k"
MOST_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """The trunk with the file's weights, on the CPU. `key` is the entry of the file that held them.

    `deviations` is what a record says of how the file was read.
    """

    path: Path
    model: VisionTransformer
    classes: int
    key: str
    deviations: tuple[str, ...]


def evaluate(classifier: Classifier, validation: Validation, work_dir: Path, *, batch: int) -> Record:
    """Measure the classifier on every image, once and in order; returns its record, which is then on disk.

    Raises HarnessError for a damaged image.
    """
    started = _now()
    device, images = validation.runtime.device, validation.images
    batches = evaluation_batches(
        images, validation.recipe, validation.protocol.data, batch=batch, workers=validation.runtime.workers
    )
    clock = time.monotonic()
    with _arithmetic(validation):
        most_likely = most_likely_classes(
            classifier.model.eval().to(device),
            _counted(batches, total=len(images)),
            device=device,
            image_ids=images.image_ids,
        )
    seconds = time.monotonic() - clock
    if len(most_likely) != len(images):
        raise RuntimeError(f"{len(most_likely)} predictions of {len(images)} images")
    folder = validation.folder(work_dir)
    # An earlier record must not stand beside newer predictions, not even for a moment.
    (folder / RECORD_NAME).unlink(missing_ok=True)
    metrics, artefacts = write_predictions(folder, images, most_likely[:, 0], most_likely=most_likely)
    on_gpu = device == "cuda"
    record = imported_record(
        validation,
        metrics=metrics,
        artefacts=artefacts,
        key=classifier.key,
        deviations=(
            f"weights of {classifier.path.name} (SHA-256 {validation.sha256}), which this harness did not "
            "train",
            *classifier.deviations,
            *_unlike_imagenet(images.data_set, images.classes),
        ),
        # Under other class names a label may mean another class: the reported number is of something else.
        reported_top1_percent=None
        if _unlike_imagenet(images.data_set, images.classes)
        else validation.reported_top1_percent,
        seconds=seconds,
        peak_memory_bytes=torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        device=torch.cuda.get_device_name() if on_gpu else provenance.environment()["cpu"],
        started=started,
        ended=_now(),
    )
    return write_record(folder, record)


def load_classifier(
    path: Path, *, protocol: Protocol, trunk: str, pooling: Pooling, key: str | None
) -> Classifier:
    """The classifier in the file `path`, which has to be the protocol's `trunk` with a head; needs no images.

    `key` is the entry that holds the weights, None where that is to be found. Raises HarnessError for a
    file that cannot be read or does not fit.
    """
    if key is None and path.name in publication().files:
        key = publication().key
    read = read_classifier(path, key=key)
    tensors = read.tensors
    _check_sizes(path, tensors, protocol, trunk)
    head = tensors.get("head.weight")
    if head is None or head.ndim != 2 or not len(head):
        raise HarnessError(
            f"{path}: holds a trunk without a head (head.weight (C, D)), so it tells no classes apart; give "
            "the file of a fine-tuned classifier"
        )
    model, has_layer_scale = _model(protocol.trunk_spec(trunk, drop_path=0.0), tensors, pooling, len(head))
    _check_tensors(path, tensors, model, pooling)
    model.load_state_dict(tensors)
    deviations = [*read.changes]
    if pooling != "patch-mean":
        deviations.append("classifies the class token, not the mean of the patch tokens")
    if not has_layer_scale:
        deviations.append("has no layer scale")
    return Classifier(path=path, model=model, classes=len(head), key=read.key, deviations=tuple(deviations))


def check_classes(classifier: Classifier, images: ImagePart) -> None:
    """HarnessError unless the classifier's head has as many classes as the images."""
    if classifier.classes != len(images.classes):
        raise HarnessError(
            f"{classifier.path}: its head tells {classifier.classes} classes apart, but the {images.name} "
            f"images of {images.data_set} have {len(images.classes)}; give the protocol and the data that it "
            "was fine-tuned on"
        )


def _model(
    spec: TrunkSpec, tensors: Mapping[str, Tensor], pooling: Pooling, classes: int
) -> tuple[VisionTransformer, bool]:
    """The trunk as the file has it: without layer scale where the file names none at all."""
    model = build_trunk(spec, pool="avg" if pooling == "patch-mean" else "token", classes=classes)
    has_layer_scale = any(".ls1." in name or ".ls2." in name for name in tensors)
    if not has_layer_scale:
        for block in model.blocks:
            block.ls1, block.ls2 = nn.Identity(), nn.Identity()  # what timm builds without init_values
    return model, has_layer_scale


def _check_sizes(path: Path, tensors: Mapping[str, Tensor], protocol: Protocol, trunk: str) -> None:
    """HarnessError, naming the trunk that it is, if patches, width or depth are plainly another trunk's."""
    patches = tensors.get("patch_embed.proj.weight")
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if patches is None or patches.ndim != 4 or not depth:
        raise HarnessError(
            f"{path}: holds no ViT under timm's names (patch_embed.proj.weight (D, 3, P, P), blocks.N...); "
            f"its names begin with {', '.join(sorted(tensors)[:3]) or 'nothing'}"
        )
    found = (patches.shape[-1], patches.shape[0], depth)
    sizes = {name: (one.patch_size, one.width, one.depth) for name, one in protocol.trunks.items()}
    if found != sizes[trunk]:
        fitting = [name for name, size in sizes.items() if size == found]
        remedy = f"give --trunk {fitting[0]}" if fitting else f"no trunk of protocol {protocol.name} is"
        raise HarnessError(
            f"{path}: holds a ViT with {_in_words(found)}, and --trunk {trunk} has "
            f"{_in_words(sizes[trunk])}; {remedy}"
        )


def _in_words(sizes: tuple[int, int, int]) -> str:
    patch, width, depth = sizes
    return f"patches of {patch}, width {width} and {depth} blocks"


def _check_tensors(
    path: Path, tensors: Mapping[str, Tensor], classifier: nn.Module, pooling: Pooling
) -> None:
    """HarnessError naming the tensors that are missing, unexpected, misshapen, or not finite floats."""
    said = tensor_faults(tensors, classifier)
    if not said:
        return
    remedy = "fetch the published file"
    if pooling == "patch-mean" and "norm.weight" in tensors and "fc_norm.weight" not in tensors:
        remedy = "if it classifies the class token, through norm, say so with --pooling class-token"
    elif pooling == "class-token" and "fc_norm.weight" in tensors:
        remedy = "it classifies the mean of the patch tokens, through fc_norm: leave --pooling away"
    raise HarnessError(f"{path}: does not fit this trunk: {said}; {remedy}")


def tensor_faults(tensors: Mapping[str, Tensor], model: nn.Module) -> str:
    """What keeps `model` from loading `tensors` strictly, by name; empty if nothing does."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shared = [name for name in tensors if name in own]
    misshapen = [name for name in shared if tuple(tensors[name].shape) != own[name]]
    faults = {
        "missing": [f"{name} {shape}" for name, shape in own.items() if name not in tensors],
        "unexpected": [f"{name} {tuple(one.shape)}" for name, one in tensors.items() if name not in own],
        "of another shape": [f"{name} {tuple(tensors[name].shape)}, not {own[name]}" for name in misshapen],
        "not finite floats": [
            f"{name} ({tensors[name].dtype})"
            for name in shared
            if not tensors[name].is_floating_point() or not bool(tensors[name].float().isfinite().all())
        ],
    }
    return "; ".join(f"{fault}: {_listed(names)}" for fault, names in faults.items() if names)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _unlike_imagenet(data_set: str, classes: tuple[str, ...]) -> list[str]:
    """ImageNet's labels are the places of its 1,000 WordNet ids in order; a folder may be named otherwise."""
    if data_set != IMAGENET:
        return []
    synsets = ImageNetInfo(IMAGENET).label_names()
    wrong = [name for name, synset in zip(classes, synsets, strict=False) if name != synset]
    if len(classes) == len(synsets) and not wrong:
        return []
    told = f", the first {wrong[0]}" if wrong else ""
    return [f"classes are not ImageNet's 1,000 WordNet ids ({len(classes)} of them{told})"]


def _arithmetic(validation: Validation) -> AbstractContextManager[None]:
    """Full float32, without TF32; or bf16 by autocast, as training has it."""
    device = validation.runtime.device
    if validation.runtime.precision == "bf16":
        return torch.autocast(device, torch.bfloat16)
    return exact_float32(torch.device(device))


def _counted(batches: Iterable[Tensor], *, total: int) -> Iterator[Tensor]:
    """The batches, with a line on a terminal that says how many images have gone by."""
    show: Callable[[str], None] = lambda text: print(text, end="", file=sys.stderr, flush=True)  # noqa: E731
    is_shown, done, started = sys.stderr.isatty(), 0, time.monotonic()
    for batch in batches:
        yield batch
        done += len(batch)
        if is_shown:
            rate = done / max(time.monotonic() - started, 1e-9)
            show(f"\r  {done:,} of {total:,} images, {rate:,.0f} images/s ")
    if is_shown:
        show("\r" + " " * 60 + "\r")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
