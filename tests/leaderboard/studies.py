"""A synthetic campaign with two studies: equal compute, and the sensitivity to shares and learning rates."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from leaderboard.record import Record, write_record
from leaderboard.settings import Settings
from leaderboard.tables import METHODS as METHOD_ORDER
from leaderboard.tables import Board, build_board
from protocols.frozen import digest_of
from protocols.schema import Protocol
from protocols.views import View, ViewCells
from tests.leaderboard.conftest import Campaign, make_protocol

METHODS: dict[str, dict[str, int]] = {
    "scratch": {}, "mim": {"mask_count": 25}, "pim": {"cutting_point": 25}, "mapet": {"cutting_point": 25},
}  # fmt: skip
FLOPS = {"mim": 2e12, "pim": 3e12, "mapet": 5e12}  # of the protocol's 5 epochs


def study_protocol(*, tokenizers: tuple[str, ...] = ("k-pixel", "k-feature")) -> Protocol:
    """`tiny` with PIM, and with tables and studies of its own."""
    trained: dict[str, Any] = {"tokenizers": tokenizers, "trunks": ("vit-mini",)}
    both = ("finetune", "linear-probe")
    views = {
        "table1": View(
            title="Objectives",
            cells=(
                ViewCells(methods=("scratch",), trunks=("vit-mini",), evaluations=both),
                ViewCells(methods=("mim", "pim", "mapet"), evaluations=both, **trained),
            ),
        ),
        "table6": View(
            title="Cutting points",
            cells=(
                ViewCells(
                    methods=("mapet",),
                    evaluations=("finetune",),
                    hyperparameters={"cutting_point": (13, 25, 31)},
                    **trained,
                ),
            ),
        ),
        "equal-compute": View(
            title="Equal compute",
            is_study=True,
            cells=tuple(
                ViewCells(
                    methods=(method,),
                    evaluations=both,
                    pretraining={"epochs": (epochs,)},
                    equal_compute_to="mapet",
                    **trained,
                )
                for method, epochs in (("mim", 12), ("pim", 8), ("mapet", 5))
            ),
        ),
        "sensitivity": View(
            title="Sensitivity",
            is_study=True,
            cells=(
                ViewCells(
                    methods=("mim",),
                    evaluations=("linear-probe",),
                    hyperparameters={"mask_count": (19, 25, 37)},
                    **trained,
                ),
                ViewCells(
                    methods=("pim", "mapet"),
                    evaluations=("linear-probe",),
                    hyperparameters={"cutting_point": (31, 25, 13)},
                    **trained,
                ),
                ViewCells(
                    methods=("mim", "pim", "mapet"),
                    evaluations=("linear-probe",),
                    pretraining={"peak_lr": (0.002, 0.004, 0.008)},
                    **trained,
                ),
            ),
        ),
    }
    base = make_protocol()
    return base.model_copy(
        update={
            "methods": METHODS,
            "views": views,
            "defaults": base.defaults.model_copy(
                update={"methods": tuple(METHODS), "tokenizers": tokenizers, "views": None}
            ),
        }
    )


class StudyCampaign(Campaign):
    """Cells of `study_protocol`; a row's pre-training may have any values and any FLOPs."""

    def __init__(self, work_dir: Path, protocol: Protocol | None = None) -> None:
        super().__init__(work_dir)
        self.protocol = protocol or study_protocol()

    def study_row(
        self,
        method: str,
        tokenizer: str = "k-pixel",
        *,
        seed: int = 0,
        values: dict[str, Any] | None = None,
        recipe: dict[str, Any] | None = None,
        flops: float | None = None,
        probe: int = 100,
        finetune: int | None = None,
        losses: list[float] | None = None,
        **more: Any,
    ) -> Record:
        """A pre-training with `values` and `recipe` in the place of the protocol's, and its evaluations."""
        tried = {**(values or {}), **(recipe or {})}
        name = "-".join([method, tokenizer, str(seed), *(f"{key}{value}" for key, value in tried.items())])
        stem = name.replace("_", "").replace(".", "p")
        if f"tok-{tokenizer}" not in self.records:
            self.tokenizer(tokenizer)
        resolved = {**self.protocol.slice("pretraining"), **(recipe or {})}
        use: dict[str, Any] = {"method": method, "tokenizer": tokenizer, "seed": seed, **more}
        record = self.cell(
            f"{stem}-pretrain",
            "pretrain",
            parents=(f"tok-{tokenizer}",),
            hyperparameters={**METHODS[method], **(values or {})},
            slices={"pretraining": digest_of(resolved)},
            **use,
        )
        epochs = resolved["epochs"] / self.protocol.pretraining.epochs
        spent = record.cost.model_copy(update={"train_flops": flops or FLOPS[method] * epochs})
        record = record.model_copy(
            update={"cost": spent, "resolved": {**record.resolved, "pretraining": resolved}}
        )
        self.records[record.cell_id] = record
        write_record(self.cells / record.cell_id, record)
        if losses is not None:
            lines = [
                json.dumps({"step": step, "epoch": (step + 1) / len(losses), "loss": loss})
                for step, loss in enumerate(losses)
            ]
            (self.cells / record.cell_id / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        parents = (record.cell_id,)
        self.cell(f"{stem}-probe", "linear-probe", parents=parents, correct=probe, **use)
        if finetune is not None:
            self.cell(f"{stem}-finetune", "finetune", parents=parents, correct=finetune, **use)
        return record

    def both_studies(self, seeds: tuple[int, ...] = (0, 1, 2), *, losses: bool = True) -> None:
        """All that the views ask for, with numbers of which tests know the order."""
        for seed in seeds:
            self.row("scratch", None, seed=seed, finetune=90 + seed, probe=60 + seed)
            for tokenizer in self.protocol.defaults.tokenizers:
                for place, method in enumerate(("mim", "pim", "mapet")):
                    score = 120 + 10 * place + 2 * seed
                    decay = [5.0 - place / 4 - 3 * (step / 60) ** 0.5 for step in range(60)]
                    self.study_row(
                        method,
                        tokenizer,
                        seed=seed,
                        probe=score,
                        finetune=score + 10,
                        losses=decay if losses else None,
                    )
                    name = next(iter(METHODS[method]))
                    # Methods keep their order with more predicted patches, and reverse it with fewer.
                    for count, change in ((37, 5), (19, -20 * place)):
                        value = count if name == "mask_count" else 50 - count
                        self.study_row(
                            method, tokenizer, seed=seed, values={name: value}, probe=score + change,
                            finetune=score + change,
                        )  # fmt: skip
                    for rate in (0.002, 0.008):
                        self.study_row(
                            method, tokenizer, seed=seed, recipe={"peak_lr": rate}, probe=score - 4
                        )
                for method, epochs in (("mim", 12), ("pim", 8)):
                    self.study_row(
                        method, tokenizer, seed=seed, recipe={"epochs": epochs}, probe=150, finetune=155
                    )


@cache
def studied() -> tuple[Board, Protocol]:
    """The board of both studies on one tokenizer, three seeds: made once for all tests, which only look.

    Its records never see a disk, and it has no predictions.
    """
    protocol = study_protocol(tokenizers=("k-pixel",))
    campaign = StudyCampaign(Path("nowhere"), protocol)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.leaderboard.conftest.write_record", lambda *_: None)
        patch.setattr("tests.leaderboard.studies.write_record", lambda *_: None)
        patch.setattr(Campaign, "_predictions", lambda *_: "0" * 64)
        campaign.both_studies(losses=False)
    board = build_board(
        list(campaign.records.values()),
        lambda _: None,
        slices=protocol.slices,
        settings=Settings.of(protocol),
        methods=METHOD_ORDER,
        tokenizers=protocol.defaults.tokenizers,
        trunks=protocol.defaults.trunks,
    )
    return board, protocol
