"""What tests of clusters share: a submission as `run --cluster` makes it, without its other checks."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import yaml

from benchmark.cli import build_parser
from benchmark.cluster_file import load_cluster_file
from benchmark.commands.deviations import chosen_cells
from benchmark.commands.submit import cluster_runtime, submit
from benchmark.placement import place
from benchmark.plan import Cell
from benchmark.runtime import Runtime
from benchmark.survey import survey

TINY = Path(__file__).parent.parent / "tiny.yaml"


def cluster_file(folder: Path, **values: Any) -> Path:
    """A cluster file of nodes without GPUs, with `values` beside or in the place of its own."""
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({"time": "00:05:00", "gpus_per_node": 0, **values}))
    return path


def words_of(work_dir: Path, file: Path, *arguments: str) -> list[str]:
    """The command line of a submission."""
    return ["--protocol", str(TINY), "--work-dir", str(work_dir), "--cluster", str(file), *arguments]


def options_of(work_dir: Path, file: Path, *arguments: str) -> Namespace:
    options: Namespace = build_parser("run").parse_args(words_of(work_dir, file, *arguments))
    return options


def submit_open(work_dir: Path, file: Path, *arguments: str, stages: tuple[str, ...] = ()) -> int:
    """Submit what is open, or of `stages` alone; returns the exit code."""
    options = options_of(work_dir, file, *arguments)
    cluster = load_cluster_file(file)
    runtime = cluster_runtime(options, cluster)
    protocol, _, plan = chosen_cells(options)
    states = survey(plan, protocol, work_dir, data_root=options.data_root)
    if stages:
        states = [one for one in states if one.cell.stage in stages]

    def placed(cell: Cell) -> Runtime:
        return place(cell, protocol, runtime, costs=None, memory_bytes=None, gpus=runtime.jobs)

    return submit(options, protocol, states, cluster, runtime_of=placed)
