"""A synthetic campaign: records and predictions written as the harness writes them."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
from protocols.files import sha256_of_file
from protocols.frozen import digest_of
from protocols.schema import Protocol

IMAGES = 200
PARTS = {"tokenise": "pretraining", "pretrain": "pretraining"}
SECONDS = {
    "tokenise": 10.0,
    "pretrain": 100.0,
    "finetune": 40.0,
    "linear-probe": 20.0,
    "token-classification": 5.0,
    "validate": 30.0,
}


def make_protocol() -> Protocol:
    """The recipes of `mini` under the name `tiny`, with methods and tokenizers that no change there moves."""
    base = load_protocol("mini")
    tokenizers = {"k-pixel": {"codebook_size": 64}, "k-feature": {"codebook_size": 32}}
    methods: dict[str, dict[str, int]] = {
        "scratch": {}, "mim": {"mask_count": 25}, "mapet": {"cutting_point": 25},
    }  # fmt: skip
    evaluations = {name: base.evaluations[name] for name in ("finetune", "linear-probe")}
    trunks = {"vit-mini": base.trunks["vit-mini"]}
    defaults = {
        "methods": tuple(methods), "tokenizers": tuple(tokenizers), "trunks": tuple(trunks),
        "evaluations": tuple(evaluations), "seeds": (0,), "views": None,
    }  # fmt: skip
    changes = {
        "name": "tiny", "version": 2, "summary": "Synthetic numbers.", "trunks": trunks,
        "tokenizers": tokenizers, "methods": methods, "evaluations": evaluations, "views": {},
        "defaults": base.defaults.model_copy(update=defaults),
    }  # fmt: skip
    return base.model_copy(update=changes)


class Campaign:
    """Writes cells under `work_dir`; every cell is clean, done and of the current protocol unless told."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.protocol = make_protocol()
        self.records: dict[str, Record] = {}

    @property
    def cells(self) -> Path:
        return self.work_dir / self.protocol.name / "cells"

    def cell(
        self,
        cell_id: str,
        stage: str,
        *,
        method: str | None = None,
        tokenizer: str | None = None,
        trunk: str | None = "vit-mini",
        seed: int | None = 0,
        parents: tuple[str, ...] = (),
        correct: int | None = None,
        metrics: dict[str, Metric] | None = None,
        status: str = "done",
        error: str | None = None,
        deviations: tuple[str, ...] = (),
        slices: dict[str, str] | None = None,
        version: int = 2,
        ended: str = "2026-01-02T03:04:05Z",
        shuffle: int = 0,
        hyperparameters: dict[str, Any] | None = None,
        precision: str = "fp32",
        device: str = "cpu",
        commit: str = "abc123",
        evaluation: str | None = None,
        source: str = "s",
        artefacts: dict[str, str] | None = None,
        part: str | None = None,
        recipe: dict[str, Any] | None = None,
    ) -> Record:
        """One cell; with `correct`, so many of the 200 test images are right, the first ones.

        `evaluation` is the protocol's name where it is not the stage's; `source` the digest of the code;
        `recipe` what a pre-training has in the place of the protocol's values.
        """
        names = ["data"]
        names += [f"trunk:{trunk}"] if method else []
        names += [f"tokenizer:{tokenizer}"] if stage == "tokenise" else []
        names += ["pretraining"] if stage == "pretrain" else []
        name = evaluation or stage
        if name in self.protocol.names("evaluations"):
            names.append(f"evaluation:{self.protocol.evaluation_key(name, trunk)}")
        current = self.protocol.slices
        resolved = {name: dict(self.protocol.slice(name)) for name in names if name in current}
        if recipe:
            resolved["pretraining"] |= recipe
            slices = {"pretraining": digest_of(resolved["pretraining"]), **(slices or {})}
        digests = {name: current.get(name, "plug-in") for name in names} | (slices or {})
        artefacts = dict(artefacts or {})
        metrics = dict(metrics or {})
        if correct is not None and status == "done":
            artefacts[PREDICTIONS_NAME] = self._predictions(cell_id, correct, shuffle)
            metrics["top1_percent"] = Metric(value=100.0 * correct / IMAGES, n=IMAGES, unit="%")
        record = Record(
            cell_id=cell_id,
            stage=stage,
            protocol=ProtocolUse(name="tiny", version=version, slices=digests),
            resolved={**resolved, "hyperparameters": hyperparameters or {}},
            compliance=Compliance(status="modified" if deviations else "clean", deviations=deviations),
            method=MethodUse(name=method, source_digest=source) if method else None,
            tokenizer=TokenizerUse(name=tokenizer, digest="t", source_digest=source, teacher="none")
            if tokenizer
            else None,
            trunk=trunk if method or stage == "token-classification" else None,
            data_set=DataUse(name="shapes", part=part or PARTS.get(stage, "test"), n=IMAGES, digest="d"),
            seed=seed,
            metrics=metrics,
            cost=Cost(
                wall_seconds=SECONDS[stage],
                images_seen=1000 if stage == "pretrain" else 0,
                train_flops=2e12 if stage == "pretrain" else 0.0,
                peak_memory_bytes=1,
                device="cpu",
            ),
            runtime={"precision": precision, "device": device},
            environment={"python": "3.11", "numpy": "2.4"},
            git=Git(commit=commit, dirty=False),
            parents={parent: self.records[parent].artefact_digest for parent in parents},
            artefacts=artefacts,
            attempts=(Attempt(started="2026-01-02T03:00:00Z", ended=ended, outcome="done"),),
            status=status,  # type: ignore[arg-type]
            error=error,
        )
        self.records[cell_id] = record
        write_record(self.cells / cell_id, record)
        return record

    def _predictions(self, cell_id: str, correct: int, shuffle: int) -> str:
        ids = np.array([f"test/{index:05d}" for index in range(IMAGES)])
        labels = np.arange(IMAGES, dtype=np.int64) % 10
        predicted = np.where(np.arange(IMAGES) < correct, labels, (labels + 1) % 10)
        order = np.random.default_rng(shuffle).permutation(IMAGES) if shuffle else np.arange(IMAGES)
        stream = io.BytesIO()
        np.savez(stream, image_ids=ids[order], labels=labels[order], predicted=predicted[order])
        path = self.cells / cell_id / PREDICTIONS_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue())
        return sha256_of_file(path)

    def tokenizer(self, name: str, **more: Any) -> None:
        """A token store and its card; ids such as `tok-k-pixel`."""
        card = {
            "codebook_use_percent": Metric(value=98.5, n=4900, unit="%"),
            "perplexity": Metric(value=41.25, n=4900, unit="codes"),
            "dead_codes": Metric(value=1.0, n=4900, unit="codes"),
            "concentration_percent": Metric(value=7.5, n=4900, unit="%"),
        }
        cell_id = re.sub(r"[^a-z0-9-]", "_", f"tok-{name}")
        self.cell(cell_id, "tokenise", tokenizer=name, trunk=None, seed=None, metrics=card, **more)

    def row(
        self, method: str, tokenizer: str | None, *, seed: int = 0, finetune: int, probe: int, **more: Any
    ) -> None:
        """Pre-training (but for scratch), fine-tuning and probe; ids such as `mim-k-pixel-0-probe`."""
        stem = re.sub(r"[^a-z0-9-]", "_", f"{method}-{tokenizer or 'none'}-{seed}")
        use: dict[str, Any] = {"method": method, "tokenizer": tokenizer, "seed": seed, **more}
        parents: tuple[str, ...] = ()
        if tokenizer:
            made_from = re.sub(r"[^a-z0-9-]", "_", f"tok-{tokenizer}")
            if made_from not in self.records:
                self.tokenizer(tokenizer)
            self.cell(f"{stem}-pretrain", "pretrain", parents=(made_from,), **use)
            parents = (f"{stem}-pretrain",)
        self.cell(f"{stem}-finetune", "finetune", parents=parents, correct=finetune, **use)
        self.cell(f"{stem}-probe", "linear-probe", parents=parents, correct=probe, **use)


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """An empty campaign in a temporary folder."""
    return Campaign(tmp_path)


@pytest.fixture
def two_seeds(campaign: Campaign) -> Campaign:
    """Scratch, MIM on both tokenizers and MaPeT on one, two seeds."""
    return with_two_seeds(campaign)


def with_two_seeds(campaign: Campaign) -> Campaign:
    """The same for tests that share one campaign."""
    for seed in (0, 1):
        campaign.row("scratch", None, seed=seed, finetune=100 + 4 * seed, probe=60 + 10 * seed)
        campaign.row("mapet", "k-pixel", seed=seed, finetune=130, probe=120)
        campaign.row(
            "mim", "k-pixel", seed=seed, finetune=120 + 10 * seed, probe=100 + 20 * seed, shuffle=seed + 1
        )
        campaign.row("mim", "k-feature", seed=seed, finetune=140, probe=150)
    return campaign
