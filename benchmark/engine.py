"""Training on mmengine: the one file that knows its Runner, loops, hooks and optimiser wrapper.

mmengine is used as a shell. Its checkpointing, resuming, samplers, seeding and metric history lose
data or slow down with time, so they are replaced here: everything is a pure function of (seed, step),
no random state is saved, and a run that is killed and resumed ends with the same bits.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmark.batches import Batch, StepDataset, step_by_step
from benchmark.checkpoint import load_newest, save_checkpoint
from benchmark.interrupt import StopFlag, leave_to_the_loop
from benchmark.layout import METRICS_NAME
from benchmark.process_group import check_same_start, process_count, process_rank
from benchmark.runtime import Runtime
from methods.patterns import keyed_hash
from protocols.errors import HarnessError, ProtocolViolation

METRICS_EVERY = 10
SAVING_SHARE = 0.02  # at most this part of the time goes into checkpoints
DROP_PATH = 6  # hash stream of the per-step seed
_runs = count()


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


class Objective(Protocol):
    """What the engine trains: a module that turns a batch into a mean loss over counted positions."""

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss over this micro-batch's positions, with gradient."""
        ...

    def positions(self, batch: Batch) -> Tensor:
        """How many positions that mean is over, a scalar int64: no weights involved."""
        ...


