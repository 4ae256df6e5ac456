"""Finished cells of tests/tiny.yaml without training: records as the harness writes them, and bundles.

Ids, slices, values and digests are real; files that no bundle takes along, weights and tokens, have digests
alone. Loads no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.merging import merge_bundle
from benchmark.plan import Cell, make_plan
from benchmark.record_cell import resolved_values
from benchmark.recorded_ids import ids_of_record
from benchmark.selection import select
from benchmark.survey import present_sources
from leaderboard.bundle import (
    MANIFEST,
    BundledCell,
    BundledFile,
    Harness,
    Manifest,
    ending,
    member_header,
    open_bundle,
    padding,
)
from leaderboard.bundle_writer import Written, write_bundle
from leaderboard.record import (
    PREDICTIONS_NAME,
    Attempt,
    Compliance,
    Cost,
    DataUse,
    Git,
    MethodUse,
    Metric,
    ProtocolUse,
    Record,
    TokenizerUse,
    write_record,
)
from protocols import load_protocol
from protocols.schema import Protocol
from tests.error_settings import TINY

IMAGES = 40
HARNESS = Harness(version="0.1.0", commit="0123456789abcdef0123456789abcdef01234567", dirty=False)


def tiny() -> Protocol:
    """The tests' protocol."""
    return load_protocol(str(TINY))


class Lab:
    """A work dir whose cells of `methods` are done; `correct` of the test images are right in each."""

    def __init__(
        self,
        work_dir: Path,
        *,
        methods: Iterable[str] = ("mim", "scratch"),
        seeds: Iterable[int] = (0,),
        correct: int = 10,
        seconds: float = 1.0,
        tokens: str = "tokens",
        protocol: Protocol | None = None,
    ) -> None:
        self.work_dir, self.correct, self.seconds, self.tokens = work_dir, correct, seconds, tokens
        self.protocol = protocol or tiny()
        names = tuple(methods)
        chosen = select(self.protocol, methods=names, evaluations=["finetune", "linear-probe"], seeds=seeds)
        self.plan = make_plan(self.protocol, chosen) if names else []
        self.records: dict[str, Record] = {}
        for cell in self.plan:
            self.finish(cell)

    @property
    def cells(self) -> Path:
        return self.work_dir / self.protocol.name / "cells"

    def cell(self, name: str, method: str | None = "mim") -> Cell:
        """The one cell of that stage or evaluation."""
        (found,) = [
            one for one in self.plan if (one.evaluation or one.stage) == name and one.method in (method, None)
        ]
        return found

    def id(self, name: str, method: str | None = "mim") -> str:
        return self.cell(name, method).id

    def folder(self, name: str, method: str | None = "mim") -> Path:
        return self.cells / self.id(name, method)

    def finish(self, cell: Cell, **changes: Any) -> Record:
        """Write the cell's record and files; `changes` are other values of the record's fields."""
        folder = self.cells / cell.id
        folder.mkdir(parents=True, exist_ok=True)
        artefacts = {name: _sha256(f"{self.tokens} {name} {cell.id}".encode()) for name in _weights(cell)}
        metrics = {}
        if cell.evaluation is not None:
            predictions = predictions_file(self.correct)
            (folder / PREDICTIONS_NAME).write_bytes(predictions)
            artefacts = {PREDICTIONS_NAME: _sha256(predictions)}
            metrics["top1_percent"] = Metric(value=100 * self.correct / IMAGES, n=IMAGES, unit="%")
        else:
            metrics["images_per_second"] = Metric(value=10 * self.seconds, n=IMAGES, unit="images/s")
        lines = [{"step": step, "steps": 2, "loss": 1 / step} for step in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "log").write_text("not for others")
        sources = _sources()
        record = Record(
            cell_id=cell.id,
            stage=cell.stage,
            protocol=ProtocolUse(
                name=self.protocol.name, version=self.protocol.version, slices=dict(cell.slices)
            ),
            resolved=resolved_values(cell, self.protocol),
            compliance=Compliance(status="clean"),
            method=MethodUse(name=cell.method, source_digest=sources[f"method:{cell.method}"])
            if cell.method
            else None,
            tokenizer=TokenizerUse(
                name=cell.tokenizer, digest="t", source_digest=sources[f"tokenizer:{cell.tokenizer}"]
            )
            if cell.tokenizer
            else None,
            trunk=cell.trunk,
            data_set=DataUse(name="made", part="test", n=IMAGES, digest="d"),
            seed=cell.seed,
            metrics=metrics,
            cost=Cost(
                wall_seconds=self.seconds, images_seen=1, train_flops=1.0, peak_memory_bytes=1, device="cpu"
            ),
            runtime={"precision": "fp32", "device": "cpu"},
            environment={"python": "3.11"},
            git=Git(commit="abc123", dirty=False),
            parents={parent: self.records[parent].artefact_digest for parent in cell.parents},
            artefacts=artefacts,
            attempts=(Attempt(started="2026-01-02T03:00:00Z", ended="2026-01-02T03:04:05Z", outcome="done"),),
            status="done",
            error=None,
        ).model_copy(update=changes)
        self.records[cell.id] = write_record(folder, record)
        return self.records[cell.id]

    def bundle(self, out: Path, cells: Iterable[str] | None = None, **more: Any) -> Written:
        """Write a bundle of all cells, or of `cells` and their parents; `more` is write_bundle's."""
        return write_bundle(
            out,
            self.work_dir,
            self.protocol,
            sorted(self.records) if cells is None else cells,
            harness=HARNESS,
            ids_of=ids_of_record,
            **more,
        )


