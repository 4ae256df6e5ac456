"""Training on mmengine: the one file that knows its Runner, loops and optimiser wrapper.

mmengine is used as a shell. Its checkpointing, resuming, samplers, seeding and metric history lose
data or slow down with time, so they are replaced here: everything is a pure function of (seed, step),
no random state is saved, and a run that is killed and resumed ends with the same bits.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from mmengine.model import BaseDataPreprocessor, BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from benchmark.batches import Batch, StepDataset, step_by_step
from benchmark.between_steps import METRICS_EVERY, Checkpoints, Metrics
from benchmark.image_part import ImagePart
from benchmark.interrupt import StopFlag
from benchmark.layout import METRICS_NAME
from benchmark.out_of_memory import memory_watched
from benchmark.process_group import process_count, process_rank
from benchmark.readers import named_readers, read
from benchmark.runtime import Runtime
from benchmark.step_numbers import DIVERGED_NAME, StepNumbers
from methods.patterns import keyed_number
from protocols.errors import ProtocolViolation

DROP_PATH = 6  # hash stream of the per-step seed
_runs = count()


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
    """One training run. `model` must be an `Objective` too; `folder` keeps metrics and checkpoints.

    `images` are those that `data`'s positions are of; without them errors can name positions alone.
    """

    model: nn.Module
    data: StepDataset
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    clip_grad_norm: float | None
    seed: int
    folder: Path
    stop: StopFlag = field(default_factory=StopFlag)
    images: ImagePart | None = None


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

    Raises TrainingDiverged on a loss, gradient or weights that are not finite, RanOutOfMemory with the step
    that did, Interrupted after a checkpoint when `training.stop` was raised, and ProtocolViolation if the
    processes present are not those the batches were cut for.
    """
    if process_count() != runtime.processes:
        raise ProtocolViolation(
            f"{process_count()} processes are running, the runtime says {runtime.processes}: "
            "the global batch would not be the protocol's"
        )
    runner = _Shell(training, runtime)
    if process_rank() == 0:
        (training.folder / DIVERGED_NAME).unlink(missing_ok=True)  # an earlier attempt's
    with training.stop.deferred(), named_readers():
        runner.train()
    # Its last step is saved; measuring may take longer than whoever sent the signal will wait.
    training.stop.obey("after its last step")
    loop = runner.train_loop
    assert isinstance(loop, StepLoop)
    steps = training.data.steps
    last_window = (steps.total - 1) % METRICS_EVERY + 1
    return TrainingResult(
        loss=loop.last_loss,
        loss_images=last_window * steps.global_batch,
        seconds=loop.seconds,
        images_seen=steps.total * steps.global_batch,
    )


class _ToDevice(BaseDataPreprocessor):
    """Moves a batch. The loader's are pinned where there is a GPU, so that nothing waits for the copy."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        return {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in data.items()
        }


class _TrainStep(BaseModel):
    """mmengine's train_step contract around an objective."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__(data_preprocessor=_ToDevice())
        self.objective = objective

    def forward(self, share: Tensor | float | None, mode: str, **batch: Tensor) -> dict[str, Tensor]:
        loss: Tensor = self.objective.loss(batch)  # type: ignore[operator]
        return {"loss": loss if share is None else loss * share}

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return losses["loss"], {"loss": losses["loss"].detach()}


