"""What a training step costs on a device, as `plan --probe` measured it: looked up and kept here. No torch.

    WORK_DIR/<protocol>/step-costs.json     one entry for each machine and shape of a step

Measured are, for one process: forward and backward of a micro-batch at two sizes, with the peak of the
device's memory at each; the update (clipping and optimiser), once a step; and, where a probe's features are
computed once, the frozen trunk on one image. From these follow time and memory at any micro-batch:
- Memory grows linearly with the images, so it follows beyond what was measured. Gradients that wait for
  further micro-batches, and those that processes exchange, each take the weights' size once more.
- Time does not: small micro-batches are bound by the start of kernels. Between the two sizes it is
  interpolated, below the smaller it stays, above the larger it grows at the larger one's rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from benchmark.equal_compute import codebook_size
from benchmark.layout import STEP_COSTS_NAME
from benchmark.plan import Cell
from benchmark.runtime import Runtime
from protocols.errors import HarnessError
from protocols.files import write_atomically
from protocols.frozen import Frozen, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, digest_of
from protocols.recipes import FineTuning, LinearProbe, NearestNeighbours, Optimisation, TokenClassification
from protocols.schema import Protocol

_GPU_FACTS = Path("/proc/driver/nvidia/gpus")
_MOST_BYTES = 16 * 1024 * 1024
LARGEST = 256  # images of the larger of the two micro-batches, of a global batch that has as many


class Machine(Frozen):
    """What a step's cost depends on beside its shape. `memory_bytes` is that of one GPU, None on a CPU."""

    device: Literal["cpu", "cuda"]
    name: str
    precision: Literal["fp32", "bf16"]
    torch: str
    threads: PositiveInt | None
    memory_bytes: PositiveInt | None
    compile: bool = False
    activation_checkpointing: bool = False

    @property
    def described(self) -> str:
        """For a reader: the device and how it was used."""
        threads = "" if self.threads is None else f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        ways = ", compiled" * self.compile + ", with activation checkpointing" * self.activation_checkpointing
        return f"{self.name} in {self.precision}{ways}{threads} (torch {self.torch})"


class Timing(Frozen):
    """Forward and backward of one micro-batch; `peak_bytes` of a GPU's memory, None on a CPU."""

    images: PositiveInt
    seconds: PositiveFloat
    peak_bytes: PositiveInt | None


class StepCost(Frozen):
    """One shape of a step. `timings` are of growing micro-batches; none where one image is too many.

    `out_of_memory_at` is the smallest micro-batch that was tried and did not fit, None if all did.
    """

    shape: str
    step: str
    timings: tuple[Timing, ...]
    update_seconds: NonNegativeFloat
    gradient_bytes: NonNegativeInt
    once_seconds_per_image: NonNegativeFloat = 0.0
    out_of_memory_at: PositiveInt | None = None

    @model_validator(mode="after")
    def _ascending(self) -> StepCost:
        sizes = [one.images for one in self.timings]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"micro-batches must grow, and are {sizes}")
        return self

    def seconds(self, images: int) -> float:
        """Forward and backward of a micro-batch of `images`. Only where there are timings."""
        first, last = self.timings[0], self.timings[-1]
        if images <= first.images:
            return first.seconds
        if images >= last.images:
            return last.seconds * images / last.images
        share = (images - first.images) / (last.images - first.images)
        return first.seconds + share * (last.seconds - first.seconds)

    @property
    def bytes_per_image(self) -> float | None:
        """How the peak grows with each image; None where memory was not measured."""
        if not self.timings or self.timings[-1].peak_bytes is None or self.timings[0].peak_bytes is None:
            return None
        first, last = self.timings[0], self.timings[-1]
        if last.images == first.images:  # no slope: all of it is taken to grow
            return self.timings[-1].peak_bytes / last.images
        return max(0, self.timings[-1].peak_bytes - self.timings[0].peak_bytes) / (last.images - first.images)

    @property
    def bytes_fixed(self) -> float | None:
        """The peak without an image: weights, gradients, moments; None where memory was not measured."""
        per_image = self.bytes_per_image
        if per_image is None or self.timings[-1].peak_bytes is None:
            return None
        return max(0.0, self.timings[-1].peak_bytes - per_image * self.timings[-1].images)

    def peak_bytes(self, images: int, *, processes: int = 1, accumulation: int = 1) -> float | None:
        """Peak of one process's GPU with micro-batches of `images`; None where memory was not measured."""
        per_image, fixed = self.bytes_per_image, self.bytes_fixed
        if per_image is None or fixed is None:
            return None
        copies = (processes > 1) + (accumulation > 1)
        return fixed + per_image * images + copies * self.gradient_bytes


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """All that is known for one machine: shape digest -> cost."""

    machine: Machine
    costs: Mapping[str, StepCost]

    def of(self, cell: Cell, protocol: Protocol) -> StepCost | None:
        """The cost of one step of `cell`; None if it has no steps, or none was measured."""
        shape = step_shape(cell, protocol)
        return None if shape is None else self.costs.get(digest_of(shape))


