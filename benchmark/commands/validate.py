"""`validate CHECKPOINT`: a fine-tuned classifier, measured as it is."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.commands.board import show_classifier
from benchmark.commands.options import Parser, check_least, protocol_argument
from benchmark.data import check_same_classes, open_split
from benchmark.file_lock import try_lock
from benchmark.image_part import ImagePart
from benchmark.inputs import external_set
from benchmark.layout import check_work_dir
from benchmark.published_classifiers import publication
from benchmark.runtime import detect_runtime
from benchmark.validation import Validation, finetuning, finished
from leaderboard.record import Record
from protocols import load_protocol
from protocols.errors import HarnessError
from protocols.files import sha256_of_file
from protocols.schema import Protocol

if TYPE_CHECKING:
    from benchmark.classifier_evaluation import Classifier

SUMMARY = "measure a fine-tuned classifier from a file, as it is"
DESCRIPTION = """\
Measure a fine-tuned classifier as it is: the files that the paper's authors
released (docs/validate.md lists them), or any ViT of timm with the sizes of
one of the protocol's trunks. The images, their transform and the pooling are
those of the protocol's fine-tuning. Nothing in the file is run.

Prints top-1 and top-5, beside what the paper reports of the file, and keeps a
record, marked imported, which every report shows in a section of its own.
The same file on the same images is not measured twice; --redo does.

examples:
  python run_benchmark.py validate vit_standard_tiny_patch16_224_KCLIP.tar \\
      --trunk vit-t --data-root DIR
  python run_benchmark.py validate model_best.pth.tar --trunk vit-b \\
      --data-root DIR --key state_dict_ema --workers 8

exit codes: 0 measured; 2 the file or the images are missing, damaged or do
not fit; 130 interrupted, with nothing kept
"""
MEASURED = 0
DEFAULT_BATCH = 250


def add_arguments(parser: Parser) -> None:
    """Which file, on which images, how."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the classifier's file")
    parser.add_argument("--trunk", required=True, metavar="NAME", help="its trunk, one of the protocol's")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder that holds the data sets")
    parser.add_argument(
        "--protocol",
        default="fair300",
        type=protocol_argument,
        help="a name (see list protocols) or a .yaml file (default: fair300)",
    )
    parser.add_argument(
        "--work-dir", type=Path, default=Path("runs"), help="where results are (default: runs)"
    )
    parser.add_argument(
        "--key", metavar="NAME", help="the entry of the file that holds the weights, where it has several"
    )
    parser.add_argument(
        "--pooling",
        choices=["patch-mean", "class-token"],
        default="patch-mean",
        help="what its head classifies (default: patch-mean, as the protocol's fine-tuning)",
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if any"
    )
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast (default: fp32)"
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that read images (default: 0)"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=DEFAULT_BATCH,
        metavar="N",
        help=f"images at a time (default: {DEFAULT_BATCH})",
    )
    parser.add_argument("--redo", action="store_true", help="measure it though there is a record")
    parser.add_argument("--json", action="store_true", help="the record on standard output")


def run(options: Namespace) -> int:
    """Find out what is asked, measure it unless that was done, show it."""
    check_least(("--workers", options.workers, 0), ("--batch", options.batch, 1))
    classifier, validation = _asked(options)
    record = None if options.redo else finished(validation, options.work_dir)
    was_there = record is not None
    if record is None:
        record = _measured(classifier, validation, options)
    if options.json:
        print(json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False))
        return MEASURED
    show_classifier(record)
    paper = publication()
    known = paper.files.get(validation.checkpoint.name)
    if known is not None and record.resolved["checkpoint"]["reported_top1_percent"] is None:
        print(
            f"  the paper reports {known.top1_percent} % of a file of this name, on {paper.images:,} images "
            f"of {paper.data_set}, in its 1,000 classes, with {known.trunk}: not compared"
        )
    again = "measured before, --redo measures it again: " if was_there else ""
    print(f"  {again}{os.path.relpath(validation.folder(options.work_dir))}")
    return MEASURED


def _asked(options: Namespace) -> tuple[Classifier, Validation]:
    """The classifier, and what it is to be measured on. HarnessError for what is missing or does not fit.

    What is quick to tell comes first, then the file, and the images last: to list ImageNet takes minutes.
    """
    path, trunk = options.checkpoint, options.trunk.lower()
    protocol = load_protocol(options.protocol)
    part = finetuning(protocol, trunk).evaluated_part
    if not path.is_file():
        raise HarnessError(f"{path}: no such file; give the file of a fine-tuned classifier")
    check_work_dir(options.work_dir)
    if options.data_root is None and external_set(protocol.data.name) is not None:
        raise HarnessError(f"data set {protocol.data.name} lies under the data root; give --data-root DIR")
    runtime = detect_runtime(
        device=options.device, workers=options.workers, precision=options.precision, jobs=1
    )
    # Imported late: torch takes seconds, which no mistake above should have to wait for.
    from benchmark.classifier_evaluation import check_classes, load_classifier

    classifier = load_classifier(
        path, protocol=protocol, trunk=trunk, pooling=options.pooling, key=options.key
    )
    images = _images(protocol, part, options.data_root)
    check_classes(classifier, images)
    return classifier, Validation(
        checkpoint=path,
        sha256=sha256_of_file(path),
        protocol=protocol,
        trunk=trunk,
        images=images,
        pooling=options.pooling,
        key=options.key,
        runtime=runtime,
    )


def _images(protocol: Protocol, name: str, data_root: Path | None) -> ImagePart:
    """The protocol's images of the part `name`, as `open_part` has them, but with this command's remedy."""
    data_set, part = protocol.data.name, protocol.data.parts[name]
    whole = open_split(data_set, part.split, name=name, data_root=data_root)
    stop = part.start + part.count
    if stop > len(whole):
        raise HarnessError(
            f"data set {data_set}: {name} of protocol {protocol.name} wants images {part.start} to {stop} of "
            f"{part.split}, which has {len(whole)} in {len(whole.classes)} classes; complete the data set, "
            f"or fork the protocol with a smaller data.{name}.count (see docs/validate.md)"
        )
    check_same_classes(data_set, part.split, whole.classes, data_root)
    return whole.cut(part.start, stop)


def _measured(classifier: Classifier, validation: Validation, options: Namespace) -> Record:
    """The record of the evaluation, made now, by one process at a time."""
    from benchmark.classifier_evaluation import evaluate

    with _exclusive(validation.folder(options.work_dir)):
        return evaluate(classifier, validation, options.work_dir, batch=options.batch)


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """The cell's lock, which the kernel drops with its owner. A folder in which nothing came to be goes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("a") as lock:
        if not try_lock(lock):
            raise HarnessError(f"another process measures this file in {folder}; wait for it")
        try:
            yield
        finally:
            if list(folder.iterdir()) == [path]:
                path.unlink()
                folder.rmdir()
