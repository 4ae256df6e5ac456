"""What a plan will cost, in plain arithmetic: accelerator hours, wall time, disk. No torch.

The model, which `plan` prints with its numbers:
- Where `plan --probe` has timed a cell's step, its hours are those of all its steps, on as many accelerators
  and in as many micro-batches as benchmark/placement.py gives it. Elsewhere they are its training FLOPs over
  a sustained rate, which is an assumption. Data loading, tokenising, the evaluated images, and what
  processes tell one another are not counted. Nearest neighbours have no step: their hours come from FLOPs.
- Wall time is that of cells put on the accelerators, longest chain of work first. A cell that needs several
  waits until as many are free, and nothing of less weight overtakes it meanwhile.
- Disk is what stays: weights of a pre-training, a fine-tuned classifier, tokens with their tokenizer's
  weights, predictions, and a record with its log; and what every cell that runs at once needs beside that:
  three training checkpoints (weights and both moments of AdamW; two are kept, and a third is written before
  the oldest goes); of a tokenising cell its shards, and the features that a codebook is fitted on.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmark.equal_compute import codebook_size
from benchmark.placement import DoesNotFit, place
from benchmark.plan import PRETRAINING_PART, Cell
from benchmark.runtime import Runtime
from benchmark.step_costs import StepCost, StepCosts, Work
from methods import method_spec
from protocols.recipes import LinearProbe, NearestNeighbours, TokenClassification
from protocols.schema import Protocol, TrunkSpec

FLOPS_PER_TERA = 1e12
SECONDS_PER_HOUR = 3600.0
CHANNELS = 3
FLOAT_BYTES, TOKEN_BYTES, FEATURE_BYTES = 4, 2, 2
# Channels of the last map of CLIP's ResNets; of another network none is known to be wider than the widest.
FEATURE_WIDTHS = {"RN50": 2048, "RN101": 2048, "RN50x4": 2560, "RN50x16": 3072, "RN50x64": 4096}
WIDEST_FEATURES = max(FEATURE_WIDTHS.values())
CHECKPOINT_COPIES = 3 * 3  # weights and two moments; a third is written before the older of two goes
# Beside the tokens of a published tokenizer lie its weights: VQ-KD's, the largest.
PUBLISHED_WEIGHTS_BYTES = 350_000_000
RECORD_BYTES = 32_000  # a record, its log and a few thousand lines of metrics
PREDICTION_BYTES = 24  # an image id, a label and a prediction, compressed


def accelerator_hours(flops: float, *, teraflops: float) -> float:
    """Hours at `teraflops` sustained TFLOP/s."""
    return flops / (teraflops * FLOPS_PER_TERA) / SECONDS_PER_HOUR


@dataclass(frozen=True, kw_only=True)
class CellTime:
    """How long a cell takes: `hours` from start to end on `accelerators` at once.

    `images_per_second` is the measured rate of one accelerator over all of the cell, None where the hours
    come from FLOPs. `is_placed` is False for a cell that fits into no accelerator's memory, reckoned as if.
    """

    hours: float
    accelerators: int
    accumulation: int
    images_per_second: float | None
    is_placed: bool = True

    @property
    def accelerator_hours(self) -> float:
        """Hours of one accelerator."""
        return self.hours * self.accelerators


def cell_time(
    cell: Cell,
    protocol: Protocol,
    runtime: Runtime,
    *,
    costs: StepCosts | None,
    accelerators: int,
    teraflops: float,
) -> CellTime:
    """The time of `cell` where there are `accelerators`, from its step's cost where it was measured."""
    memory_bytes = None if costs is None else costs.machine.memory_bytes
    is_placed = True
    try:
        placed = place(cell, protocol, runtime, costs=costs, memory_bytes=memory_bytes, gpus=accelerators)
    except DoesNotFit:
        placed, is_placed = runtime.model_copy(update={"processes": 1}), False
    cost, work = None if costs is None else costs.of(cell, protocol), Work.of(cell, protocol)
    if cost is None or work is None or not cost.timings:
        whole = accelerator_hours(cell.train_flops, teraflops=teraflops)
        return CellTime(
            hours=whole / placed.processes,
            accelerators=placed.processes,
            accumulation=placed.accumulation,
            images_per_second=None,
            is_placed=is_placed,
        )
    seconds = training_seconds(cost, work, placed)
    return CellTime(
        hours=seconds / SECONDS_PER_HOUR,
        accelerators=placed.processes,
        accumulation=placed.accumulation,
        images_per_second=work.images / (seconds * placed.processes),
        is_placed=is_placed,
    )


