"""Times real training steps on made-up images: the method, objective, optimiser and precision of a run.

What is left out is what depends on more than one device and its arithmetic: reading and augmenting images,
and what processes tell one another. Each size starts with steps that are not timed (kernels are chosen, the
optimiser's moments are made); of the timed ones the median counts.

Shapes: B images of a micro-batch, S their side, N patches, D width, V codebook, C classes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmark import provenance
from benchmark.batches import Batch
from benchmark.classification import Classification
from benchmark.commands.text import size
from benchmark.equal_compute import codebook_size
from benchmark.optim import build_optimizer
from benchmark.placement import USABLE_MEMORY
from benchmark.plan import Cell
from benchmark.pretrain import PretrainingBatches, PretrainingObjective
from benchmark.probe import ClassificationOfImages, FrozenTrunk, linear_classifier
from benchmark.runtime import Runtime
from benchmark.step_choices import computed_as_chosen
from benchmark.step_costs import (
    LARGEST,
    Machine,
    StepCost,
    Timing,
    Work,
    is_augmented,
    recipe_of,
    step_name,
    step_shape,
    torch_version,
)
from benchmark.token_classification import TokenMlp, token_vit
from methods import build_method
from methods.trunk import build_classifier, build_trunk
from protocols.errors import HarnessError
from protocols.frozen import digest_of
from protocols.recipes import FineTuning, LinearProbe, TokenClassification
from protocols.schema import Protocol

# A head's classes: ImageNet-1k's. Of smaller sets the head is smaller, which is lost beside the trunk.
CLASSES = 1000
# One micro-batch on a CPU: some seconds of one core. GPUs need more images to be busy.
CPU_FLOPS = 2e11
APART = {"cpu": 2, "cuda": 4}  # the larger micro-batch over the smaller
WARM_UP = {"cpu": 1, "cuda": 3}
FEWEST_REPEATS, MOST_REPEATS = 1, 10
SECONDS_OF_A_SIZE = 3.0
MakeBatch = Callable[[int], Batch]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a cell repeats: the loss of a micro-batch, its gradient, and the update.

    `once` is the frozen trunk on a batch of images, where features are computed once for all epochs.
    """

    objective: nn.Module
    optimizer: torch.optim.Optimizer
    clip_grad_norm: float | None
    make_batch: MakeBatch
    once: Callable[[int], None] | None

    @property
    def trained(self) -> list[nn.Parameter]:
        """All parameters that the optimiser moves."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def this_machine(runtime: Runtime) -> Machine:
    """The device that steps are timed on here."""
    is_gpu = runtime.device == "cuda"
    return Machine(
        device=runtime.device,
        name=torch.cuda.get_device_name() if is_gpu else provenance.environment()["cpu"],
        precision=runtime.precision,
        torch=torch_version(),
        threads=None if is_gpu else runtime.threads,
        memory_bytes=torch.cuda.get_device_properties(0).total_memory if is_gpu else None,
        compile=runtime.compile,
        activation_checkpointing=runtime.activation_checkpointing,
    )


def measure(cell: Cell, protocol: Protocol, runtime: Runtime) -> StepCost:
    """Time a step of `cell`, a training one, at two micro-batches; at smaller ones where memory runs out."""
    shape = step_shape(cell, protocol)
    assert shape is not None
    device = runtime.device
    timings: list[Timing] = []
    updates: list[float] = []
    gradient_bytes, once_seconds, bound = 0, 0.0, None
    large = largest_micro_batch(cell, protocol, device=device)
    while not timings and large >= 1:
        tried = large
        try:
            step = build_step(cell, protocol, runtime)
            gradient_bytes = sum(one.numel() * one.element_size() for one in step.trained)
            sizes = sorted({max(1, large // APART[device]), large})
            with computed_as_chosen(step.objective, partial(step.make_batch, sizes[0]), runtime):
                for tried in sizes:
                    timing, update_seconds = _timed(step, tried, runtime)
                    timings.append(timing)
                    updates.append(update_seconds)
                once_seconds = _once(step, large, runtime)
        except torch.OutOfMemoryError:
            timings, updates, bound, large = [], [], tried, tried // 2
        # Outside the handler: its exception holds the frames, and so the tensors, that ran out.
        step = None  # type: ignore[assignment]
        if device == "cuda":
            torch.cuda.empty_cache()
            if bound is not None:
                check_nobody_else(*torch.cuda.mem_get_info())
    return StepCost(
        shape=digest_of(shape),
        step=step_name(cell),
        timings=tuple(timings),
        update_seconds=statistics.median(updates) if updates else 0.0,
        gradient_bytes=gradient_bytes,
        once_seconds_per_image=once_seconds,
        out_of_memory_at=bound,
    )


def check_nobody_else(free: int, total: int) -> None:
    """HarnessError if other processes hold memory: what ran out beside them says nothing of an empty GPU."""
    if free < USABLE_MEMORY * total:
        raise HarnessError(
            f"memory ran out, and other processes hold {size(total - free)} of the GPU's {size(total)} "
            "(nvidia-smi names them): end them, or choose free GPUs with CUDA_VISIBLE_DEVICES"
        )


def largest_micro_batch(cell: Cell, protocol: Protocol, *, device: str) -> int:
    """The larger of the two sizes: on a CPU what takes seconds, on a GPU what keeps it busy."""
    work = Work.of(cell, protocol)
    assert work is not None
    most = min(LARGEST, work.global_batch)
    flops = cell.train_flops / max(1, work.once or work.images)
    if device != "cpu" or not flops:
        return most
    power = max(0, int(CPU_FLOPS / flops).bit_length() - 1)
    return min(most, 2**power)


def build_step(cell: Cell, protocol: Protocol, runtime: Runtime) -> Step:
    """The step of `cell` on the runtime's device, on made-up images, tokens and labels."""
    recipe = recipe_of(cell, protocol)
    made = _Made(protocol, runtime.device)
    if isinstance(recipe, FineTuning):
        parts = _fine_tuning(cell, protocol, recipe, made)
    elif isinstance(recipe, LinearProbe):
        parts = _linear_probe(cell, protocol, recipe, made)
    elif isinstance(recipe, TokenClassification):
        parts = _token_classification(cell, protocol, recipe, made)
    else:
        parts = _pretraining(cell, protocol, made)
    assert recipe is not None
    optimizer = build_optimizer(
        parts.weights.to(runtime.device), recipe, undecayed=parts.undecayed, layer_decay=parts.layer_decay
    )
    return Step(
        objective=parts.objective.train(),
        optimizer=optimizer,
        clip_grad_norm=recipe.clip_grad_norm,
        make_batch=parts.make_batch,
        once=parts.once,
    )


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a stage gives to the engine: `weights` are the trained part of `objective`."""

    objective: nn.Module
    weights: nn.Module
    make_batch: MakeBatch
    undecayed: set[str]
    layer_decay: float | None = None
    once: Callable[[int], None] | None = None


@dataclass(frozen=True)
class _Made:
    """Inputs without a data set."""

    protocol: Protocol
    device: str

    def images(self, count: int) -> Tensor:
        """(B, 3, S, S), about as normalised ones are."""
        size = self.protocol.data.image_size
        return torch.randn(count, 3, size, size, device=self.device)

    def pixels(self, count: int) -> Tensor:
        """(B, 3, S, S) uint8, channels last in memory, on the CPU."""
        size = self.protocol.data.image_size
        return torch.randint(256, (count, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)

    def labels(self, count: int) -> Tensor:
        """(B,) below C."""
        return torch.randint(CLASSES, (count,), device=self.device)

    def soft_labels(self, count: int) -> Tensor:
        """(B, C), rows that sum to 1."""
        return torch.rand(count, CLASSES, device=self.device).softmax(dim=1)

    def tokens(self, count: int, patches: int, codebook_size: int) -> Tensor:
        """(B, N) below V; (B, 0) without a codebook."""
        columns = patches if codebook_size else 0
        return torch.randint(max(1, codebook_size), (count, columns), device=self.device)


def _pretraining(cell: Cell, protocol: Protocol, made: _Made) -> _Parts:
    assert cell.method is not None
    assert cell.trunk is not None
    recipe = protocol.pretraining_with(dict(cell.pretraining))
    trunk = protocol.trunk_spec(cell.trunk, drop_path=recipe.drop_path)
    codes = codebook_size(protocol, cell.tokenizer)
    method = build_method(cell.method, trunk=trunk, codebook_size=codes, seed=0, **dict(cell.hyperparameters))

    def make_batch(count: int) -> Batch:
        batches = PretrainingBatches(
            method,
            read=lambda positions: made.pixels(len(positions)).numpy(),
            sample_ids=np.arange(count),
            tokens=lambda positions: made.tokens(len(positions), trunk.patches, codes).cpu().numpy(),
            jitter=recipe.color_jitter,
            seed=0,
        )
        return {name: value.to(made.device) for name, value in batches(np.arange(count), 0).items()}

    return _Parts(
        objective=PretrainingObjective(method, mean=protocol.data.mean, std=protocol.data.std),
        weights=method,
        make_batch=make_batch,
        undecayed=method.no_weight_decay(),
    )


def _fine_tuning(cell: Cell, protocol: Protocol, recipe: FineTuning, made: _Made) -> _Parts:
    trunk = protocol.trunk_spec(cell.trunk or "", drop_path=recipe.drop_path)
    classifier = build_classifier(trunk, classes=CLASSES, backbone=None)
    make_labels = made.labels if recipe.mixup_group is None else made.soft_labels
    return _Parts(
        objective=Classification(classifier, label_smoothing=recipe.label_smoothing),
        weights=classifier,
        make_batch=lambda count: {"inputs": made.images(count), "labels": make_labels(count)},
        undecayed=set(classifier.no_weight_decay()),
        layer_decay=recipe.layer_decay,
    )


def _linear_probe(cell: Cell, protocol: Protocol, recipe: LinearProbe, made: _Made) -> _Parts:
    trunk = protocol.trunk_spec(cell.trunk or "", drop_path=0.0)
    frozen = FrozenTrunk(build_trunk(trunk), features=recipe.features, device=made.device)
    classifier = linear_classifier(trunk.width, CLASSES)
    if is_augmented(recipe):
        return _Parts(
            objective=ClassificationOfImages(classifier, frozen),
            weights=classifier,
            make_batch=lambda count: {"inputs": made.images(count), "labels": made.labels(count)},
            undecayed=set(),
        )

    def features(count: int) -> Tensor:
        return torch.randn(count, trunk.width, device=made.device)  # (B, D)

    def once(count: int) -> None:
        frozen(made.images(count))

    return _Parts(
        objective=Classification(classifier),
        weights=classifier,
        make_batch=lambda count: {"inputs": features(count), "labels": made.labels(count)},
        undecayed=set(),
        once=once,
    )


def _token_classification(cell: Cell, protocol: Protocol, recipe: TokenClassification, made: _Made) -> _Parts:
    codes = codebook_size(protocol, cell.tokenizer)
    # Tokens lie on the patches of every trunk alike: any of them tells how many there are.
    trunk = protocol.trunk_spec(
        recipe.trunk or protocol.defaults.trunks[0], drop_path=recipe.drop_path or 0.0
    )
    classifier: nn.Module
    undecayed: set[str] = set()
    if recipe.width is not None and recipe.hidden_width is not None:
        classifier = TokenMlp(
            codebook_size=codes,
            width=recipe.width,
            hidden_width=recipe.hidden_width,
            classes=CLASSES,
        )
    else:
        classifier = token_vit(trunk, codebook_size=codes, classes=CLASSES)
        undecayed = set(classifier.no_weight_decay())
    return _Parts(
        objective=Classification(classifier, label_smoothing=recipe.label_smoothing),
        weights=classifier,
        make_batch=lambda count: {
            "inputs": made.tokens(count, trunk.patches, codes),
            "labels": made.labels(count),
        },
        undecayed=undecayed,
    )


def _timed(step: Step, images: int, runtime: Runtime) -> tuple[Timing, float]:
    """One size: forward and backward with the peak of memory, and the seconds of the update."""
    batch = step.make_batch(images)
    is_gpu = runtime.device == "cuda"
    for _ in range(WARM_UP[runtime.device]):
        seconds = _step(step, batch, runtime)
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    repeats = max(FEWEST_REPEATS, min(MOST_REPEATS, int(SECONDS_OF_A_SIZE / sum(seconds))))
    runs = [_step(step, batch, runtime) for _ in range(repeats)]
    timing = Timing(
        images=images,
        seconds=statistics.median(one for one, _ in runs),
        peak_bytes=torch.cuda.max_memory_allocated() if is_gpu else None,
    )
    return timing, statistics.median(update for _, update in runs)


def _step(step: Step, batch: Batch, runtime: Runtime) -> tuple[float, float]:
    """Seconds of forward and backward, and of clipping and update, as benchmark/engine.py does them."""
    is_half = runtime.precision == "bf16"
    started = _now(runtime)
    with torch.autocast(runtime.device, torch.bfloat16, enabled=is_half):
        loss: Tensor = step.objective.loss(batch)  # type: ignore[operator]
    loss.backward()
    passed = _now(runtime)
    if step.clip_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(step.trained, step.clip_grad_norm)
    step.optimizer.step()
    step.optimizer.zero_grad()
    return passed - started, _now(runtime) - passed


def _once(step: Step, images: int, runtime: Runtime) -> float:
    """Seconds an image of what is done once; 0 where there is no such thing."""
    if step.once is None:
        return 0.0
    seconds = []
    for _ in range(WARM_UP[runtime.device] + FEWEST_REPEATS):
        started = _now(runtime)
        step.once(images)
        seconds.append(_now(runtime) - started)
    return statistics.median(seconds[WARM_UP[runtime.device] :]) / images


def _now(runtime: Runtime) -> float:
    """The clock, once the device has done all that it was given."""
    if runtime.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
