"""Stage `pretrain`: train a method's objective on stored tokens and export its trunk."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmark.batches import Batch
from benchmark.checkpoint import save_weights
from benchmark.recipe import train_recipe
from benchmark.stage import CellContext, StageResult
from benchmark.stored_tokens import check_geometry, store_of
from benchmark.transforms import color_jitter, normalise
from leaderboard.record import Metric
from methods import build_method
from methods.base import Method
from protocols.schema import Protocol

BACKBONE = "checkpoints/backbone.safetensors"
METHOD_WEIGHTS = "checkpoints/method.safetensors"


class PretrainingObjective(nn.Module):
    """A method as the engine trains it."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def loss(self, batch: Batch) -> Tensor:
        """Mean over the predicted positions of this micro-batch."""
        output: dict[str, Tensor] = self.method(batch["images"], batch["tokens"], batch["pattern"])
        return output["loss"]

    def positions(self, batch: Batch) -> Tensor:
        """Predicted positions of this micro-batch."""
        return self.method.count_targets(batch["pattern"])


class PretrainingBatches:
    """Positions and epoch -> images, tokens and pattern; pure in (seed, epoch, sample id)."""

    def __init__(
        self,
        method: Method,
        protocol: Protocol,
        *,
        pixels: npt.NDArray[np.uint8],
        sample_ids: npt.NDArray[np.int64],
        tokens: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]],
        seed: int,
    ) -> None:
        """`tokens` gives the tokens (B, N) of the images at positions (B,)."""
        self.method, self.protocol, self.seed = method, protocol, seed
        self.pixels, self.sample_ids, self.tokens = pixels, sample_ids, tokens

    def __call__(self, positions: npt.NDArray[np.int64], epoch: int) -> Batch:
        sample_ids = torch.from_numpy(self.sample_ids[positions])
        jittered = color_jitter(
            torch.from_numpy(self.pixels[positions]),
            sample_ids,
            strength=self.protocol.pretraining.color_jitter,
            epoch=epoch,
            seed=self.seed,
        )
        data = self.protocol.data
        return {
            "images": normalise(jittered, data.mean, data.std),
            "tokens": torch.from_numpy(self.tokens(positions)),
            "pattern": self.method.draw(sample_ids, epoch, self.seed),
        }


def run(context: CellContext) -> StageResult:
    """Train to the protocol's last step, from the newest checkpoint where there is one."""
    cell, protocol = context.cell, context.protocol
    recipe = protocol.pretraining
    assert cell.method is not None
    assert cell.tokenizer is not None
    images = context.images("pretraining")
    store = store_of(context, context.parent())
    trunk = context.trunk(drop_path=recipe.drop_path)
    check_geometry(trunk, tokens=store.grid**2, tokenizer=cell.tokenizer)
    method = build_method(
        cell.method,
        trunk=trunk,
        codebook_size=store.codebook_size,
        seed=context.seed,
        **dict(cell.hyperparameters),
    )
    rows = store.rows(images.image_ids)
    make_batch = PretrainingBatches(
        method,
        protocol,
        pixels=images.pixels(protocol.data.image_size),
        sample_ids=images.sample_ids,
        tokens=lambda positions: store.tokens(rows[positions]),
        seed=context.seed,
    )
    result = train_recipe(
        context,
        recipe,
        objective=PretrainingObjective(method),
        weights=method,
        undecayed=method.no_weight_decay(),
        images=len(images),
        make_batch=make_batch,
    )
    artefacts = {
        BACKBONE: save_weights(context.folder / BACKBONE, method.export_backbone()),
        METHOD_WEIGHTS: save_weights(context.folder / METHOD_WEIGHTS, method.state_dict()),
    }
    return StageResult(
        metrics={"loss": Metric(value=result.loss, n=result.loss_images, unit="nats")},
        data=images,
        seconds=result.seconds,
        images_seen=result.images_seen,
        train_flops=cell.train_flops,
        artefacts=artefacts,
        tokenizer=context.parent().tokenizer,
    )
