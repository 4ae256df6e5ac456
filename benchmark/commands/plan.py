"""`plan`: what a run would do, in which order, what it waits for, and what it will cost.

Rates come from what `--probe` measured, on this call or an earlier one, where that is of the device and the
precision that are asked about; elsewhere from the FLOPs over an assumed rate.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence

from benchmark.commands.deviations import lines_under_title, planned
from benchmark.commands.imports import add_from_checkpoint, asked_imports
from benchmark.commands.options import (
    Parser,
    add_protocol,
    add_selection,
    add_step_choices,
    check_least,
    read_selection,
)
from benchmark.commands.plan_text import cell_lines, model, step_lines, summary
from benchmark.commands.text import count, paragraph, styled
from benchmark.layout import check_work_dir
from benchmark.measure_steps import measure_steps
from benchmark.placement import place
from benchmark.plan_cost import LEFT_TO_RUN, Reckoning, make_forecast
from benchmark.runtime import Runtime, count_gpus, detect_runtime
from benchmark.step_costs import DamagedCosts, StepCosts, known_costs
from benchmark.survey import CellState, survey
from protocols.errors import HarnessError
from protocols.schema import Protocol

SUMMARY = "what a run would do, in which order, at what cost"
DESCRIPTION = """\
What a run with the same selection would do: cells, their order and parents,
which are done, resumable, to do or blocked, and what they cost. Runs nothing
but, with --probe, a few steps of each kind on made-up images.

examples:
  python run_benchmark.py plan --protocol mini
  python run_benchmark.py plan --protocol fair300 --methods all --cells
  python run_benchmark.py plan --protocol fair300 --methods mapet --json
  python run_benchmark.py plan --protocol fair300 --probe --precision bf16
"""
DEFAULT_TERAFLOPS = 100.0
ASSUMED_GPUS = 8


def add_arguments(parser: Parser) -> None:
    """Which cells, and the machine to count for."""
    add_protocol(parser)
    add_selection(parser)
    add_from_checkpoint(parser)
    parser.add_argument(
        "--tflops",
        type=float,
        metavar="X",
        help=f"TFLOP/s that one GPU sustains in training (default: {DEFAULT_TERAFLOPS:.0f}, an assumption)",
    )
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs to spread cells over (default: those here, or 8)"
    )
    parser.add_argument(
        "--probe",
        action="store_true",
        help="time a step of each kind here, and keep it; what was measured before is not measured again "
        "(it is in WORK_DIR/PROTOCOL/step-costs.json)",
    )
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="whose measured steps; auto: GPUs if any",
    )
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="of the steps (default: fp32)"
    )
    add_step_choices(parser)
    parser.add_argument("--gpus-per-cell", type=int, metavar="N", help="as run's: GPUs that share a cell")
    parser.add_argument("--accumulation", type=int, metavar="N", help="as run's: micro-batches a step")
    parser.add_argument("--cells", action="store_true", help="list every cell, in order, with its parents")
    parser.add_argument("--json", action="store_true", help="the plan as JSON on standard output")


def run(options: Namespace) -> int:
    """Survey and show."""
    if options.tflops is not None and not 0 < options.tflops < float("inf"):
        raise HarnessError(f"--tflops must be more than 0, got {options.tflops:g}")
    if options.tflops is not None and options.probe:
        raise HarnessError("--tflops and --probe are two rates: give one, the other is not used")
    check_least(
        ("--gpus", options.gpus, 1),
        ("--gpus-per-cell", options.gpus_per_cell, 1),
        ("--accumulation", options.accumulation, 1),
    )
    imports = asked_imports(options)
    if imports is None:
        protocol, selection = read_selection(options)
        plan = planned(protocol, selection, given=options.protocol)
    else:
        protocol, selection, plan = imports.chosen
    lines = lines_under_title(options, protocol, selection)
    states = survey(plan, protocol, options.work_dir, data_root=options.data_root)
    present = count_gpus()
    forecast = make_forecast(states, protocol, _reckoning(options, states, protocol, present=present))
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
    print("\n" + styled(summary(states, protocol, forecast)))
    if options.cells:
        print("\n" + styled(cell_lines(states, forecast), has_states=True))
    if options.probe and forecast["steps"]:
        print("\n" + styled(step_lines(forecast)))
    is_for_gpus = bool(present or options.gpus or options.tflops)
    print("\n" + model(forecast, is_rate_given=options.tflops is not None, is_for_gpus=is_for_gpus))
    missing = forecast["missing"]
    if missing:
        held = sum(
            one["state"] == "blocked" or (one["left"] > 0 and not one["is_placed"])
            for one in forecast["cells"]
        )
        print(f"\nmissing, without which {count(held, 'cell')} cannot run:")
        for one in missing:
            print(paragraph(one["what"], first="- ", rest="  "))
            print(paragraph(one["remedy"], first="    ", rest="    "))
    return 0


def _reckoning(
    options: Namespace, states: Sequence[CellState], protocol: Protocol, *, present: int
) -> Reckoning:
    """The machine to count for: its steps as measured now or before, or none."""
    costs, runtime = None, _runtime(options, "cuda")
    if options.probe:
        check_work_dir(options.work_dir)
        runtime = detect_runtime(
            device=options.device,
            precision=options.precision,
            accumulation=options.accumulation or 1,
            gpus_per_cell=options.gpus_per_cell,
            compile=options.compile,
            activation_checkpointing=options.activation_checkpointing,
        )
        if runtime.device == "cpu" and options.device == "auto":
            _tell("no GPU is visible here: this CPU is measured, which takes minutes a step for large trunks")
        open_cells = [one.cell for one in states if one.state in LEFT_TO_RUN]
        for cell in open_cells:  # what cannot be split is said before minutes of measuring
            place(cell, protocol, runtime, costs=None, memory_bytes=None, gpus=options.gpus or runtime.jobs)
        costs = measure_steps(open_cells, protocol, options.work_dir, runtime, report=_tell)
    elif options.tflops is None:
        runtime, costs = _known(options, protocol, runtime, present=present)
    gpus = options.gpus or present or ASSUMED_GPUS
    if costs is not None and costs.machine.device == "cpu":
        gpus = options.gpus or detect_runtime(device="cpu").jobs
    return Reckoning(runtime=runtime, costs=costs, gpus=gpus, teraflops=options.tflops or DEFAULT_TERAFLOPS)


def _known(
    options: Namespace, protocol: Protocol, otherwise: Runtime, *, present: int
) -> tuple[Runtime, StepCosts | None]:
    """What was measured before, of the device that is asked about; `otherwise` and None where nothing was."""
    devices = [options.device]
    if options.device == "auto":
        # Where no GPU is, but one was measured, the question is what a run elsewhere costs.
        devices = ["cuda"] if present or options.gpus else ["cpu", "cuda"]
    for device in devices:
        runtime = _runtime(options, device)
        try:
            costs = known_costs(options.work_dir, protocol.name, runtime)
        except DamagedCosts as error:
            _tell(f"{error}; it is not used")
            break
        if costs is not None:
            return runtime, costs
    return otherwise, None


def _runtime(options: Namespace, device: str) -> Runtime:
    """That of cells on such a device, whether it is here or not."""
    return Runtime.model_validate(
        {
            "device": device,
            "jobs": 1,
            "threads": 1,
            "precision": options.precision,
            "accumulation": options.accumulation or 1,
            "gpus_per_cell": options.gpus_per_cell,
            "compile": options.compile,
            "activation_checkpointing": options.activation_checkpointing,
        }
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
