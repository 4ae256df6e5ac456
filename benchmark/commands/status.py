"""`status`: which cells are done, failed, stale, running, queued or to do, and why."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmark.cluster_queue import Queue, accounted_states, as_json, queue_of, with_queue
from benchmark.commands.deviations import lines_under_title, planned
from benchmark.commands.imports import with_known_imports
from benchmark.commands.options import Parser, add_protocol, add_selection, read_selection
from benchmark.commands.text import count, paragraph, styled, table
from benchmark.layout import LOG_NAME, cell_folder
from benchmark.plan import STAGES
from benchmark.plan_cost import tried_values
from benchmark.survey import STATES, CellState, State, survey
from protocols.schema import Protocol

SUMMARY = "which cells are done, failed, stale, running or to do"
DESCRIPTION = """\
Where every cell stands, from records, locks and checkpoints, and from Slurm's
queue if cells were submitted to one. Changes nothing and may be asked while a
run is going on.

examples:
  python run_benchmark.py status --protocol mini
  python run_benchmark.py status --protocol mini --seeds 0 1 2 --json
"""
# States that a person asks about, with what to do; the others are numbers enough.
EXPLAINED: dict[State, str] = {
    "running": "",
    "resumable": "interrupted; the same command goes on from the checkpoint",
    "failed": "--redo-failed runs them again",
    "stale": "not compared on the board; --redo-stale runs them again",
    "damaged": "see each remedy",
    "blocked": "plan says how to provide what is missing",
}
MOST_REASONS = 10


def add_arguments(parser: Parser) -> None:
    """Which cells."""
    add_protocol(parser)
    add_selection(parser)
    parser.add_argument("--json", action="store_true", help="the states as JSON on standard output")


def run(options: Namespace) -> int:
    """Survey and show."""
    protocol, selection = read_selection(options)
    plan = planned(protocol, selection, given=options.protocol)
    plan = with_known_imports(plan, options, protocol, selection)
    lines = lines_under_title(options, protocol, selection)
    states = survey(plan, protocol, options.work_dir, data_root=options.data_root)
    queue = queue_of(options.work_dir, protocol.name)
    if queue is not None:
        states = with_queue(states, queue, options.work_dir, protocol.name)
    if options.json:
        print(json.dumps(_all_as_json(states, protocol, queue), indent=1))
        return 0
    print(f"{protocol.name}, version {protocol.version}, in {options.work_dir}: {count(len(states), 'cell')}")
    for line in lines:
        print(paragraph(line, rest="  "))
    print("\n" + styled(_counts(states, queue), has_states=True))
    merged = sum(one.is_merged for one in states)
    if merged:
        print(f"\nmerged from bundles, not made here: {count(merged, 'cell')}")
    tried = tried_values([one.cell for one in states])
    for state, advice in EXPLAINED.items():
        chosen = [one for one in states if one.state == state]
        if not chosen:
            continue
        print("\n" + styled(state, has_states=True) + (f" ({advice}):" if advice else ":"))
        if state == "blocked":
            print(_blocked(chosen))
            continue
        for one in chosen[:MOST_REASONS]:
            print(paragraph(_line(one, queue, tried[one.cell.id]), first="- ", rest="  "))
            if state == "failed":
                print(f"  {cell_folder(options.work_dir, protocol.name, one.cell.id) / LOG_NAME}")
        if len(chosen) > MOST_REASONS:
            print(f"- and {len(chosen) - MOST_REASONS} more (--json lists all)")
    if queue is not None:
        print("\n" + "\n".join(paragraph(line, rest="  ") for line in _queue_lines(states, queue)))
    return 0


def _queue_lines(states: Sequence[CellState], queue: Queue) -> list[str]:
    """What waits in the queue and why; and what left it without a record, which nobody would run again."""
    if queue.problem:
        return [f"queue: not asked, {queue.problem}; what of the submitted cells waits or runs is not known"]
    submitted = [one.cell.id for one in states if one.cell.id in queue.ledger.cells]
    if not submitted:
        return ["queue: none of these cells was submitted to a cluster"]
    shown = [queue.tasks[cell_id] for cell_id in submitted if queue.is_active(cell_id)]
    waiting = Counter(task.reason or task.state for task in shown if not task.is_on_a_node)
    running = sum(task.is_on_a_node for task in shown)
    parts = [f"{number} waiting ({reason})" for reason, number in waiting.most_common()]
    lines = [f"queue: {', '.join([f'{running} running', *parts])}"]
    lost = [one.cell.id for one in states if one.cell.id in submitted and not queue.is_active(one.cell.id)
            and one.state in ("to do", "resumable", "blocked")]  # fmt: skip
    if not lost:
        return lines
    lines.append("left the queue without a record (run --cluster submits them again):")
    accounted = accounted_states([queue.ledger.cells[one].job or "" for one in lost])
    for cell_id in lost[:MOST_REASONS]:
        entry, task = queue.ledger.cells[cell_id], queue.tasks.get(cell_id)
        ending = (
            " ".join([task.state, task.reason]) if task else accounted.get(entry.task, "how is not known")
        )
        lines.append(f"- {cell_id}, job {entry.task}: {ending.strip()}")
    return lines + [f"- and {len(lost) - MOST_REASONS} more (--json lists all)"] * (len(lost) > MOST_REASONS)


def _counts(states: Sequence[CellState], queue: Queue | None) -> str:
    present = Counter(one.state for one in states)
    shown = [state for state in STATES if present[state]]
    # A dict keeps the order of first sight: the protocol's own within a stage.
    groups: dict[tuple[int, str], Counter[State]] = {}
    queued: Counter[str] = Counter()
    for one in states:
        name = one.cell.evaluation or one.cell.stage
        groups.setdefault((STAGES.index(one.cell.stage), name), Counter())[one.state] += 1
        queued[name] += one.state != "running" and queue is not None and queue.is_active(one.cell.id)
    rows = [
        [name, str(group.total()), *(str(group[state]) if group[state] else "" for state in shown)]
        for (_, name), group in sorted(groups.items(), key=lambda item: item[0][0])
    ]
    rows.append(["all", str(len(states)), *(str(present[state]) for state in shown)])
    header = ["stage", "cells", *shown]
    if queued.total():
        # Cells of the other columns that wait in the queue.
        header.append("queued")
        for row in rows[:-1]:
            row.append(str(queued[row[0]] or ""))
        rows[-1].append(str(queued.total()))
    return table(header, rows, right=range(1, len(header)), total=True)


def _blocked(states: Sequence[CellState]) -> str:
    """What is missing, each once; cells that only wait for others are counted."""
    missing = Counter(one.what for state in states for one in state.missing)
    lines = [paragraph(f"{what} ({count(number, 'cell')})", first="- ", rest="  ")
             for what, number in missing.items()]  # fmt: skip
    waiting = sum(not state.missing for state in states)
    if waiting:
        need = "needs" if waiting == 1 else "need"
        lines.append(f"- {count(waiting, 'cell')} that {need} a cell that is blocked, failed or damaged")
    return "\n".join(lines)


def _line(one: CellState, queue: Queue | None, tried: str) -> str:
    text = f"{one.cell.evaluation or one.cell.stage} {one.cell.row}{tried}"
    if queue is not None and queue.is_active(one.cell.id):
        text += f", job {queue.tasks[one.cell.id].name}"
    if one.metrics:
        text += f", step {one.metrics['step']:,} of {one.metrics['steps']:,}"
    return text + (f": {'; '.join(one.reasons)}" if one.reasons else "")


def _all_as_json(states: Sequence[CellState], protocol: Protocol, queue: Queue | None) -> dict[str, Any]:
    return {
        "protocol": protocol.name,
        "modified": list(protocol.deviations),
        "queue": None if queue is None else {"problem": queue.problem},
        "cells": [{**_as_json(one), "job": queue and as_json(queue, one.cell.id)} for one in states],
    }


def _as_json(one: CellState) -> dict[str, Any]:
    return {
        "id": one.cell.id,
        "stage": one.cell.stage,
        "row": one.cell.row,
        "evaluation": one.cell.evaluation,
        "hyperparameters": dict(one.cell.hyperparameters),
        "pretraining": dict(one.cell.pretraining),
        "state": one.state,
        "reasons": list(one.reasons),
        "merged": one.is_merged,
        "missing": [{"what": each.what, "remedy": each.remedy} for each in one.missing],
        "step": one.metrics["step"] if one.metrics else None,
        "steps": one.metrics["steps"] if one.metrics else None,
    }