def training_seconds(cost: StepCost, work: Work, placed: Runtime) -> float:
    """Seconds of all of a cell's steps, each process with its share, and of features computed once."""
    micro_batch = work.global_batch // (placed.processes * placed.accumulation)
    one_step = placed.accumulation * cost.seconds(micro_batch) + cost.update_seconds
    # Every process computes all features: they are not shared.
    return work.steps * one_step + work.once * cost.once_seconds_per_image


def wall_hours(
    cells: Sequence[Cell],
    *,
    hours: Mapping[str, float],
    accelerators: int,
    taken: Mapping[str, int] | None = None,
) -> float:
    """Hours until the last of `cells` ends, the longest chain of work first.

    `hours` are those of each cell from its start to its end, `taken` the accelerators that it holds
    meanwhile, one where it is not named. Raises ValueError if a cell takes more than there are.
    """
    holds = {cell.id: (taken or {}).get(cell.id, 1) for cell in cells}
    if any(number > accelerators for number in holds.values()):
        raise ValueError(f"a cell takes {max(holds.values())} of {accelerators} accelerators")
    chain: dict[str, float] = {}
    for cell in reversed(cells):
        chain[cell.id] = chain.get(cell.id, 0.0) + hours[cell.id]
        for parent in cell.parents:
            chain[parent] = max(chain.get(parent, 0.0), chain[cell.id])
    waiting = sorted(cells, key=lambda cell: -chain[cell.id])
    left, free, now = set(holds), accelerators, 0.0
    running: list[tuple[float, str]] = []
    while waiting or running:
        ready = [cell for cell in waiting if left.isdisjoint(cell.parents)]
        for cell in ready:
            if holds[cell.id] > free:
                break
            free -= holds[cell.id]
            waiting.remove(cell)
            heapq.heappush(running, (now + hours[cell.id], cell.id))
        now, ended = heapq.heappop(running)
        free += holds[ended]
        left.remove(ended)
        while running and running[0][0] <= now:
            _, ended = heapq.heappop(running)
            free += holds[ended]
            left.remove(ended)
    return now


def trunk_parameters(trunk: TrunkSpec) -> int:
    """Weights of the trunk with its final norm and without a head."""
    width, hidden = trunk.width, int(trunk.width * trunk.mlp_ratio)
    attention = 4 * width * width + 4 * width
    mlp = 2 * width * hidden + hidden + width
    block = attention + mlp + 2 * 2 * width + 2 * width  # two norms, two layer scales
    embedding = CHANNELS * trunk.patch_size**2 * width + width
    return embedding + width * (2 + trunk.patches) + trunk.depth * block + 2 * width


def method_parameters(
    method: str, trunk: TrunkSpec, hyperparameters: Mapping[str, object], *, codebook_size: int
) -> int:
    """Weights of a method: its trunk, its token head, and the blocks of its own; norms of those left out."""
    describe = method_spec(method).work
    if describe is None:
        return trunk_parameters(trunk)
    work = describe(trunk, hyperparameters)  # type: ignore[arg-type]
    own = [one for one in work.passes if one.is_own]
    blocks = sum(one.blocks * (4 + 2 * one.mlp_ratio) * one.width**2 for one in own)
    outputs = codebook_size if work.head_outputs is None else work.head_outputs
    return int(trunk_parameters(trunk) + blocks + (work.head_width + 1) * outputs)


@dataclass(frozen=True, kw_only=True)
class DiskUse:
    """Bytes that stay when a cell is done, and bytes that it needs beside them while it runs."""

    kept: int
    while_running: int


