"""What `plan` prints: its tables and paragraphs, all made of the forecast's plain types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmark.commands.text import count, duration, paragraph, quantity, size, table
from benchmark.forecast import reported_hours
from benchmark.plan import STAGES
from benchmark.plan_cost import LEFT_TO_RUN, tried_values
from benchmark.step_costs import Machine
from benchmark.survey import CellState
from protocols.schema import Protocol

NEEDED: dict[str, str] = {
    "stale": "--redo-stale runs {them} again",
    "failed": "--redo-failed runs {them} again",
    "damaged": "status names each remedy",
}
UNSETTLED = ("stale", "running", "resumable", "to do", "blocked", "failed", "damaged")


def summary(states: Sequence[CellState], protocol: Protocol, forecast: dict[str, Any]) -> str:
    """One line for each stage and trunk, in the order of the work."""
    hours = {cell["id"]: cell["gpu_hours"] for cell in forecast["cells"]}
    groups: dict[tuple[int, str, str], list[CellState]] = {}
    for one in states:
        name = one.cell.evaluation or one.cell.stage
        groups.setdefault((STAGES.index(one.cell.stage), name, one.cell.trunk or ""), []).append(one)
    shown = ["done", *(state for state in UNSETTLED if forecast["states"][state])]
    has_report = forecast["reported"] is not None
    header = ["stage", "trunk", "cells", *shown, "FLOPs", f"{_device(forecast)} time"] + [
        "paper"
    ] * has_report
    rows = []
    # A dict keeps the order of first sight: the protocol's own within a stage.
    for (_, name, trunk), group in sorted(groups.items(), key=lambda item: item[0][0]):
        cells = [one.cell for one in group]
        rows.append([name, trunk, *_numbers(group, shown, hours)])
        if has_report:
            there = reported_hours(cells, protocol)
            rows[-1].append("" if there is None else duration(there))
    total = ["all", "", *_numbers(states, shown, hours)]
    if has_report:
        hours = forecast["reported"]["accelerator_hours"]
        total.append("" if hours is None else duration(hours))
    return table(header, [*rows, total], right=range(2, len(header)), total=True)


def _numbers(group: Sequence[CellState], shown: Sequence[str], hours: Mapping[str, float]) -> list[str]:
    states = Counter(one.state for one in group)
    flops = sum(one.cell.train_flops for one in group)
    return [
        str(len(group)),
        *(str(states[state]) if states[state] else "" for state in shown),  # type: ignore[index]
        quantity(flops) if flops else "",
        duration(sum(hours[one.cell.id] for one in group)) if flops else "",
    ]


def cell_lines(states: Sequence[CellState], forecast: dict[str, Any]) -> str:
    """One line for each cell, the longest column last, so that a narrow terminal can wrap it."""
    by_id = {one.cell.id: one.cell for one in states}
    number = {cell_id: str(position) for position, cell_id in enumerate(by_id, start=1)}
    tried = tried_values(list(by_id.values()))
    costs = {cell["id"]: cell for cell in forecast["cells"]}
    rows, names = [], []
    for one in states:
        cell, cost = one.cell, costs[one.cell.id]
        parents = " ".join(number[parent] for parent in cell.parents)
        hours = duration(cost["gpu_hours"]) if cell.train_flops else ""
        if cost["gpus"] > 1:
            hours = f"{cost['gpus']} x {duration(cost['gpu_hours'] / cost['gpus'])}"
        rows.append([number[cell.id], one.state, parents, hours])
        names.append(f"{cell.evaluation or cell.stage} {cell.row}{tried[cell.id]}")
    header, rule, *lines = table(
        ["", "state", "after", f"{_device(forecast)} time"], rows, right=(0, 3)
    ).splitlines()
    indent = len(rule) + 2
    shown = [
        paragraph(name, first=line.ljust(indent), rest=" " * indent)
        for line, name in zip(lines, names, strict=True)
    ]
    longest = max(len(line) for text in shown for line in text.splitlines())
    return "\n".join([f"{header.ljust(indent)}cell", "-" * longest, *shown])


def step_lines(forecast: dict[str, Any]) -> str:
    """One line for each kind of step that was measured, as it would run."""
    device = _device(forecast)
    header = ["step", f"{device}s", "batch", "images/s", *(["memory"] if device == "GPU" else [])]
    rows = []
    for one in forecast["steps"]:
        rate = one["images_per_second"]
        shown = "no room" if rate is None else f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"
        batch = f"{one['accumulation']} x {one['micro_batch']:,}"
        rows.append([one["step"], str(one["gpus"]), batch, shown])
        if device == "GPU":
            rows[-1].append("" if one["peak_bytes"] is None else size(one["peak_bytes"]))
    each = "images/s and memory are" if device == "GPU" else "images/s are"
    legend = f"batch: steps x images of each {device} that make up an update; {each} those of one {device}."
    return f"{table(header, rows, right=range(1, len(header)))}\n{paragraph(legend)}"


def model(forecast: dict[str, Any], *, is_rate_given: bool, is_for_gpus: bool) -> str:
    """What is left to run and what that costs, how it is reckoned, and what a paper reports."""
    reported, packed = forecast["reported"], forecast["open"]["disk_bytes_packed_images"]
    lines = [_left(forecast, is_rate_given=is_rate_given, is_for_gpus=is_for_gpus), *_unsettled(forecast)]
    if packed:
        lines.append(f"Packed images (the command pack), if wanted: {size(packed)} more of disk.")
    if any(cell["train_flops"] for cell in forecast["cells"]):
        lines.append(_whose_rate(forecast, is_rate_given=is_rate_given))
    if reported is not None and reported["accelerator_hours"] is not None:
        lines.append(
            f"The column `paper` is what as many cells took there: hours of one {reported['accelerator']} "
            f"({reported['source']}), {duration(reported['accelerator_hours'])} in all, against "
            f"{duration(reported['gpu_hours'])} of {_device(forecast)} time for the same cells here. Of the "
            "other cells the paper says nothing."
        )
    return "\n".join(paragraph(line) for line in lines)


def _whose_rate(forecast: dict[str, Any], *, is_rate_given: bool) -> str:
    """Where the hours come from, and what they leave out."""
    measured, unmeasured = forecast["model"]["measured"], forecast["model"]["unmeasured_cells"]
    but = ", but for knn, which passes all images through the trunk" if forecast["stages"]["knn"] else ""
    left_out = f"data loading, tokenising and the evaluated images are not counted{but}."
    if measured is None:
        rate = (
            "The rate is assumed (--tflops): it stands for bf16 training at about a third of an A100's peak "
            "of 312. "
        )
        return (
            f"{'' if is_rate_given else rate}FLOPs count a multiply-add as two, forward and backward; "
            f"{left_out}"
        )
    rest = (
        f"Of {count(unmeasured, 'cell')} to be run the step was not measured (--probe does it): "
        f"{forecast['model']['teraflops_sustained']:g} TFLOP/s stand for it. "
        if unmeasured
        else ""
    )
    return (
        f"Steps were measured on {Machine.model_validate(measured).described}: forward, backward and update "
        f"on made-up images, one device alone. {rest}What processes tell one another, {left_out}"
    )


def _left(forecast: dict[str, Any], *, is_rate_given: bool, is_for_gpus: bool) -> str:
    reckoned, todo, device = forecast["model"], forecast["open"], _device(forecast)
    if not any(forecast["states"][state] for state in LEFT_TO_RUN):
        return "Nothing is left to run."
    kept = f"{size(todo['disk_bytes_kept'])} of disk kept"
    rate = f"at {reckoned['teraflops_sustained']:g} TFLOP/s sustained"
    whole = sum(cell["gpu_hours"] for cell in forecast["cells"])
    if reckoned["measured"] is None and not is_for_gpus and whole < 1 / 60:
        return (
            f"What is left to run: {quantity(todo['train_flops'])} FLOPs, less than a minute of GPU time "
            f"{rate}; this model does not estimate CPUs. {kept}, up to "
            f"{size(todo['disk_bytes_while_running'])} more while {reckoned['gpus']} cells run at once."
        )
    if reckoned["measured"] is not None:
        rate = "as measured"
    return (
        f"What is left to run: {quantity(todo['train_flops'])} FLOPs, {duration(todo['gpu_hours'])} of "
        f"{device} time {rate}{', the rate given by --tflops' if is_rate_given else ''}; "
        f"{duration(todo['wall_hours'])} of wall time on {count(reckoned['gpus'], device)}, "
        f"{_spread(forecast)}; {kept}, {size(todo['disk_bytes_while_running'])} more while running."
    )


def _spread(forecast: dict[str, Any]) -> str:
    """How many devices the open cells take."""
    taken = Counter(cell["gpus"] for cell in forecast["cells"] if cell["left"])
    if set(taken) <= {1}:
        return "one cell each"
    (fewest, cells), *others = sorted(taken.items())
    return ", ".join([f"{count(cells, 'cell')} on {fewest}", *(f"{cells} on {n}" for n, cells in others)])


def _device(forecast: dict[str, Any]) -> str:
    """What hours are hours of."""
    measured = forecast["model"]["measured"]
    return "CPU" if measured is not None and measured["device"] == "cpu" else "GPU"


def _unsettled(forecast: dict[str, Any]) -> list[str]:
    """One sentence for cells that a run would leave as they are, with the flag that each kind needs."""
    parts = []
    for state, advice in NEEDED.items():
        number = forecast["states"][state]
        if number:
            verb, them = ("is", "it") if number == 1 else ("are", "them")
            parts.append(f"{count(number, 'cell')} {verb} {state}: {advice.format(them=them)}")
    return [f"{'; '.join(parts)}. status says why."] if parts else []
