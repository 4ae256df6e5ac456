"""Trains a tiny BEiT with the engine; a script, so that tests can run it as several processes.

python engine_run.py FOLDER METHOD DROP_PATH PROCESSES RANK ACCUMULATION WORKERS PRECISION [STOP_AT]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import numpy as np
import torch
import torch.distributed as dist

from benchmark.batches import StepDataset, Steps
from benchmark.engine import Training, process_rank, train
from benchmark.interrupt import Interrupted, StopFlag
from benchmark.optim import build_optimizer, build_schedule
from benchmark.pretrain import PretrainingBatches, PretrainingObjective
from benchmark.runtime import Runtime
from methods import build_method, method_spec
from protocols import load_protocol

CHECKPOINT_SECONDS = 3600
TINY = Path(__file__).parent.parent / "tiny.yaml"
# Of methods that tiny.yaml does not set.
FURTHER: dict[str, dict[str, int]] = {"splitmask": {"decoder_depth": 1, "contrast_group": 8}}


class StopAt(StopFlag):
    """Asks to stop once the engine has looked `step` times."""

    def __init__(self, step: int | None) -> None:
        self.step, self.looks = step, 0
        super().__init__()

    @property
    def raised(self) -> bool:
        self.looks += 1
        return self.step is not None and self.looks >= self.step

    @raised.setter
    def raised(self, value: bool) -> None:
        assert not value


def run(
    folder: Path,
    method_name: str,
    *,
    drop_path: float,
    processes: int = 1,
    accumulation: int = 1,
    workers: int = 0,
    precision: str = "fp32",
    stop_at: int | None = None,
) -> dict[str, Any]:
    """Train, or go on; returns the result and the method's weights, or {} if it was stopped."""
    protocol = load_protocol(str(TINY))
    recipe = protocol.pretraining.model_copy(update={"epochs": 2})
    own = protocol.methods.get(method_name, FURTHER.get(method_name))
    method = build_method(
        method_name,
        trunk=protocol.trunk_spec("vit-tiny-test", drop_path=drop_path),
        codebook_size=16,
        seed=0,
        **own,
    )
    generator = np.random.default_rng(0)
    images = 256
    steps = Steps(images, recipe.global_batch, recipe.epochs, seed=0)
    runtime = Runtime.model_validate(
        {
            "device": "cpu", "jobs": 1, "threads": 1, "workers": workers, "precision": precision,
            "processes": processes, "accumulation": accumulation, "checkpoint_seconds": CHECKPOINT_SECONDS,
        }
    )  # fmt: skip
    optimizer = build_optimizer(method, recipe, undecayed=method.no_weight_decay())
    training = Training(
        model=PretrainingObjective(method, mean=protocol.data.mean, std=protocol.data.std),
        data=StepDataset(
            steps,
            PretrainingBatches(
                method,
                read=generator.integers(256, size=(images, 3, 28, 28)).astype(np.uint8).__getitem__,
                sample_ids=np.arange(images),
                tokens=generator.integers(16, size=(images, 16)).__getitem__,
                jitter=protocol.pretraining.color_jitter,
                seed=0,
            ),
            micro_batch=runtime.micro_batch(
                recipe.global_batch, group=method_spec(method_name).images_in_a_group(own)
            ),
            rank=process_rank(),
            processes=processes,
        ),
        optimizer=optimizer,
        schedule=build_schedule(optimizer, recipe, steps),
        clip_grad_norm=recipe.clip_grad_norm,
        seed=0,
        folder=folder,
        stop=StopAt(stop_at),
    )
    try:
        result = train(training, runtime)
    except Interrupted:
        return {}
    return {"loss": result.loss, "weights": method.state_dict(), "images_seen": result.images_seen}


def main(arguments: list[str]) -> None:
    """One process of a run; rank 0 saves what it has at the end as FOLDER/result.pt."""
    folder, method = Path(arguments[0]), arguments[1]
    processes, rank = int(arguments[3]), int(arguments[4])
    torch.set_num_threads(1)
    if processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes
        )
    result = run(
        folder,
        method,
        drop_path=float(arguments[2]),
        processes=processes,
        accumulation=int(arguments[5]),
        workers=int(arguments[6]),
        precision=arguments[7],
        stop_at=int(arguments[8]) if len(arguments) > 8 else None,
    )
    if rank == 0 and result:
        torch.save(result, folder / "result.pt")
    if processes > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