class DamagedCosts(HarnessError):
    """The file of costs cannot be read."""


class Kept(Frozen):
    """An entry of the file."""

    machine: Machine
    cost: StepCost


class _File(Frozen):
    format: Literal[1] = 1
    measured: tuple[Kept, ...]


def recipe_of(cell: Cell, protocol: Protocol) -> Optimisation | None:
    """What `cell` trains under; None for tokens and for nearest neighbours, which train nothing."""
    if cell.stage == "tokenise":
        return None
    if cell.evaluation is None:
        return protocol.pretraining_with(dict(cell.pretraining))
    recipe = protocol.evaluation(cell.evaluation, cell.trunk)
    return None if isinstance(recipe, NearestNeighbours) else recipe


def is_augmented(recipe: LinearProbe) -> bool:
    """True if features are computed anew for each batch, False if once for all epochs."""
    return recipe.resized_crop_scale is not None or bool(recipe.horizontal_flip)


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much a cell trains: `steps` of `global_batch` images, after `once` images of a frozen trunk."""

    steps: int
    global_batch: int
    once: int

    @property
    def images(self) -> int:
        """Images in all steps."""
        return self.steps * self.global_batch

    @classmethod
    def of(cls, cell: Cell, protocol: Protocol) -> Work | None:
        """None for a cell that trains nothing."""
        recipe = recipe_of(cell, protocol)
        if recipe is None:
            return None
        images = getattr(recipe, "labelled_images", protocol.data.pretraining.count)
        is_once = isinstance(recipe, LinearProbe) and not is_augmented(recipe)
        return cls(
            steps=images // recipe.global_batch * recipe.epochs,
            global_batch=recipe.global_batch,
            once=images if is_once else 0,
        )


def step_name(cell: Cell) -> str:
    """What a person calls a step; several shapes may share one name."""
    what = cell.evaluation if cell.stage == "token-classification" else cell.stage
    method = cell.method if cell.stage == "pretrain" else None
    return " ".join(part for part in (what, method, cell.trunk) if part)


def step_shape(cell: Cell, protocol: Protocol) -> dict[str, Any] | None:
    """All that moves the cost of a step of `cell`, as plain JSON types; None for a cell without steps."""
    recipe = recipe_of(cell, protocol)
    if recipe is None:
        return None
    shape: dict[str, Any] = {"stage": cell.stage, "clips": recipe.clip_grad_norm is not None}
    # What was measured at a few images tells little of the time and memory of thousands.
    shape["measured_images"] = min(LARGEST, recipe.global_batch)
    drop_path = getattr(recipe, "drop_path", None) or 0.0
    if cell.trunk is not None:
        shape["trunk"] = protocol.trunk_spec(cell.trunk, drop_path=drop_path).model_dump(mode="json")
    if cell.stage in ("pretrain", "token-classification"):
        shape["codebook_size"] = codebook_size(protocol, cell.tokenizer)
    if cell.stage == "pretrain":
        shape |= {"method": cell.method, "hyperparameters": dict(cell.hyperparameters)}
    if isinstance(recipe, FineTuning):
        shape["layer_decay"] = recipe.layer_decay is not None
        shape["soft_labels"] = recipe.mixup_group is not None
    if isinstance(recipe, LinearProbe):
        shape |= {"features": recipe.features, "is_augmented": is_augmented(recipe)}
    if isinstance(recipe, TokenClassification):
        shape |= {"width": recipe.width, "hidden_width": recipe.hidden_width}
        shape["patches"] = protocol.trunk_spec(protocol.defaults.trunks[0], drop_path=0.0).patches
    return shape


def costs_path(work_dir: Path, protocol: str) -> Path:
    """WORK_DIR/PROTOCOL/step-costs.json."""
    return work_dir / protocol / STEP_COSTS_NAME


def read_kept(path: Path) -> tuple[Kept, ...]:
    """All entries of the file, the newest last; none if there is no file. DamagedCosts if it is not whole."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DamagedCosts(f"{path}: damaged: far too long")
        return _File.model_validate_json(path.read_bytes()).measured
    except FileNotFoundError:
        return ()
    except (ValidationError, UnicodeDecodeError, IsADirectoryError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "not text"
        raise DamagedCosts(
            f"{path}: damaged ({first}); delete it, or measure anew with plan --probe"
        ) from None


def write_kept(path: Path, kept: Sequence[Kept]) -> None:
    """Replace the file, atomically."""
    write_atomically(path, _File(measured=tuple(kept)).model_dump_json(indent=1) + "\n")


def of_machine(kept: Iterable[Kept], machine: Machine) -> StepCosts:
    """What the entries say of `machine`; of one shape the newest."""
    return StepCosts(
        machine=machine,
        costs={entry.cost.shape: entry.cost for entry in kept if entry.machine == machine},
    )


def known_costs(work_dir: Path, protocol: str, runtime: Runtime) -> StepCosts | None:
    """What was measured for this runtime's device and choices and the torch that is here; None if nothing.

    On a machine that has no GPU, costs of the GPU that was measured last stand for a run elsewhere.
    DamagedCosts if the file cannot be read.
    """
    here = _Here(runtime)
    fitting = [entry for entry in read_kept(costs_path(work_dir, protocol)) if here.matches(entry.machine)]
    return of_machine(fitting, fitting[-1].machine) if fitting else None


def torch_version() -> str:
    """Of the installed torch, as its package states it, without loading it."""
    return version("torch")


class _Here:
    """What is known of this machine without torch."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def matches(self, machine: Machine) -> bool:
        runtime = self.runtime
        threads = runtime.threads if runtime.device == "cpu" else None
        same = (machine.device, machine.precision, machine.torch, machine.threads)
        if same != (runtime.device, runtime.precision, torch_version(), threads):
            return False
        ways = (machine.compile, machine.activation_checkpointing)
        if ways != (runtime.compile, runtime.activation_checkpointing):
            return False
        return not self.names or _plain(machine.name) in self.names

    @cached_property
    def names(self) -> set[str]:
        """The devices of this machine; none where there are none, or the driver does not tell."""
        if self.runtime.device == "cpu":
            from benchmark import provenance  # loads numpy, for which a plan has no other use

            return {_plain(provenance.environment()["cpu"])}
        lines = [line for file in _GPU_FACTS.glob("*/information") for line in file.read_text().splitlines()]
        return {_plain(line.partition(":")[2]) for line in lines if line.startswith("Model:")}


def _plain(name: str) -> str:
    return name.strip().lower().removeprefix("nvidia ")