def predictions_file(correct: int) -> bytes:
    """`predictions.npz` in which the first `correct` images are right."""
    labels = np.arange(IMAGES, dtype=np.int64) % 10
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        image_ids=np.array([f"test/{index:05d}" for index in range(IMAGES)]),
        labels=labels,
        predicted=np.where(np.arange(IMAGES) < correct, labels, (labels + 1) % 10),
    )
    return stream.getvalue()


def contents_of(bundle: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest, and path -> bytes of every other member, by the layout alone."""
    content = bundle.read_bytes()
    size = int(content[124:135], 8)
    manifest = Manifest.model_validate_json(content[512 : 512 + size])
    at = 512 + size + len(padding(size))
    files = {}
    for file in manifest.files:
        files[file.path] = content[at + 512 : at + 512 + file.size]
        at += 512 + file.size + len(padding(file.size))
    return manifest, files


def forge(bundle: Path, manifest: Manifest, files: Mapping[str, bytes], **changes: Any) -> None:
    """A bundle of `files` whose digests all agree, whatever the files say; `changes` to the manifest."""
    stated = tuple(
        BundledFile(path=path, size=len(content), sha256=_sha256(content))
        for path, content in sorted(files.items())
    )
    made = manifest.model_copy(update={"files": stated, **changes}).with_digest()
    text = made.text()
    content = member_header(MANIFEST, len(text)) + text + padding(len(text))
    for path, one in sorted(files.items()):
        content += member_header(path, len(one)) + one + padding(len(one))
    bundle.write_bytes(content + ending(len(content)))


def outcomes(path: Path, work_dir: Path = Path("nowhere")) -> dict[str, tuple[str, str]]:
    """Entry -> result and reason, of a merge into an empty work dir that writes nothing."""
    with open_bundle(path) as bundle:
        return {one.entry: (one.result, one.why) for one in merge_bundle(bundle, work_dir, is_trial=True)}


def refused(path: Path) -> dict[str, str]:
    """Entry -> why, of what is refused."""
    return {entry: why for entry, (result, why) in outcomes(path).items() if result == "refused"}


def cells_of(*cell_ids: str) -> tuple[BundledCell, ...]:
    """Entries of a manifest, all done."""
    return tuple(BundledCell(cell_id=one, status="done") for one in sorted(cell_ids))


def changed_record(content: bytes, **changes: Any) -> bytes:
    """A record's file with other values in some fields, and without a digest, as older versions wrote it."""
    return json.dumps(json.loads(content) | {"digest": ""} | changes, indent=1, sort_keys=True).encode()


@cache
def _sources() -> dict[str, str]:
    return present_sources()


def _weights(cell: Cell) -> tuple[str, ...]:
    if cell.stage == "tokenise":
        return ("tokens/k-pixel-abc/made-abc/manifest.json", "tokens/k-pixel-abc/tokenizer.safetensors")
    return ("checkpoints/backbone.safetensors", "checkpoints/method.safetensors")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
