"""How far apart loss curves are in one process, in two, and in one with accumulation: float32, drop path 0.

    python -m tests.performance.process_counts

trains every objective of the protocol for tests, and fine-tunes under the recipe with Mixup and CutMix, on
the CPU; prints the largest difference of any logged loss from that of one process.
"""

from __future__ import annotations

import json
import tempfile
from argparse import Namespace
from pathlib import Path

from benchmark.cell_command import cell_arguments
from benchmark.cli import build_parser
from benchmark.commands.deviations import chosen_cells
from benchmark.runtime import Runtime
from tests.benchmark.forked_ranks import in_processes, run_command

TESTS = Path(__file__).parent.parent
WAYS = {"1 x 1": (1, 1), "2 x 1": (2, 1), "1 x 2": (1, 2)}  # processes x accumulation
WITHOUT_DROPPED_PATHS = ["pretraining.drop_path=0", "evaluations.finetune.drop_path=0"]


def curves(protocol: str, method: str, stage: str, folder: Path) -> dict[str, list[float]]:
    """The losses of the stage's metrics file under each of WAYS, its parents made as it is."""
    found = {}
    for way, (processes, accumulation) in WAYS.items():
        work_dir = folder / f"{protocol}-{method}-{way.replace(' ', '')}"
        options: Namespace = build_parser("run").parse_args(
            ["--protocol", str(TESTS / f"{protocol}.yaml"), "--methods", method, "--evaluations", "finetune",
             "--work-dir", str(work_dir), "--device", "cpu", "--set", *WITHOUT_DROPPED_PATHS]
        )  # fmt: skip
        runtime = Runtime(device="cpu", jobs=1, threads=1, accumulation=accumulation)
        cells = chosen_cells(options)[2]
        for cell in cells:
            words = cell_arguments(options, cell.id, runtime)
            in_processes(run_command, processes, words, processes=processes, seconds=600)
            if cell.stage == stage:
                break
        metrics = work_dir / protocol / "cells" / cell.id / "metrics.jsonl"
        found[way] = [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]
    return found


def main() -> None:
    """Print one line for each training."""
    print("| training | steps logged | two processes | accumulation |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for protocol, method, stage in (
            *(("tiny", method, "pretrain") for method in ("mim", "pim", "mapet", "beit", "cae")),
            ("full", "mim", "finetune"),
        ):
            found = curves(protocol, method, stage, Path(folder))
            alone = found["1 x 1"]
            apart = [
                max(abs(a - b) for a, b in zip(alone, found[way], strict=True)) for way in ("2 x 1", "1 x 2")
            ]
            print(
                f"| {stage} {method} ({protocol}) | {len(alone)} | {apart[0]:.1e} | {apart[1]:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
