"""A plan and its cost as plain JSON types: what `plan --json` prints and its text is made of. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.forecast import (
    CellTime,
    cell_time,
    disk_use,
    packed_images_bytes,
    reported_hours,
    wall_hours,
)
from benchmark.inputs import EMBEDDED_SETS, Missing
from benchmark.placement import memory_problems
from benchmark.plan import STAGES, Cell
from benchmark.runtime import Runtime
from benchmark.step_costs import StepCosts, recipe_of, step_name, step_shape
from benchmark.survey import STATES, CellState
from protocols.frozen import digest_of
from protocols.schema import Protocol

# What a run would do, were nothing missing; the others need a flag or a hand.
LEFT_TO_RUN = ("running", "resumable", "to do", "blocked")


@dataclass(frozen=True, kw_only=True)
class Reckoning:
    """The machine that a plan is reckoned for: `gpus` of them, or as many processes on a CPU.

    `costs` are what was measured on such a device, None where nothing was: then `teraflops` is the rate.
    """

    runtime: Runtime
    costs: StepCosts | None
    gpus: int
    teraflops: float

    def time(self, cell: Cell, protocol: Protocol) -> CellTime:
        """What `cell` takes there."""
        return cell_time(
            cell,
            protocol,
            self.runtime,
            costs=self.costs,
            accelerators=self.gpus,
            teraflops=self.teraflops,
        )


def make_forecast(states: Sequence[CellState], protocol: Protocol, reckoning: Reckoning) -> dict[str, Any]:
    """Hours are those of one GPU (or CPU process) unless they say wall; `left` is a cell's share to be done.

    What is open is counted by what is left of it. Raises ProtocolViolation for a batch that cannot be split.
    """
    gpus, costs = reckoning.gpus, reckoning.costs
    times = {one.cell.id: reckoning.time(one.cell, protocol) for one in states}
    opened = {one.cell.id: _share_left(one) for one in states if one.state in LEFT_TO_RUN}
    open_cells = [one.cell for one in states if one.cell.id in opened]
    disk = {one.cell.id: disk_use(one.cell, protocol) for one in states}
    running = sorted((disk[cell.id].while_running for cell in open_cells), reverse=True)[:gpus]
    # Of a recipe that --set changed no paper reports anything.
    cost = None if protocol.deviations else protocol.reported_cost
    reported = {one.cell.id: cost and reported_hours([one.cell], protocol) for one in states}
    comparable = [one.cell for one in states if reported[one.cell.id] is not None]
    return {
        "protocol": {
            "name": protocol.name,
            "version": protocol.version,
            "digest": protocol.digest,
            "modified": list(protocol.deviations),
        },
        "model": {
            "teraflops_sustained": reckoning.teraflops,
            "gpus": gpus,
            "counted": "training FLOPs, a multiply-add as two, or the measured time of all training steps; "
            "no data loading, tokenising, evaluated images, communication; of knn, which trains nothing, the "
            "features of all images, labelled and evaluated",
            "measured": None if costs is None else costs.machine.model_dump(mode="json"),
            "unmeasured_cells": sum(
                recipe_of(cell, protocol) is not None and times[cell.id].images_per_second is None
                for cell in open_cells
            ),
        },
        "steps": [] if costs is None else _steps(states, protocol, costs, times),
        "states": {state: sum(one.state == state for one in states) for state in STATES},
        "stages": {stage: sum(one.cell.stage == stage for one in states) for stage in STAGES},
        "open": {
            "train_flops": sum(cell.train_flops * opened[cell.id] for cell in open_cells),
            "gpu_hours": sum(times[cell.id].accelerator_hours * opened[cell.id] for cell in open_cells),
            "wall_hours": wall_hours(
                open_cells,
                hours={cell.id: times[cell.id].hours * opened[cell.id] for cell in open_cells},
                accelerators=max([gpus, *(times[cell.id].accelerators for cell in open_cells)]),
                taken={cell.id: times[cell.id].accelerators for cell in open_cells},
            ),
            "disk_bytes_kept": sum(disk[cell.id].kept for cell in open_cells),
            "disk_bytes_while_running": sum(running),
            "disk_bytes_packed_images": _packed_bytes(open_cells, protocol),
        },
        "reported": None
        if cost is None
        else {
            "source": cost.source,
            "accelerator": cost.accelerator,
            "accelerator_hours": reported_hours(comparable, protocol),
            "gpu_hours": sum(times[cell.id].accelerator_hours for cell in comparable),
        },
        "missing": [
            {"what": one.what, "remedy": one.remedy}
            for one in [*missing_of(states), *_memory(open_cells, protocol, reckoning)]
        ],
        "cells": [
            {
                "id": one.cell.id,
                "stage": one.cell.stage,
                "method": one.cell.method,
                "tokenizer": one.cell.tokenizer,
                "trunk": one.cell.trunk,
                "evaluation": one.cell.evaluation,
                "part": one.cell.part,
                "seed": one.cell.seed,
                "hyperparameters": dict(one.cell.hyperparameters),
                "pretraining": dict(one.cell.pretraining),
                "views": list(one.cell.views),
                "parents": list(one.cell.parents),
                "state": one.state,
                "left": opened.get(one.cell.id, 0.0),
                "reasons": list(one.reasons),
                "train_flops": one.cell.train_flops,
                "gpu_hours": times[one.cell.id].accelerator_hours,
                "gpus": times[one.cell.id].accelerators,
                "accumulation": times[one.cell.id].accumulation,
                "is_placed": times[one.cell.id].is_placed,
                "images_per_second": times[one.cell.id].images_per_second,
                "disk_bytes_kept": disk[one.cell.id].kept,
                "disk_bytes_while_running": disk[one.cell.id].while_running,
                "reported_hours": reported[one.cell.id],
            }
            for one in states
        ],
    }


def missing_of(states: Sequence[CellState]) -> list[Missing]:
    """What the cells lack, each once."""
    return list(dict.fromkeys(one for state in states for one in state.missing))


def own_values(cell: Cell, alike: Sequence[Cell]) -> str:
    """What of the values tried tells the pre-training `cell` from others that are `alike` otherwise."""
    own, *others = [{**dict(one.hyperparameters), **dict(one.pretraining)} for one in (cell, *alike)]
    return "".join(
        f" {name}={own[name]}" for name in own if any(other.get(name) != own[name] for other in others)
    )


def tried_values(cells: Sequence[Cell]) -> dict[str, str]:
    """Cell id -> what tells its pre-training from others of the same row, such as " peak_lr=0.002", or ""."""
    by_id = {cell.id: cell for cell in cells}
    trained: dict[str, list[Cell]] = {}
    for cell in by_id.values():
        if cell.stage == "pretrain":
            trained.setdefault(cell.row, []).append(cell)
    found = {}
    for cell in by_id.values():
        origin = cell if cell.stage == "pretrain" else by_id.get(next(iter(cell.parents), ""))
        is_trained = origin is not None and origin.stage == "pretrain"
        found[cell.id] = own_values(origin, trained[origin.row]) if origin and is_trained else ""
    return found


def _share_left(state: CellState) -> float:
    """What a training that was begun has still to do; 1 for any other cell."""
    metrics: Mapping[str, Any] = state.metrics or {}
    steps = metrics.get("steps")
    if "loss" not in metrics or not steps:
        return 1.0
    return 1.0 - min(1.0, metrics["step"] / steps)


def _packed_bytes(cells: Sequence[Cell], protocol: Protocol) -> int:
    """Disk of the packed images that pre-training could read; 0 where it needs none."""
    is_wanted = any(cell.stage == "pretrain" for cell in cells) and protocol.data.name not in EMBEDDED_SETS
    return packed_images_bytes(protocol) if is_wanted else 0


def _memory(cells: Sequence[Cell], protocol: Protocol, reckoning: Reckoning) -> list[Missing]:
    costs = reckoning.costs
    return memory_problems(
        cells,
        protocol,
        reckoning.runtime,
        costs=costs,
        memory_bytes=None if costs is None else costs.machine.memory_bytes,
        gpus=reckoning.gpus,
    )


def _steps(
    states: Sequence[CellState], protocol: Protocol, costs: StepCosts, times: Mapping[str, CellTime]
) -> list[dict[str, Any]]:
    """Every shape of a step that was measured, as it would run here."""
    groups: dict[str, list[Cell]] = {}
    for one in states:
        shape = step_shape(one.cell, protocol)
        if shape is not None:
            groups.setdefault(digest_of(shape), []).append(one.cell)
    firsts = [cells[0] for cells in groups.values()]
    found = []
    for shape_digest, cells in groups.items():
        cell = cells[0]
        cost, time, recipe = costs.costs.get(shape_digest), times[cell.id], recipe_of(cell, protocol)
        if cost is None or recipe is None:
            continue
        alike = [one for one in firsts if step_name(one) == step_name(cell)]
        micro_batch = recipe.global_batch // (time.accelerators * time.accumulation)
        found.append(
            {
                "step": step_name(cell) + (own_values(cell, alike) if cell.stage == "pretrain" else ""),
                "cells": len(cells),
                "gpus": time.accelerators,
                "accumulation": time.accumulation,
                "micro_batch": micro_batch,
                "images_per_second": time.images_per_second,
                "peak_bytes": cost.peak_bytes(
                    micro_batch, processes=time.accelerators, accumulation=time.accumulation
                ),
                "bytes_fixed": cost.bytes_fixed,
                "bytes_per_image": cost.bytes_per_image,
                "out_of_memory_at": cost.out_of_memory_at,
                "update_seconds": cost.update_seconds,
                "timings": [one.model_dump(mode="json") for one in cost.timings],
            }
        )
    return found
