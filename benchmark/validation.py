"""The cell of a classifier that was trained elsewhere and is only measured: its id, its record. No torch.

It is no cell of any plan. Its id is a hash of what moves its numbers: the file's bytes, the images, the
protocol's slices of data, trunk and fine-tuning, and how the file is read. Its record's compliance is
`imported`, and the slice of fine-tuning in it means the evaluation alone: the images and their transform.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from benchmark import provenance
from benchmark.image_part import ImagePart
from benchmark.layout import cell_folder
from benchmark.published_classifiers import publication
from benchmark.runtime import Runtime
from leaderboard.record import (
    PREDICTIONS_NAME,
    Attempt,
    Compliance,
    Cost,
    DataUse,
    Metric,
    ProtocolUse,
    Record,
    read_record,
)
from protocols.errors import HarnessError
from protocols.files import sha256_of_file
from protocols.frozen import digest_of
from protocols.recipes import FineTuning
from protocols.schema import Protocol

STAGE, EVALUATION = "validate", "finetune"
Pooling = Literal["patch-mean", "class-token"]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """One file, on the images that fine-tuning is evaluated on, with the transform of that evaluation.

    `key` is the entry of the file that holds the weights, None where that is to be found.
    """

    checkpoint: Path
    sha256: str
    protocol: Protocol
    trunk: str
    images: ImagePart
    pooling: Pooling
    key: str | None
    runtime: Runtime

    @property
    def recipe(self) -> FineTuning:
        """The recipe whose evaluation is used."""
        return finetuning(self.protocol, self.trunk)

    @property
    def slices(self) -> dict[str, str]:
        """Slice name -> digest, of what the protocol fixes here."""
        evaluation = self.protocol.evaluation_key(EVALUATION, self.trunk)
        names = ("data", f"trunk:{self.trunk}", f"evaluation:{evaluation}")
        return {name: self.protocol.slices[name] for name in names}

    @cached_property
    def cell_id(self) -> str:
        """Readable parts, and twelve hex digits of the hash."""
        return validation_id(
            self.checkpoint,
            self.trunk,
            sha256=self.sha256,
            slices=self.slices,
            images=self.images.digest,
            pooling=self.pooling,
            key=self.key,
            precision=self.runtime.precision,
        )

    def folder(self, work_dir: Path) -> Path:
        """The cell's folder under `work_dir`."""
        return cell_folder(work_dir, self.protocol.name, self.cell_id)

    @property
    def reported_top1_percent(self) -> float | None:
        """What the paper reports of this file on these images, if their classes are ImageNet's; or None."""
        return publication().top1_percent(
            self.checkpoint.name, trunk=self.trunk, data_set=self.images.data_set, images=len(self.images)
        )


def validation_id(checkpoint: Path, trunk: str, **identity: Any) -> str:
    """The cell's id: the file's name, the trunk, and the hash of `identity`, all that moves its numbers."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", checkpoint.stem)[:60]
    return f"{STAGE}-{name}-{trunk}-{digest_of(identity)[:12]}"


def finetuning(protocol: Protocol, trunk: str) -> FineTuning:
    """The protocol's fine-tuning of `trunk`. HarnessError if it has none."""
    if trunk not in protocol.trunks:
        protocol.trunk_spec(trunk, drop_path=0.0)  # raises, naming those that there are
    recipe = protocol.evaluation(EVALUATION, trunk)
    if not isinstance(recipe, FineTuning):
        raise HarnessError(
            f"protocol {protocol.name}: its evaluation {EVALUATION} is no fine-tuning, so it says nothing of "
            "how a fine-tuned classifier is evaluated"
        )
    return recipe


def finished(validation: Validation, work_dir: Path) -> Record | None:
    """The record of an earlier, whole evaluation; None if there is none.

    Raises HarnessError if the record or its predictions are damaged.
    """
    folder = validation.folder(work_dir)
    record = read_record(folder)
    if record is None or record.status != "done":
        return None
    path = folder / PREDICTIONS_NAME
    if not path.is_file() or sha256_of_file(path) != record.artefacts.get(PREDICTIONS_NAME):
        raise HarnessError(
            f"{path} is missing or is not the file that its record names; restore it, or give the same "
            "command with --redo"
        )
    return record


def imported_record(
    validation: Validation,
    *,
    metrics: dict[str, Metric],
    artefacts: dict[str, str],
    key: str,
    deviations: tuple[str, ...],
    reported_top1_percent: float | None,
    seconds: float,
    peak_memory_bytes: int,
    device: str,
    started: str,
    ended: str,
) -> Record:
    """The record of a classifier that was evaluated as it is; `key` is the entry that held its weights."""
    protocol, images = validation.protocol, validation.images
    resolved: dict[str, dict[str, Any]] = {name: dict(protocol.slice(name)) for name in validation.slices}
    resolved["checkpoint"] = {
        "file": validation.checkpoint.name,
        "sha256": validation.sha256,
        "key": key,
        "pooling": validation.pooling,
        "reported_top1_percent": reported_top1_percent,
        "reported_by": publication().source if reported_top1_percent is not None else None,
    }
    return Record(
        cell_id=validation.cell_id,
        stage=STAGE,
        protocol=ProtocolUse(name=protocol.name, version=protocol.version, slices=validation.slices),
        resolved=resolved,
        compliance=Compliance(status="imported", deviations=deviations),
        method=None,
        tokenizer=None,
        trunk=validation.trunk,
        data_set=DataUse(name=images.data_set, part=images.name, n=len(images), digest=images.digest),
        seed=None,
        metrics=metrics,
        cost=Cost(
            wall_seconds=round(seconds, 3),
            images_seen=0,
            train_flops=0.0,
            peak_memory_bytes=peak_memory_bytes,
            device=device,
        ),
        runtime=validation.runtime.recorded(),
        environment=provenance.environment(),
        git=provenance.git_state(),
        parents={},
        artefacts=artefacts,
        attempts=(Attempt(started=started, ended=ended, outcome="done"),),
        status="done",
        error=None,
    )
