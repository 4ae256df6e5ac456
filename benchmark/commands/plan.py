"""`plan`: what a run would do, in which order, what it waits for, and what it will cost."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmark.commands.deviations import lines_under_title, planned
from benchmark.commands.options import Parser, add_protocol, add_selection, read_selection
from benchmark.commands.text import count, duration, paragraph, quantity, size, table
from benchmark.forecast import accelerator_hours, disk_use, reported_hours, wall_hours
from benchmark.inputs import Missing
from benchmark.plan import STAGES, Cell
from benchmark.runtime import count_gpus
from benchmark.survey import STATES, CellState, survey
from protocols.errors import HarnessError
from protocols.schema import Protocol

SUMMARY = "what a run would do, in which order, at what cost"
DESCRIPTION = """\
What a run with the same selection would do: cells, their order and parents,
which are done, resumable, to do or blocked, and what they cost. Runs nothing.

examples:
  python run_benchmark.py plan --protocol mini
  python run_benchmark.py plan --protocol fair300 --methods all --cells
  python run_benchmark.py plan --protocol fair300 --methods mapet --json
"""
DEFAULT_TERAFLOPS = 100.0
ASSUMED_GPUS = 8
# What a run would do, were nothing missing; the others need a flag or a hand.
LEFT_TO_RUN = ("running", "resumable", "to do", "blocked")
NEEDED: dict[str, str] = {
    "stale": "--redo-stale runs {them} again",
    "failed": "--redo-failed runs {them} again",
    "damaged": "status names each remedy",
}
UNSETTLED = ("stale", "running", "resumable", "to do", "blocked", "failed", "damaged")


def add_arguments(parser: Parser) -> None:
    """Which cells, and the machine to count for."""
    add_protocol(parser)
    add_selection(parser)
    parser.add_argument(
        "--tflops",
        type=float,
        metavar="X",
        help=f"TFLOP/s that one GPU sustains in training (default: {DEFAULT_TERAFLOPS:.0f}, an assumption)",
    )
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs to spread cells over (default: those here, or 8)"
    )
    parser.add_argument("--cells", action="store_true", help="list every cell, in order, with its parents")
    parser.add_argument("--json", action="store_true", help="the plan as JSON on standard output")


def run(options: Namespace) -> int:
    """Survey and show."""
    if options.tflops is not None and not 0 < options.tflops < float("inf"):
        raise HarnessError(f"--tflops must be more than 0, got {options.tflops:g}")
    if options.gpus is not None and options.gpus < 1:
        raise HarnessError(f"--gpus must be 1 or more, got {options.gpus}")
    protocol, selection = read_selection(options)
    plan = planned(protocol, selection, given=options.protocol)
    lines = lines_under_title(options, protocol, selection)
    states = survey(plan, protocol, options.work_dir, data_root=options.data_root)
    present = count_gpus()
    teraflops = options.tflops or DEFAULT_TERAFLOPS
    forecast = make_forecast(
        states, protocol, teraflops=teraflops, gpus=options.gpus or present or ASSUMED_GPUS
    )
    if options.json:
        print(json.dumps(forecast, indent=1))
        return 0
    seeds = " ".join(map(str, selection.seeds))
    of_views = f", views {' '.join(selection.views)}" if selection.views else ""
    title = (
        f"{protocol.name}, version {protocol.version}: {count(len(states), 'cell')}, seeds {seeds}{of_views}"
    )
    print(paragraph(title))
    for line in lines:
        print(paragraph(line, rest="  "))
    print("\n" + _summary(states, protocol, forecast))
    if options.cells:
        print("\n" + _cells(states, teraflops=teraflops))
    is_for_gpus = bool(present or options.gpus or options.tflops)
    print("\n" + _model(forecast, is_rate_given=options.tflops is not None, is_for_gpus=is_for_gpus))
    missing = _missing(states)
    if missing:
        print(f"\nmissing, without which {count(forecast['states']['blocked'], 'cell')} cannot run:")
        for one in missing:
            print(paragraph(one.what, first="- ", rest="  "))
            print(paragraph(one.remedy, first="    ", rest="    "))
    return 0


def make_forecast(
    states: Sequence[CellState], protocol: Protocol, *, teraflops: float, gpus: int
) -> dict[str, Any]:
    """The plan and its cost as plain JSON types. Hours are GPU-hours unless they say wall."""
    open_cells = [one.cell for one in states if one.state in LEFT_TO_RUN]
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
            "teraflops_sustained": teraflops,
            "gpus": gpus,
            "counted": "training FLOPs, a multiply-add as two; no data loading, tokenising, evaluated images",
        },
        "states": {state: sum(one.state == state for one in states) for state in STATES},
        "stages": {stage: sum(one.cell.stage == stage for one in states) for stage in STAGES},
        "open": {
            "train_flops": sum(cell.train_flops for cell in open_cells),
            "gpu_hours": sum(accelerator_hours(cell.train_flops, teraflops=teraflops) for cell in open_cells),
            "wall_hours": wall_hours(open_cells, teraflops=teraflops, accelerators=gpus),
            "disk_bytes_kept": sum(disk[cell.id].kept for cell in open_cells),
            "disk_bytes_while_running": sum(running),
        },
        "reported": None
        if cost is None
        else {
            "source": cost.source,
            "accelerator": cost.accelerator,
            "accelerator_hours": reported_hours(comparable, protocol),
            "gpu_hours": sum(accelerator_hours(cell.train_flops, teraflops=teraflops) for cell in comparable),
        },
        "missing": [{"what": one.what, "remedy": one.remedy} for one in _missing(states)],
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
                "views": list(one.cell.views),
                "parents": list(one.cell.parents),
                "state": one.state,
                "reasons": list(one.reasons),
                "train_flops": one.cell.train_flops,
                "gpu_hours": accelerator_hours(one.cell.train_flops, teraflops=teraflops),
                "disk_bytes_kept": disk[one.cell.id].kept,
                "disk_bytes_while_running": disk[one.cell.id].while_running,
                "reported_hours": reported[one.cell.id],
            }
            for one in states
        ],
    }


def _missing(states: Sequence[CellState]) -> list[Missing]:
    return list(dict.fromkeys(one for state in states for one in state.missing))


def _summary(states: Sequence[CellState], protocol: Protocol, forecast: dict[str, Any]) -> str:
    """One line for each stage and trunk, in the order of the work."""
    teraflops = forecast["model"]["teraflops_sustained"]
    groups: dict[tuple[int, str, str], list[CellState]] = {}
    for one in states:
        name = one.cell.evaluation or one.cell.stage
        groups.setdefault((STAGES.index(one.cell.stage), name, one.cell.trunk or ""), []).append(one)
    shown = ["done", *(state for state in UNSETTLED if forecast["states"][state])]
    has_report = forecast["reported"] is not None
    header = ["stage", "trunk", "cells", *shown, "FLOPs", "GPU time"] + ["paper"] * has_report
    rows = []
    # A dict keeps the order of first sight: the protocol's own within a stage.
    for (_, name, trunk), group in sorted(groups.items(), key=lambda item: item[0][0]):
        cells = [one.cell for one in group]
        rows.append([name, trunk, *_numbers(group, shown, teraflops)])
        if has_report:
            hours = reported_hours(cells, protocol)
            rows[-1].append("" if hours is None else duration(hours))
    total = ["all", "", *_numbers(states, shown, teraflops)]
    if has_report:
        total.append(duration(forecast["reported"]["accelerator_hours"] or 0))
    return table(header, [*rows, total], right=range(2, len(header)), total=True)


def _numbers(group: Sequence[CellState], shown: Sequence[str], teraflops: float) -> list[str]:
    states = Counter(one.state for one in group)
    flops = sum(one.cell.train_flops for one in group)
    return [
        str(len(group)),
        *(str(states[state]) if states[state] else "" for state in shown),  # type: ignore[index]
        quantity(flops) if flops else "",
        duration(accelerator_hours(flops, teraflops=teraflops)) if flops else "",
    ]


def _cells(states: Sequence[CellState], *, teraflops: float) -> str:
    """One line for each cell, the longest column last, so that a narrow terminal can wrap it."""
    by_id = {one.cell.id: one.cell for one in states}
    number = {cell_id: str(position) for position, cell_id in enumerate(by_id, start=1)}
    trained: dict[str, list[Cell]] = {}
    for cell in by_id.values():
        if cell.stage == "pretrain":
            trained.setdefault(cell.row, []).append(cell)
    rows, names = [], []
    for one in states:
        cell = one.cell
        parents = " ".join(number[parent] for parent in cell.parents)
        hours = duration(accelerator_hours(cell.train_flops, teraflops=teraflops)) if cell.train_flops else ""
        rows.append([number[cell.id], one.state, parents, hours])
        names.append(f"{cell.evaluation or cell.stage} {cell.row}{_variant(cell, by_id, trained)}")
    header, rule, *lines = table(["", "state", "after", "GPU time"], rows, right=(0, 3)).splitlines()
    indent = len(rule) + 2
    shown = [
        paragraph(name, first=line.ljust(indent), rest=" " * indent)
        for line, name in zip(lines, names, strict=True)
    ]
    longest = max(len(line) for text in shown for line in text.splitlines())
    return "\n".join([f"{header.ljust(indent)}cell", "-" * longest, *shown])


def _variant(cell: Cell, by_id: Mapping[str, Cell], trained: Mapping[str, Sequence[Cell]]) -> str:
    """What of the method's own tells this cell's pre-training from others of the same row."""
    origin = cell if cell.stage == "pretrain" else by_id.get(next(iter(cell.parents), ""))
    if origin is None or origin.stage != "pretrain":
        return ""
    own = dict(origin.hyperparameters)
    alike = [dict(other.hyperparameters) for other in trained[origin.row]]
    differing = [name for name in own if any(other[name] != own[name] for other in alike)]
    return "".join(f" {name}={own[name]}" for name in differing)


def _model(forecast: dict[str, Any], *, is_rate_given: bool, is_for_gpus: bool) -> str:
    """What is left to run and what that costs, how it is reckoned, and what a paper reports."""
    reported = forecast["reported"]
    lines = [_left(forecast, is_rate_given=is_rate_given, is_for_gpus=is_for_gpus), *_unsettled(forecast)]
    if any(cell["train_flops"] for cell in forecast["cells"]):
        rate = (
            "The rate is assumed (--tflops): it stands for bf16 training at about a third of an A100's peak "
            "of 312. "
        )
        lines.append(
            f"{'' if is_rate_given else rate}FLOPs count a multiply-add as two, forward and backward; data "
            "loading, tokenising and the evaluated images are not counted."
        )
    if reported is not None and reported["accelerator_hours"] is not None:
        lines.append(
            f"The column `paper` is what as many cells took there: hours of one {reported['accelerator']} "
            f"({reported['source']}), {duration(reported['accelerator_hours'])} in all, against "
            f"{duration(reported['gpu_hours'])} of GPU time for the same cells here. Of the other cells the "
            "paper says nothing."
        )
    return "\n".join(paragraph(line) for line in lines)


def _left(forecast: dict[str, Any], *, is_rate_given: bool, is_for_gpus: bool) -> str:
    model, todo = forecast["model"], forecast["open"]
    if not any(forecast["states"][state] for state in LEFT_TO_RUN):
        return "Nothing is left to run."
    kept = f"{size(todo['disk_bytes_kept'])} of disk kept"
    rate = f"at {model['teraflops_sustained']:g} TFLOP/s sustained"
    whole = sum(cell["gpu_hours"] for cell in forecast["cells"])
    if not is_for_gpus and whole < 1 / 60:
        return (
            f"What is left to run: {quantity(todo['train_flops'])} FLOPs, less than a minute of GPU time "
            f"{rate}; this model does not estimate CPUs. {kept}, up to "
            f"{size(todo['disk_bytes_while_running'])} more while {model['gpus']} cells run at once."
        )
    return (
        f"What is left to run: {quantity(todo['train_flops'])} FLOPs, {duration(todo['gpu_hours'])} of GPU "
        f"time {rate}{', the rate given by --tflops' if is_rate_given else ''}; "
        f"{duration(todo['wall_hours'])} of wall time on {count(model['gpus'], 'GPU')}, one cell each; "
        f"{kept}, {size(todo['disk_bytes_while_running'])} more while running."
    )


def _unsettled(forecast: dict[str, Any]) -> list[str]:
    """One sentence for cells that a run would leave as they are, with the flag that each kind needs."""
    parts = []
    for state, advice in NEEDED.items():
        number = forecast["states"][state]
        if number:
            verb, them = ("is", "it") if number == 1 else ("are", "them")
            parts.append(f"{count(number, 'cell')} {verb} {state}: {advice.format(them=them)}")
    return [f"{'; '.join(parts)}. status says why."] if parts else []
