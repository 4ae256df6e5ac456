"""What happens between the engine's steps: lines of metrics, checkpoints, and a polite stop."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from benchmark.checkpoint import load_newest, save_checkpoint
from benchmark.process_group import Agreement, check_same_start, process_count, process_rank
from benchmark.runtime import Runtime
from protocols.errors import HarnessError
from protocols.files import append_line

if TYPE_CHECKING:
    from benchmark.engine import StepLoop

log = logging.getLogger(__name__)
METRICS_EVERY = 10
SAVING_SHARE = 0.02  # at most this part of the time goes into checkpoints
GO_ON, SAVE, STOP = 0, 1, 2  # what one process wishes; the largest wish of all is what all do


class TrainingDiverged(HarnessError):
    """The loss, the gradient or the weights are no longer finite numbers; the same in every process."""


class Metrics:
    """An append-only metrics file: one line every few steps, its loss the mean since the last line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark, self._marked_step, self._marked_wait = time.perf_counter(), 0, 0.0

    def after_step(self, loop: StepLoop, loss: Tensor) -> None:
        """Take a step's loss, and read those of the window where it ends: a GPU is waited for only then."""
        loop.window_sum = loop.window_sum.to(loss.device) + loss
        loop.window_steps += 1
        if loop.step % METRICS_EVERY and loop.step != loop.total:
            return
        loop.numbers.check(loop)
        mean = loop.window_sum / loop.window_steps
        if process_count() > 1:
            dist.all_reduce(mean)
            mean /= process_count()
        loop.last_loss = float(mean)
        now = time.perf_counter()
        steps = loop.step - max(self._marked_step, loop.first_step)
        seconds = max(now - self._mark, 1e-9)
        waiting = (loop.waited - self._marked_wait) / seconds
        self._mark, self._marked_step, self._marked_wait = now, loop.step, loop.waited
        loop.window_sum, loop.window_steps = torch.zeros((), device=loss.device), 0
        if process_rank() == 0:
            line = {
                "step": loop.step,
                "steps": loop.total,
                "epoch": loop.step / loop.training.data.steps.per_epoch,
                "loss": loop.last_loss,
                "lr": max(group["lr"] for group in loop.training.optimizer.param_groups),
                "images_per_second": round(steps * loop.training.data.steps.global_batch / seconds, 1),
                "waiting_for_data": round(waiting, 4),
                "seconds": round(loop.seconds, 3),
            }
            append_line(self._path, json.dumps(line, allow_nan=False))


class Checkpoints:
    """Resumes before the first step; saves at intervals of time and when asked to stop."""

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self._folder, self._runtime = folder, runtime
        self._last = time.perf_counter()
        self._cost = 0.0
        # Processes agree on when to save only by asking each other; one process need not ask.
        self._agreement = Agreement(runtime.device) if runtime.processes > 1 else None

    def resume(self, loop: StepLoop) -> None:
        """Go on from the newest checkpoint, where there is one."""
        state = load_newest(self._folder)
        if state is not None:
            loop.training.model.load_state_dict(state["model"], strict=True)
            loop.training.optimizer.load_state_dict(state["optimizer"])
            if state["precision"] != self._runtime.precision:
                begun, given = state["precision"], self._runtime.precision
                raise HarnessError(
                    f"this cell was begun in {begun}; go on with --precision {begun} --redo-failed, "
                    f"or delete its folder to begin again in {given}"
                )
            loop.step = loop.first_step = state["step"]
            loop.seconds_before, loop.last_loss = state["seconds"], state["loss"]
            sums = state["window_sums"]
            own = sums[process_rank()] if len(sums) == process_count() else sum(sums) / len(sums)
            loop.window_sum, loop.window_steps = torch.tensor(own), state["window_steps"]
            loop.numbers.last_finite = state.get("last_finite")
            saved_by = f"{len(sums)} process{'es' if len(sums) > 1 else ''}"
            log.info("going on from step %d of %d, saved by %s", loop.step, loop.total, saved_by)
        check_same_start(loop.step)

    def after_step(self, loop: StepLoop) -> None:
        """Save where that is due, wished for by anybody, or the end; Interrupted after a wish to stop."""
        wish = self._wish(loop) if self._agreement is None else self._agreement.answer()
        if wish or loop.step == loop.total:
            self._save(loop)
        if wish == STOP and loop.step != loop.total:
            if process_count() > 1:
                dist.barrier()  # nobody leaves, and takes others along, before the first one has saved
            loop.training.stop.interrupt(f"at step {loop.step} of {loop.total}")
        if self._agreement is not None:
            self._agreement.ask(self._wish(loop))

    def _wish(self, loop: StepLoop) -> int:
        """What this process would have all do."""
        if loop.training.stop.raised:
            return STOP
        # Only the first one saves, and knows what that costs.
        due = time.perf_counter() - self._last >= max(
            self._runtime.checkpoint_seconds, self._cost / SAVING_SHARE
        )
        return SAVE if due and process_rank() == 0 else GO_ON

    def _save(self, loop: StepLoop) -> None:
        started = time.perf_counter()
        if not loop.numbers.read(loop):
            # What follows from these weights ends the training within ten steps, whenever it is saved.
            log.warning("no checkpoint of step %d: the weights are not finite", loop.step)
            return
        # Each process's own open window, so that each goes on with its own.
        window_sums = [float(loop.window_sum)]
        if process_count() > 1:
            window_sums *= process_count()
            dist.all_gather_object(window_sums, float(loop.window_sum))
        if process_rank() == 0:
            state = {
                "model": loop.training.model.state_dict(),
                "optimizer": loop.training.optimizer.state_dict(),
                "seconds": loop.seconds,
                "loss": loop.last_loss,
                "window_sums": window_sums,
                "window_steps": loop.window_steps,
                "last_finite": loop.numbers.last_finite,
                "precision": self._runtime.precision,
            }
            save_checkpoint(self._folder, loop.step, state)
        self._last = time.perf_counter()
        self._cost = self._last - started