class Schedule(Protocol):
    """Sets the optimiser's learning rates of one step; a function of the step alone."""

    def step_update(self, num_updates: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run. `model` must be an `Objective` too; `folder` keeps metrics and checkpoints."""

    model: nn.Module
    data: StepDataset
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    clip_grad_norm: float | None
    seed: int
    folder: Path
    stop: StopFlag = field(default_factory=StopFlag)


@dataclass(frozen=True)
class TrainingResult:
    """`seconds` of training over all attempts, lost work not counted; `loss` of the last metrics line,
    a mean over `loss_images` images."""

    loss: float
    loss_images: int
    seconds: float
    images_seen: int


def train(training: Training, runtime: Runtime) -> TrainingResult:
    """Train to the end, going on from the newest checkpoint in `training.folder`.

    Raises TrainingDiverged on a non-finite loss, Interrupted after a checkpoint when `training.stop`
    was raised, and ProtocolViolation if the processes present are not those the batches were cut for.
    """
    if process_count() != runtime.processes:
        raise ProtocolViolation(
            f"{process_count()} processes are running, the runtime says {runtime.processes}: "
            "the global batch would not be the protocol's"
        )
    runner = _Shell(training, runtime)
    with training.stop.deferred():
        runner.train()
    loop = runner.train_loop
    assert isinstance(loop, _StepLoop)
    steps = training.data.steps
    last_window = (steps.total - 1) % METRICS_EVERY + 1
    return TrainingResult(
        loss=loop.last_loss,
        loss_images=last_window * steps.global_batch,
        seconds=loop.seconds,
        images_seen=steps.total * steps.global_batch,
    )


class _TrainStep(BaseModel):
    """mmengine's train_step contract around an objective."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, share: Tensor, mode: str, **batch: Tensor) -> dict[str, Tensor]:
        loss: Tensor = self.objective.loss(batch)  # type: ignore[operator]
        return {"loss": loss * share}

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return losses["loss"], {"loss": losses["loss"].detach()}


class _Optimiser(OptimWrapper):
    """Accumulation and no_sync by mmengine; bf16 by autocast alone; clipping without its history."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, runtime: Runtime, clip: float | None) -> None:
        super().__init__(optimizer, accumulative_counts=runtime.accumulation)
        self._clip, self._runtime = clip, runtime

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        half = self._runtime.precision == "bf16"
        with super().optim_context(model), torch.autocast(self._runtime.device, torch.bfloat16, enabled=half):
            yield

    def step(self, **kwargs: Any) -> None:
        if self._clip is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self._clip)
        self.optimizer.step(**kwargs)


@LOOPS.register_module(force=True)
class _StepLoop(BaseLoop):
    """Steps start..total-1: seed, learning rate, micro-batches, update, hooks."""

    def __init__(self, runner: _Shell, dataloader: Any) -> None:
        super().__init__(runner, dataloader)
        self.training = runner.training
        self.total = runner.training.data.steps.total
        self.step = self.first_step = 0
        self.seconds_before = 0.0
        self.last_loss = math.nan
        # The metrics window that is open: part of the state, or a resumed run would report another loss.
        self.window_sum, self.window_steps = torch.zeros(()), 0
        self._started = time.perf_counter()

    @property
    def iter(self) -> int:
        return 0  # the optimiser wrapper counts micro-batches from here; we resume on whole steps only

    @property
    def max_iters(self) -> int:
        return (self.total - self.step) * self.runner.runtime.accumulation

    @property
    def epoch(self) -> int:
        return self.training.data.steps.epoch(self.step)

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self._started

    def run(self) -> nn.Module:
        runner, training = self.runner, self.training
        runner.model.train()
        self._started = time.perf_counter()
        for micro_batches in runner.micro_batches(self.step):
            key = torch.tensor([runner.rank])
            torch.manual_seed(int(keyed_hash(training.seed, self.step, key, stream=DROP_PATH)))
            training.schedule.step_update(self.step)
            outputs = self._step(micro_batches)
            self.step += 1
            runner.call_hook("after_train_iter", batch_idx=self.step, data_batch=None, outputs=outputs)
        runner.model.eval()
        return runner.model

    def _step(self, micro_batches: list[Batch]) -> dict[str, Tensor]:
        """One optimiser step on the mean over all positions of the global batch.

        Positions differ per image in some objectives, so a mean of the processes' or micro-batches'
        means would be another loss: each share is weighted by its count over the global count.
        """
        runner = self.runner
        objective = runner.training.model
        counts = [objective.positions(batch).double().cpu() for batch in micro_batches]
        total = torch.stack(counts).sum()
        if runner.world_size > 1:
            shared = total.to(runner.runtime.device)
            dist.all_reduce(shared)
            total = shared.cpu()
        parts = len(micro_batches) * runner.world_size
        loss = torch.zeros((), device=runner.runtime.device)
        for batch, positions in zip(micro_batches, counts, strict=True):
            share = (positions * parts / total).float()
            data = {**batch, "share": share}
            outputs = runner.model.train_step(data, runner.optim_wrapper)
            loss += outputs["loss"] / len(micro_batches)
        return {"loss": loss}


class _Progress(Hook):
    """An append-only metrics file: one line every few steps, its loss the mean since the last line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark, self._marked_step = time.perf_counter(), 0

    def after_train_iter(
        self, runner: _Shell, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        loop = runner.train_loop
        loop.window_sum = loop.window_sum.to(outputs["loss"].device) + outputs["loss"]
        loop.window_steps += 1
        if loop.step % METRICS_EVERY and loop.step != loop.total:
            return
        mean = loop.window_sum / loop.window_steps
        if runner.world_size > 1:
            dist.all_reduce(mean)
            mean /= runner.world_size
        loop.last_loss = float(mean)
        now = time.perf_counter()
        steps = loop.step - max(self._marked_step, loop.first_step)
        rate = steps * loop.training.data.steps.global_batch / max(now - self._mark, 1e-9)
        self._mark, self._marked_step = now, loop.step
        loop.window_sum, loop.window_steps = torch.zeros(()), 0
        if not math.isfinite(loop.last_loss):
            raise TrainingDiverged(f"the loss is {loop.last_loss} at step {loop.step} of {loop.total}")
        if runner.rank == 0:
            line = {
                "step": loop.step,
                "steps": loop.total,
                "epoch": loop.step / loop.training.data.steps.per_epoch,
                "loss": loop.last_loss,
                "lr": max(group["lr"] for group in loop.training.optimizer.param_groups),
                "images_per_second": round(rate, 1),
                "seconds": round(loop.seconds, 3),
            }
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


class _Checkpoints(Hook):
    """Resumes before the first step; saves at intervals of time and when asked to stop."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._last = time.perf_counter()
        self._cost = 0.0

    def before_run(self, runner: _Shell) -> None:
        state = load_newest(self._folder)
        if state is not None:
            runner.training.model.load_state_dict(state["model"], strict=True)
            runner.training.optimizer.load_state_dict(state["optimizer"])
            loop = runner.train_loop
            if state["precision"] != runner.runtime.precision:
                begun, given = state["precision"], runner.runtime.precision
                raise HarnessError(
                    f"this cell was begun in {begun}; go on with --precision {begun} --redo-failed, "
                    f"or delete its folder to begin again in {given}"
                )
            loop.step = loop.first_step = state["step"]
            loop.seconds_before, loop.last_loss = state["seconds"], state["loss"]
            sums = state["window_sums"]
            own = sums[runner.rank] if len(sums) == runner.world_size else sum(sums) / len(sums)
            loop.window_sum, loop.window_steps = torch.tensor(own), state["window_steps"]
            saved_by = f"{len(sums)} process{'es' if len(sums) > 1 else ''}"
            runner.logger.info("going on from step %d of %d, saved by %s", loop.step, loop.total, saved_by)
        check_same_start(runner.train_loop.step)

    def after_train_iter(
        self, runner: _Shell, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        loop, stop = runner.train_loop, runner.training.stop
        started = time.perf_counter()
        due = started - self._last >= max(self._seconds, self._cost / SAVING_SHARE)
        # Processes agree on when to save only by asking each other; one process need not ask.
        if runner.world_size > 1:
            # Only the first one saves, and knows what that costs.
            due = due and runner.rank == 0
            asked = torch.tensor([float(due), float(stop.raised)], device=runner.runtime.device)
            dist.all_reduce(asked, dist.ReduceOp.MAX)
            due, stopping = bool(asked[0]), bool(asked[1])
        else:
            stopping = stop.raised
        if not (due or stopping or loop.step == loop.total):
            return
        # Each process's own open window, so that each goes on with its own.
        window_sums = [float(loop.window_sum)]
        if runner.world_size > 1:
            window_sums *= runner.world_size
            dist.all_gather_object(window_sums, float(loop.window_sum))
        if runner.rank == 0:
            state = {
                "model": runner.training.model.state_dict(),
                "optimizer": runner.training.optimizer.state_dict(),
                "seconds": loop.seconds,
                "loss": loop.last_loss,
                "window_sums": window_sums,
                "window_steps": loop.window_steps,
                "precision": runner.runtime.precision,
            }
            save_checkpoint(self._folder, loop.step, state)
        self._last = time.perf_counter()
        self._cost = self._last - started
        if stopping and loop.step != loop.total:
            if runner.world_size > 1:
                dist.barrier()  # nobody leaves, and takes others along, before the first one has saved
            stop.interrupt(f"at step {loop.step} of {loop.total}")


class _Shell(Runner):
    """mmengine's Runner without its environment probing, logging, history and weight initialisation."""

    def __init__(self, training: Training, runtime: Runtime) -> None:
        self.training, self.runtime = training, runtime
        training.folder.mkdir(parents=True, exist_ok=True)
        super().__init__(
            model=_TrainStep(training.model),
            work_dir=str(training.folder),
            train_dataloader=training.data,
            train_cfg={"type": "_StepLoop"},
            optim_wrapper=_Optimiser(training.optimizer, runtime=runtime, clip=training.clip_grad_norm),
            custom_hooks=[
                _Progress(training.folder / METRICS_NAME),
                _Checkpoints(training.folder / "checkpoints", runtime.checkpoint_seconds),
            ],
            randomness={"seed": training.seed},
            experiment_name=f"training-{next(_runs)}",
        )

    def micro_batches(self, start: int) -> Iterator[list[Batch]]:
        """Those of each step from `start` to the end."""
        data, workers = self.training.data, self.runtime.workers
        # A process that reads keeps two items: a whole step of several micro-batches could fill the memory.
        loader = DataLoader(
            data,
            batch_size=None,
            sampler=range(start * data.per_step, data.steps.total * data.per_step),
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,  # not the cell's own start method
            pin_memory=self.runtime.device == "cuda",
            prefetch_factor=2 if workers else None,
            timeout=600 if workers else 0,
            worker_init_fn=leave_to_the_loop,
        )
        return step_by_step(loader, data.per_step)

    # What follows replaces parts of mmengine that are broken, slow or wrong here (docs/engine.md).

    def setup_env(self, env_cfg: Any) -> None:
        self._rank, self._world_size = process_rank(), process_count()
        self._timestamp = "."

    def _log_env(self, env_cfg: Any) -> None:
        """benchmark/provenance.py records the environment; mmengine's probe starts a compiler."""

    def build_logger(self, *args: Any, **kwargs: Any) -> logging.Logger:
        return logging.getLogger(__name__)

    def build_visualizer(self, visualizer: Any = None) -> None:
        """Metrics go to metrics.jsonl alone."""

    def dump_config(self) -> None:
        """Protocols are ours; there is no mmengine config to dump."""

    def register_hooks(self, default_hooks: Any = None, custom_hooks: Any = None) -> None:
        self.register_custom_hooks(custom_hooks)

    def _init_model_weights(self) -> None:
        """mmengine would call `init_weights` of timm's trunk and overwrite what was loaded."""

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        model = model.to(self.runtime.device)
        if self._world_size == 1:
            return model
        devices = [torch.cuda.current_device()] if self.runtime.device == "cuda" else None
        return MMDistributedDataParallel(module=model, device_ids=devices, broadcast_buffers=False)