class _Optimiser(OptimWrapper):
    """Accumulation and no_sync by mmengine; bf16 by autocast alone; clipping without its history."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, runtime: Runtime, clip: float | None) -> None:
        super().__init__(optimizer, accumulative_counts=runtime.accumulation)
        self._clip, self._runtime = clip, runtime
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.gradient_norm = torch.zeros(())  # of the last step's gradient, before it was clipped

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        is_half = self._runtime.precision == "bf16"
        autocast = torch.autocast(self._runtime.device, torch.bfloat16) if is_half else nullcontext()
        with super().optim_context(model), autocast:
            yield

    def scale_loss(self, loss: Tensor) -> Tensor:
        return super().scale_loss(loss) if self._runtime.accumulation > 1 else loss

    def step(self, **kwargs: Any) -> None:
        if self._clip is not None:
            self.gradient_norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        else:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            self.gradient_norm = torch.nn.utils.get_total_norm(gradients)
        self.optimizer.step(**kwargs)


@LOOPS.register_module(force=True)
class StepLoop(BaseLoop):
    """Steps start..total-1: seed, learning rate, micro-batches, update, metrics, checkpoints."""

    def __init__(self, runner: _Shell, dataloader: Any) -> None:
        super().__init__(runner, dataloader)
        self.runner: _Shell
        self.training = runner.training
        self.total = runner.training.data.steps.total
        self.step = self.first_step = 0
        self.seconds_before = self.waited = 0.0
        self.last_loss = math.nan
        # The metrics window that is open: part of the state, or a resumed run would report another loss.
        self.window_sum, self.window_steps = torch.zeros(()), 0
        self.numbers = StepNumbers()
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
        for micro_batches in self._waiting(runner.micro_batches(self.step)):
            seed_devices(keyed_number(training.seed, self.step, runner.rank, stream=DROP_PATH))
            training.schedule.step_update(self.step)
            with memory_watched(self.step + 1, training.data):
                loss = self._step(micro_batches)
            self.step += 1
            self.numbers.keep(loss, runner.optim_wrapper.gradient_norm)
            runner.metrics.after_step(self, loss)
            runner.checkpoints.after_step(self)
        runner.model.eval()
        return runner.model

    def _waiting(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """The same, and `waited` grows by the seconds that each took to come."""
        while True:
            begun = time.perf_counter()
            with memory_watched(self.step + 1, self.training.data):
                micro_batches = next(steps, None)
            self.waited += time.perf_counter() - begun
            if micro_batches is None:
                return
            yield micro_batches

    def _step(self, micro_batches: list[Batch]) -> Tensor:
        """One optimiser step on the mean over all positions of the global batch.

        Positions differ per image in some objectives, so a mean of the processes' or micro-batches'
        means would be another loss: each share is weighted by its count over the global count.
        """
        runner = self.runner
        losses = []
        for batch, share in zip(micro_batches, self._shares(micro_batches), strict=True):
            outputs = runner.model.train_step({**batch, "share": share}, runner.optim_wrapper)
            losses.append(outputs["loss"] / len(micro_batches))
        return sum(losses[1:], start=losses[0])

    def _shares(self, micro_batches: list[Batch]) -> list[float] | list[Tensor] | list[None]:
        """The weight of each micro-batch's mean loss, None where there is one; their mean over all is 1."""
        runner = self.runner
        parts = len(micro_batches) * runner.world_size
        if parts == 1:
            return [None]
        objective: Objective = runner.training.model  # type: ignore[assignment]
        # Counted before the batches are moved: on a GPU it would have to be waited for.
        counts = [float(objective.positions(batch)) for batch in micro_batches]
        if runner.world_size == 1:
            return [count * parts / sum(counts) for count in counts]
        # What the others have counted stays on the device, for the same reason.
        total = torch.full((), sum(counts), dtype=torch.float64, device=runner.runtime.device)
        dist.all_reduce(total)
        return [(torch.full_like(total, count * parts) / total).float() for count in counts]


def seed_devices(seed: int) -> None:
    """What `torch.manual_seed` does for the devices in use: for others it would note each call's stack."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


class _Shell(Runner):
    """mmengine's Runner without its environment probing, logging, history and weight initialisation."""

    def __init__(self, training: Training, runtime: Runtime) -> None:
        self.training, self.runtime = training, runtime
        self.metrics = Metrics(training.folder / METRICS_NAME)
        self.checkpoints = Checkpoints(training.folder / "checkpoints", runtime)
        training.folder.mkdir(parents=True, exist_ok=True)
        super().__init__(
            model=_TrainStep(training.model),
            work_dir=str(training.folder),
            train_dataloader=training.data,
            train_cfg={"type": "StepLoop"},
            optim_wrapper=_Optimiser(training.optimizer, runtime=runtime, clip=training.clip_grad_norm),
            randomness={"seed": training.seed},
            experiment_name=f"training-{next(_runs)}",
        )

    def micro_batches(self, start: int) -> Iterator[list[Batch]]:
        """Those of each step from `start` to the end."""
        data, workers = self.training.data, self.runtime.workers
        items = range(start * data.per_step, data.steps.total * data.per_step)
        if not workers and self.runtime.device == "cpu":
            # Here a loader would add its cost and nothing else.
            return step_by_step(map(data.__getitem__, items), data.per_step)
        reads = read(data, order=items, workers=workers, pin_memory=self.runtime.device == "cuda")
        return step_by_step(reads, data.per_step)

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
        """The loop itself calls what comes between steps."""

    def load_or_resume(self) -> None:
        self.checkpoints.resume(self.train_loop)

    def _init_model_weights(self) -> None:
        """mmengine would call `init_weights` of timm's trunk and overwrite what was loaded."""

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        model = model.to(self.runtime.device)
        if self._world_size == 1:
            return model
        devices = [torch.cuda.current_device()] if self.runtime.device == "cuda" else None
        return MMDistributedDataParallel(module=model, device_ids=devices, broadcast_buffers=False)