def disk_use(cell: Cell, protocol: Protocol) -> DiskUse:
    """The disk that `cell` needs."""
    if cell.stage == "tokenise":
        part = getattr(protocol.data, cell.part or PRETRAINING_PART)
        trunk = protocol.trunk_spec(protocol.defaults.trunks[0], drop_path=0.0)
        tokens = part.count * trunk.patches * TOKEN_BYTES
        has_weights = cell.part is None and "weights" in dict(cell.hyperparameters)
        kept = tokens + PUBLISHED_WEIGHTS_BYTES * has_weights + RECORD_BYTES
        features = _sampled_features_bytes(cell, part.count * trunk.patches)
        return DiskUse(kept=kept, while_running=tokens + features)
    if cell.stage == "pretrain":
        assert cell.trunk is not None
        assert cell.method is not None
        trunk = protocol.trunk_spec(cell.trunk, drop_path=0.0)
        codebook = codebook_size(protocol, cell.tokenizer)
        weights = method_parameters(cell.method, trunk, dict(cell.hyperparameters), codebook_size=codebook)
        kept = FLOAT_BYTES * (weights + trunk_parameters(trunk)) + RECORD_BYTES
        return DiskUse(kept=kept, while_running=FLOAT_BYTES * CHECKPOINT_COPIES * weights)
    assert cell.evaluation is not None
    recipe = protocol.evaluation(cell.evaluation, cell.trunk)
    evaluated = getattr(protocol.data, recipe.evaluated_part).count
    if isinstance(recipe, LinearProbe) and recipe.transfer_set is not None:
        evaluated = protocol.transfer_sets[recipe.transfer_set].test.count
    weights = 0
    trained = recipe.trunk if isinstance(recipe, TokenClassification) else cell.trunk
    if trained is not None and not isinstance(recipe, LinearProbe | NearestNeighbours):
        weights = trunk_parameters(protocol.trunk_spec(trained, drop_path=0.0))
    if isinstance(recipe, TokenClassification):
        weights += _weights_before_the_blocks(recipe, cell, protocol)
    classifier = FLOAT_BYTES * weights if cell.stage == "finetune" else 0  # which fine-tuning keeps
    return DiskUse(
        kept=evaluated * PREDICTION_BYTES + RECORD_BYTES + classifier,
        while_running=FLOAT_BYTES * CHECKPOINT_COPIES * weights,
    )


def _sampled_features_bytes(cell: Cell, patches: int) -> int:
    """The file of features that a codebook is fitted on; removed once it is fitted.

    It has a row for each feature that is sampled, of at most all `patches` of the images.
    """
    config = dict(cell.hyperparameters)
    rows = min(int(config.get("sampled_features") or 0), patches)
    if cell.part is not None or not rows:
        return 0
    return rows * FEATURE_WIDTHS.get(str(config.get("model")), WIDEST_FEATURES) * FEATURE_BYTES


def packed_images_bytes(protocol: Protocol) -> int:
    """The pre-training images, cropped and resized once and kept as bytes (benchmark/packed.py)."""
    return protocol.data.pretraining.count * CHANNELS * protocol.data.image_size**2


def _weights_before_the_blocks(recipe: TokenClassification, cell: Cell, protocol: Protocol) -> int:
    """The embedding of the tokens, and the MLP's Linear behind it; heads are left out."""
    assert cell.tokenizer is not None
    codebook = codebook_size(protocol, cell.tokenizer)
    if recipe.width is not None and recipe.hidden_width is not None:
        return codebook * recipe.width + recipe.width * recipe.hidden_width
    assert recipe.trunk is not None
    return codebook * protocol.trunks[recipe.trunk].width


def reported_hours(cells: Sequence[Cell], protocol: Protocol) -> float | None:
    """Accelerator hours that the paper reports for as many cells; None for those that it says nothing of."""
    if protocol.reported_cost is None:
        return None
    total, known = 0.0, False
    for cell in cells:
        spent = protocol.reported_cost.stages.get(cell.stage, {}).get(cell.trunk or "")
        if spent is not None:
            total, known = total + spent.accelerators * spent.hours, True
    return total if known else None
