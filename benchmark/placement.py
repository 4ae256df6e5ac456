"""How many GPUs a cell takes, and in how many micro-batches: its global batch exactly, in their memory.

One GPU where a whole share of the batch fits into its memory; else more GPUs; else, on as many GPUs as there
are, several micro-batches one after the other. `--gpus-per-cell` and `--accumulation` settle either. What
fits is known from `plan --probe`; where nothing was measured, one GPU and what was asked for. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmark.inputs import Missing
from benchmark.plan import Cell
from benchmark.runtime import Runtime
from benchmark.step_costs import StepCost, StepCosts, is_augmented, recipe_of
from methods import method_spec
from protocols.errors import HarnessError
from protocols.recipes import FineTuning, LinearProbe, Optimisation, TokenClassification
from protocols.schema import Protocol

# The rest is what the peak of allocated memory leaves out: CUDA's own context, and gaps between blocks.
USABLE_MEMORY = 0.9


class DoesNotFit(HarnessError):
    """No split that was allowed fits into the memory of the GPUs; `remedy` says what would."""

    def __init__(self, what: str, remedy: str) -> None:
        self.what, self.remedy = what, remedy
        super().__init__(f"{what}; {remedy}")


def place(
    cell: Cell,
    protocol: Protocol,
    runtime: Runtime,
    *,
    costs: StepCosts | None,
    memory_bytes: int | None,
    gpus: int,
) -> Runtime:
    """`runtime` with the `processes` and `accumulation` of `cell`, on at most `gpus` GPUs; of a CPU's
    processes there may be any number.

    `runtime.accumulation` of more than 1 was asked for; 1 leaves it open. Raises ProtocolViolation if what
    was asked for cannot give the global batch exactly, in whole groups; DoesNotFit if no split fits
    into `memory_bytes` of each GPU.
    """
    asked, gpus = runtime.gpus_per_cell, max(1, gpus)
    if asked is not None and asked > gpus and runtime.device == "cuda":
        raise HarnessError(f"--gpus-per-cell {asked}: there are {gpus} to share; give 1 to {gpus}")
    recipe = recipe_of(cell, protocol)
    if cell.stage == "knn":  # one process does all of it
        return runtime.model_copy(update={"processes": 1, "accumulation": 1})
    if recipe is None:
        return runtime.model_copy(update={"processes": asked or 1})
    cost = costs.of(cell, protocol) if costs is not None and _grows_with_its_batch(recipe) else None
    if cost is None or memory_bytes is None or not _knows_memory(cost):
        return _exact(runtime, cell, recipe, asked or 1, runtime.accumulation)
    usable = USABLE_MEMORY * memory_bytes
    assert costs is not None
    splits = _splits(runtime, cell, recipe, gpus)
    for processes, accumulation in splits:
        micro_batch = recipe.global_batch // (processes * accumulation)
        if _fits(cost, micro_batch, processes, accumulation, usable):
            return runtime.model_copy(update={"processes": processes, "accumulation": accumulation})
    raise DoesNotFit(
        _needed(cost, recipe, splits[-1], memory_bytes),
        _what_would_fit(cell, protocol, runtime, costs=costs, memory_bytes=memory_bytes, gpus=gpus),
    )


def place_among_others(
    cell: Cell, protocol: Protocol, runtime: Runtime, *, costs: StepCosts | None, gpus: int
) -> Runtime:
    """`place` for a run on `gpus` GPUs such as `costs` was measured on.

    More `runtime.jobs` side by side than GPUs share the memory. HarnessError where a cell of several GPUs is
    among them.
    """
    on_one_gpu = -(-runtime.jobs // max(1, gpus))
    memory = costs.machine.memory_bytes if costs is not None else None
    if memory is not None:
        memory //= on_one_gpu
    placed = place(cell, protocol, runtime, costs=costs, memory_bytes=memory, gpus=gpus)
    if placed.processes > 1 and placed.device == "cuda" and on_one_gpu > 1:
        raise HarnessError(
            f"--jobs {runtime.jobs}: some cells take several of the {gpus} GPUs, each for itself; give "
            f"--jobs {gpus} or fewer, or --gpus-per-cell 1"
        )
    return placed


def memory_problems(
    plan: Sequence[Cell],
    protocol: Protocol,
    runtime: Runtime,
    *,
    costs: StepCosts | None,
    memory_bytes: int | None,
    gpus: int,
) -> list[Missing]:
    """What of `plan` no allowed split fits into the GPUs' memory, each once, with what would fit.

    Batches that cannot be split exactly are another check's business (benchmark/preflight.py).
    """
    found: dict[Missing, None] = {}
    for cell in plan:
        try:
            place(cell, protocol, runtime, costs=costs, memory_bytes=memory_bytes, gpus=gpus)
        except DoesNotFit as error:
            found[Missing(error.what, error.remedy)] = None
        except HarnessError:
            continue
    return list(found)


def images_in_a_group(cell: Cell, recipe: Optimisation) -> int:
    """Images that no split may part: those of a mixup group, or of a method's contrast."""
    if isinstance(recipe, FineTuning):
        return recipe.mixup_group or 1
    if cell.stage == "pretrain":
        return method_spec(cell.method or "").images_in_a_group(dict(cell.hyperparameters))
    return 1


