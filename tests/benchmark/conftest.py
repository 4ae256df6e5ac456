"""The whole line on two small protocols, run once in this process with every training watched."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmark import finetune, knn, pretrain, probe, tokenise
from benchmark.engine import Training, TrainingResult, train
from benchmark.plan import Cell, make_plan, select
from benchmark.record_cell import write_cell_record
from benchmark.runtime import Runtime
from benchmark.stage import CellContext, StageResult
from leaderboard.record import PREDICTIONS_NAME
from protocols import load_protocol
from protocols.recipes import Optimisation
from protocols.schema import Protocol

TINY = str(Path(__file__).parent.parent / "tiny.yaml")
FULL = str(Path(__file__).parent.parent / "full.yaml")
STAGES = {
    "tokenise": tokenise.run,
    "pretrain": pretrain.run,
    "finetune": finetune.run,
    "linear-probe": probe.run,
    "knn": knn.run,
}
CLIP = 0.05  # below every gradient's norm here, so that each step is clipped


@dataclass
class Watched:
    """One training: its parts, its weights before the first step, and what each step's update used."""

    training: Training
    before: dict[str, Tensor]
    rates: list[list[float]] = field(default_factory=list)  # of every step, of every group
    norms: list[float] = field(default_factory=list)  # of every step's gradient, as the optimiser got it


@dataclass
class Line:
    """Token store, pre-training and all evaluations of one row, in one work dir.

    Cells go by their evaluation's name, or by their stage's where they are no evaluation.
    """

    protocol: Protocol
    work_dir: Path
    cells: dict[str, Cell]
    watched: dict[str, Watched] = field(default_factory=dict)
    results: dict[str, StageResult] = field(default_factory=dict)

    @classmethod
    def of(cls, protocol: Protocol, work_dir: Path) -> Line:
        plan = make_plan(protocol, select(protocol, methods=["mim"], seeds=[3]))
        line = cls(protocol, work_dir, {cell.evaluation or cell.stage: cell for cell in plan})
        for name in line.cells:
            line.run(name)
        return line

    def context(self, name: str) -> CellContext:
        runtime = Runtime(device="cpu", jobs=1, threads=1)
        return CellContext(
            cell=self.cells[name], protocol=self.protocol, runtime=runtime, work_dir=self.work_dir
        )

    def run(self, name: str) -> None:
        context = self.context(name)
        watched: list[Watched] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("benchmark.recipe.train", partial(watch, into=watched))
            result = STAGES[context.cell.stage](context)
        self.results[name] = result
        if watched:
            (self.watched[name],) = watched
        write_cell_record(
            context.cell, context.protocol, context.runtime, context.work_dir, status="done", result=result
        )

    def recipe(self, name: str) -> Optimisation:
        return self.protocol.pretraining if name == "pretrain" else self.protocol.evaluations[name]

    def predictions(self, name: str) -> dict[str, Any]:
        with np.load(self.context(name).folder / PREDICTIONS_NAME, allow_pickle=False) as archive:
            return dict(archive)

    @property
    def export(self) -> dict[str, Tensor]:
        """The trunk that pre-training exported, read from its file by safetensors itself."""
        return load_file(self.context("pretrain").folder / pretrain.BACKBONE)


def watch(training: Training, runtime: Runtime, *, into: list[Watched]) -> TrainingResult:
    before = {name: value.detach().clone() for name, value in training.model.state_dict().items()}
    watched = Watched(training, before)
    into.append(watched)

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        watched.rates.append([float(group["lr"]) for group in optimizer.param_groups])
        watched.norms.append(float(torch.stack([g.norm() for g in gradients if g is not None]).norm()))

    training.optimizer.register_step_pre_hook(look)
    result = train(training, runtime)
    training.model.train()  # evaluating is the stage's own business: it must not rely on the engine's mode
    return result


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    overrides = [
        f"pretraining.clip_grad_norm={CLIP}",
        "evaluations.finetune.drop_path=0.6",  # large: leaving it on while predicting would show
        "evaluations.finetune.peak_lr=0.02",
    ]
    return Line.of(load_protocol(TINY, overrides=overrides), tmp_path_factory.mktemp("line"))


@pytest.fixture(scope="session")
def full_line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """With every field of the evaluation recipes set that can be set together."""
    return Line.of(load_protocol(FULL), tmp_path_factory.mktemp("full"))
