"""Stage `pretrain`: train a method's objective on stored tokens and export its trunk."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmark.batches import Batch
from benchmark.checkpoint import save_weights
from benchmark.layout import cell_folder
from benchmark.plan import check_geometry
from benchmark.recipe import train_recipe
from benchmark.stage import CellContext, StageResult
from benchmark.transforms import color_jitter, normalise
from leaderboard.record import Metric
from methods import build_method
from methods.base import Method
from protocols.errors import HarnessError
from protocols.files import sha256_of_file
from protocols.schema import Protocol
from tokenizers.store import MANIFEST_NAME, TokenStore, open_store

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
        tokens: npt.NDArray[np.int64],
        seed: int,
    ) -> None:
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
            "tokens": torch.from_numpy(self.tokens[positions]),
            "pattern": self.method.draw(sample_ids, epoch, self.seed),
        }


def run(context: CellContext) -> StageResult:
    """Train to the protocol's last step, from the newest checkpoint where there is one."""
    cell, protocol = context.cell, context.protocol
    recipe = protocol.pretraining
    assert cell.method is not None
    assert cell.tokenizer is not None
    images = context.images("pretraining")
    store = _token_store(context)
    trunk = context.trunk(drop_path=recipe.drop_path)
    check_geometry(trunk, tokens=store.grid**2, tokenizer=cell.tokenizer)
    method = build_method(
        cell.method,
        trunk=trunk,
        codebook_size=store.codebook_size,
        seed=context.seed,
        **dict(cell.hyperparameters),
    )
    make_batch = PretrainingBatches(
        method,
        protocol,
        pixels=images.pixels(protocol.data.image_size),
        sample_ids=images.sample_ids,
        tokens=store.tokens(store.rows(images.image_ids)),
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


def _token_store(context: CellContext) -> TokenStore:
    """The parent's store, whose manifest must be the one that the parent's record names."""
    ((path, digest),) = [
        item for item in context.parent().artefacts.items() if item[0].endswith(f"/{MANIFEST_NAME}")
    ]
    manifest = context.work_dir / path
    if not manifest.is_file() or sha256_of_file(manifest) != digest:
        raise HarnessError(
            f"{path} is missing or is not the one that was recorded; to tokenise again, delete "
            f"{manifest.parent} and the cell {context.cell.parents[0]}, and run with --redo-failed"
        )
    try:
        return open_store(manifest.parent)
    except HarnessError as error:
        parent = cell_folder(context.work_dir, context.protocol.name, context.cell.parents[0])
        raise HarnessError(f"{error}: delete the folder {parent} too, and run with --redo-failed") from None
