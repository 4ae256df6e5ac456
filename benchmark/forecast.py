"""What a plan will cost, in plain arithmetic: accelerator hours, wall time, disk. No torch.

The model, which `plan` prints with its numbers:
- A cell's accelerator hours are its training FLOPs over a sustained rate. The rate is an assumption
  until it is measured; data loading, tokenising and the evaluated images are not counted.
- Wall time is that of cells put on one accelerator each, longest chain first, as the scheduler does.
- Disk is what stays: weights of a pre-training, tokens, predictions, and a record with its log; and the
  two training checkpoints (weights and both moments of AdamW) of every cell that runs at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmark.plan import PRETRAINING_PART, Cell
from methods import method_spec
from protocols.recipes import LinearProbe, TokenClassification
from protocols.schema import Protocol, TrunkSpec

FLOPS_PER_TERA = 1e12
SECONDS_PER_HOUR = 3600.0
CHANNELS = 3
FLOAT_BYTES, TOKEN_BYTES = 4, 2
CHECKPOINT_COPIES = 3 * 2  # weights and two moments; the newest two checkpoints are kept
RECORD_BYTES = 32_000  # a record, its log and a few thousand lines of metrics
PREDICTION_BYTES = 24  # an image id, a label and a prediction, compressed


def accelerator_hours(flops: float, *, teraflops: float) -> float:
    """Hours at `teraflops` sustained TFLOP/s."""
    return flops / (teraflops * FLOPS_PER_TERA) / SECONDS_PER_HOUR


def wall_hours(cells: Sequence[Cell], *, teraflops: float, accelerators: int) -> float:
    """Hours until the last of `cells` ends, one accelerator each, the longest chain of work first."""
    hours = {cell.id: accelerator_hours(cell.train_flops, teraflops=teraflops) for cell in cells}
    chain: dict[str, float] = {}
    for cell in reversed(cells):
        chain[cell.id] = chain.get(cell.id, 0.0) + hours[cell.id]
        for parent in cell.parents:
            chain[parent] = max(chain.get(parent, 0.0), chain[cell.id])
    ends: dict[str, float] = {}
    free = [0.0] * accelerators
    waiting = sorted(cells, key=lambda cell: -chain[cell.id])
    while waiting:
        now = min(free)
        chosen = next((one for one in waiting if _is_ready(one, hours, ends, now)), None)
        if chosen is None:
            # Everything that is left waits for a cell that runs: time moves to the next end.
            later = min(end for end in ends.values() if end > now)
            free = [max(end, later) for end in free]
            continue
        waiting.remove(chosen)
        ends[chosen.id] = now + hours[chosen.id]
        free[free.index(now)] = ends[chosen.id]
    return max(ends.values(), default=0.0)


def _is_ready(cell: Cell, hours: Mapping[str, float], ends: Mapping[str, float], now: float) -> bool:
    """True if every parent that is among those to run has ended by `now`."""
    return all(parent not in hours or ends.get(parent, math.inf) <= now for parent in cell.parents)


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
    return int(trunk_parameters(trunk) + blocks + (work.head_width + 1) * codebook_size)


@dataclass(frozen=True, kw_only=True)
class DiskUse:
    """Bytes that stay when a cell is done, and bytes of its checkpoints while it runs."""

    kept: int
    while_running: int


def disk_use(cell: Cell, protocol: Protocol) -> DiskUse:
    """The disk that `cell` needs."""
    if cell.stage == "tokenise":
        part = getattr(protocol.data, cell.part or PRETRAINING_PART)
        trunk = protocol.trunk_spec(protocol.defaults.trunks[0], drop_path=0.0)
        return DiskUse(kept=part.count * trunk.patches * TOKEN_BYTES + RECORD_BYTES, while_running=0)
    if cell.stage == "pretrain":
        assert cell.trunk is not None
        assert cell.tokenizer is not None
        assert cell.method is not None
        trunk = protocol.trunk_spec(cell.trunk, drop_path=0.0)
        codebook = int(protocol.tokenizers[cell.tokenizer]["codebook_size"])
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
    if trained is not None and not isinstance(recipe, LinearProbe):
        weights = trunk_parameters(protocol.trunk_spec(trained, drop_path=0.0))
    if isinstance(recipe, TokenClassification):
        weights += _weights_before_the_blocks(recipe, cell, protocol)
    return DiskUse(
        kept=evaluated * PREDICTION_BYTES + RECORD_BYTES,
        while_running=FLOAT_BYTES * CHECKPOINT_COPIES * weights,
    )


def _weights_before_the_blocks(recipe: TokenClassification, cell: Cell, protocol: Protocol) -> int:
    """The embedding of the tokens, and the MLP's Linear behind it; heads are left out."""
    assert cell.tokenizer is not None
    codebook = int(protocol.tokenizers[cell.tokenizer]["codebook_size"])
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
