"""A measurement is of exactly its n images, each once, whatever the reading and training processes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch.distributed as dist

from benchmark import classification, finetune
from benchmark.plan import make_plan, select
from benchmark.process_group import ShareDone
from benchmark.runtime import Runtime
from benchmark.stage import CellContext
from protocols import load_protocol
from tests.benchmark.forked_ranks import in_processes

WORKERS = (0, 1, 3)
PROTOCOL = load_protocol(str(Path(__file__).parents[1] / "tiny.yaml"))
(CELL,) = make_plan(PROTOCOL, select(PROTOCOL, methods=["scratch"], evaluations=["finetune"]))


def measure(folder: Path, *, workers: int, processes: int) -> int | None:
    """Fine-tune and measure; the n of the metric, None in a process that only trains."""
    context = CellContext(
        cell=CELL, protocol=PROTOCOL, work_dir=folder / f"{processes}-{workers}",
        runtime=Runtime(device="cpu", jobs=1, threads=1, workers=workers, processes=processes),
    )  # fmt: skip
    context.folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classification, "PIECE", 9)  # of 203 images: nothing divides them
        try:
            result = finetune.run(context)
        except ShareDone:
            return None
    return result.metrics["top1_percent"].n


def measure_as_one_of_two(rank: int, port: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=200)
    )
    for workers in WORKERS:
        assert measure(folder, workers=workers, processes=2) == (None if rank else 203)
        dist.barrier()
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_whatever_the_workers_and_processes(tmp_path: Path) -> None:
    for workers in WORKERS:
        assert measure(tmp_path, workers=workers, processes=1) == 203
    in_processes(measure_as_one_of_two, tmp_path, processes=2)
    part = CellContext(
        cell=CELL, protocol=PROTOCOL, work_dir=tmp_path, runtime=Runtime(device="cpu", jobs=1, threads=1)
    ).images("test")
    for processes in (1, 2):
        found = []
        for workers in WORKERS:
            (path,) = (tmp_path / f"{processes}-{workers}").rglob("predictions.npz")
            kept = predictions(path)
            assert tuple(kept["image_ids"]) == part.image_ids
            assert len(set(part.image_ids)) == 203
            assert np.array_equal(kept["labels"], part.labels)
            found.append(kept["predicted"])
        for one in found:
            assert np.array_equal(one, found[0]), "each image's own"


def predictions(path: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)