def _grows_with_its_batch(recipe: Optimisation) -> bool:
    """False for what trains on features or tokens that lie ready, which one GPU always holds."""
    if isinstance(recipe, LinearProbe):
        return is_augmented(recipe)
    return not isinstance(recipe, TokenClassification)


def _knows_memory(cost: StepCost) -> bool:
    return cost.out_of_memory_at is not None or cost.bytes_per_image is not None


def _exact(runtime: Runtime, cell: Cell, recipe: Optimisation, processes: int, accumulation: int) -> Runtime:
    """ProtocolViolation, with what is allowed, unless the split is exact."""
    placed = runtime.model_copy(update={"processes": processes, "accumulation": accumulation})
    placed.micro_batch(recipe.global_batch, group=images_in_a_group(cell, recipe))
    return placed


def _splits(runtime: Runtime, cell: Cell, recipe: Optimisation, gpus: int) -> list[tuple[int, int]]:
    """(processes, accumulation) that give the global batch exactly, the most wanted first."""
    groups = recipe.global_batch // images_in_a_group(cell, recipe)
    asked, given = runtime.gpus_per_cell, runtime.accumulation
    if asked is not None or given > 1:
        _exact(runtime, cell, recipe, asked or 1, given)
    numbers = [asked] if asked is not None else [n for n in range(1, gpus + 1) if groups % (n * given) == 0]
    splits = [(processes, given) for processes in numbers]
    if given == 1:
        most = numbers[-1]
        splits += [(most, steps) for steps in range(2, groups // most + 1) if groups % (most * steps) == 0]
    return splits


def _fits(cost: StepCost, micro_batch: int, processes: int, accumulation: int, usable: float) -> bool:
    if cost.out_of_memory_at is not None and micro_batch >= cost.out_of_memory_at:
        return False
    peak = cost.peak_bytes(micro_batch, processes=processes, accumulation=accumulation)
    # Where not even one image could be tried, out_of_memory_at is 1 and has answered above.
    return peak is not None and peak <= usable


def _needed(cost: StepCost, recipe: Optimisation, split: tuple[int, int], memory_bytes: int) -> str:
    """What `split`, the thriftiest, would need."""
    processes, accumulation = split
    micro_batch = recipe.global_batch // (processes * accumulation)
    peak = cost.peak_bytes(micro_batch, processes=processes, accumulation=accumulation)
    usable = f"of each GPU {USABLE_MEMORY * memory_bytes / 1e9:.1f} GB are usable"
    if peak is None or (cost.out_of_memory_at is not None and micro_batch >= cost.out_of_memory_at):
        needs = f"runs out of memory with {cost.out_of_memory_at} when measured"
    else:
        needs = f"needs {peak / 1e9:.1f} GB"
    return (
        f"GPU memory: {cost.step} in micro-batches of {micro_batch} images ({processes} GPUs x "
        f"{accumulation} steps) {needs}; {usable}"
    )


def _what_would_fit(
    cell: Cell, protocol: Protocol, runtime: Runtime, *, costs: StepCosts, memory_bytes: int, gpus: int
) -> str:
    """Other flags where they would do; else other GPUs."""
    asked = ["--gpus-per-cell"] if runtime.gpus_per_cell is not None else []
    asked += ["--accumulation"] if runtime.accumulation > 1 else []
    if asked:
        free = runtime.model_copy(update={"gpus_per_cell": None, "accumulation": 1})
        try:
            placed = place(cell, protocol, free, costs=costs, memory_bytes=memory_bytes, gpus=gpus)
        except DoesNotFit:
            pass
        else:
            fits = f"{placed.processes} GPUs x {placed.accumulation} steps fit"
            return f"leave out {' and '.join(asked)}: {fits}"
    ways = ["--precision bf16"] if runtime.precision == "fp32" else []
    ways += [] if runtime.activation_checkpointing else ["--activation-checkpointing"]
    less = f", or {' or '.join(ways)}, measured with plan --probe" if ways else ""
    return f"run it on GPUs with more memory{less}"
