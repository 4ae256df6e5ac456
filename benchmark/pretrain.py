"""Stage `pretrain`: train a method's objective on stored tokens and export its trunk."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmark.batches import Batch
from benchmark.checkpoint import save_weights
from benchmark.image_part import ImagePart
from benchmark.pixels import ReadPixels, pixel_reader
from benchmark.recipe import train_recipe
from benchmark.stage import CellContext, StageResult
from benchmark.stored_tokens import check_geometry, store_of
from benchmark.transforms import color_jitter, jitter_draws, normalise
from leaderboard.record import Metric, Record
from methods import build_method, method_spec
from methods.base import Method
from protocols.schema import TrunkSpec

BACKBONE = "checkpoints/backbone.safetensors"
METHOD_WEIGHTS = "checkpoints/method.safetensors"


class PretrainingObjective(nn.Module):
    """A method as the engine trains it: on pixels, which it jitters and normalises on their own device."""

    def __init__(self, method: Method, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """`mean` and `std` are the protocol's, one for each channel."""
        super().__init__()
        self.method, self.mean, self.std = method, mean, std
        method.keeps_logits = False

    def loss(self, batch: Batch) -> Tensor:
        """Mean over the predicted positions of this micro-batch."""
        output: dict[str, Tensor] = self.method(self.images(batch), batch["tokens"], batch["pattern"])
        return output["loss"]

    def compile_blocks(self) -> None:
        """See benchmark/step_choices.py."""
        self.method.compile_blocks()

    def recompute_blocks(self) -> None:
        """See benchmark/step_choices.py."""
        self.method.recomputes_blocks = True

    def images(self, batch: Batch) -> Tensor:
        """What the method sees, (B, 3, S, S) float32 whatever the training's precision."""
        pixels = batch["pixels"]
        with torch.autocast(pixels.device.type, enabled=False):
            if "jitter_factors" in batch:
                pixels = color_jitter(pixels, batch["jitter_factors"], batch["jitter_order"])
            return normalise(pixels, self.mean, self.std)

    def positions(self, batch: Batch) -> Tensor:
        """Predicted positions of this micro-batch."""
        return self.method.count_targets(batch["pattern"])


class PretrainingBatches:
    """Positions and epoch -> pixels, jitter's draws, tokens and pattern; pure in (seed, epoch, sample id).

    Pixels stay uint8 until they are on the training's device: a quarter of the bytes to copy there.
    """

    def __init__(
        self,
        method: Method,
        *,
        read: ReadPixels,
        sample_ids: npt.NDArray[np.int64],
        tokens: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]],
        jitter: float,
        seed: int,
    ) -> None:
        """`read` gives the pixels (B, 3, S, S) at positions (B,), `tokens` the tokens (B, N), or (B, 0).

        `jitter` is the recipe's `color_jitter`.
        """
        self.method, self.jitter, self.seed = method, jitter, seed
        self.read, self.sample_ids, self.tokens = read, sample_ids, tokens

    def __call__(self, positions: npt.NDArray[np.int64], epoch: int) -> Batch:
        sample_ids = torch.from_numpy(self.sample_ids[positions])
        batch = {
            "pixels": torch.from_numpy(self.read(positions)),
            "tokens": torch.from_numpy(self.tokens(positions)),
            "pattern": self.method.draw(sample_ids, epoch, self.seed),
        }
        if self.jitter:
            factors, order = jitter_draws(sample_ids, strength=self.jitter, epoch=epoch, seed=self.seed)
            batch |= {"jitter_factors": factors, "jitter_order": order}
        return batch


class _StoredTokens:
    """Positions (B,) of `images` -> their tokens (B, N), from the store that `tokenised` names."""

    def __init__(self, context: CellContext, tokenised: Record, images: ImagePart, trunk: TrunkSpec) -> None:
        """Raises HarnessError if the store is not as recorded, or has other patches than `trunk`."""
        self._store = store_of(context, tokenised)
        check_geometry(trunk, tokens=self._store.grid**2, tokenizer=context.cell.tokenizer or "")
        self._rows = self._store.rows(images.image_ids)
        self.codebook_size = self._store.codebook_size

    def __call__(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return self._store.tokens(self._rows[positions])


class _NoTokens:
    """Positions (B,) -> (B, 0): for a method that predicts none."""

    codebook_size = 0

    def __call__(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.empty((len(positions), 0), dtype=np.int64)


def run(context: CellContext) -> StageResult:
    """Train to the protocol's last step, from the newest checkpoint where there is one."""
    cell, protocol = context.cell, context.protocol
    recipe = protocol.pretraining_with(dict(cell.pretraining))
    assert cell.method is not None
    images = context.images("pretraining")
    trunk = context.trunk(drop_path=recipe.drop_path)
    tokenised = context.parent() if cell.parents else None
    tokens = _NoTokens() if tokenised is None else _StoredTokens(context, tokenised, images, trunk)
    spec = method_spec(cell.method)
    method = build_method(
        cell.method,
        trunk=trunk,
        codebook_size=tokens.codebook_size,
        seed=context.seed,
        **dict(cell.hyperparameters),
    )
    make_batch = PretrainingBatches(
        method,
        read=pixel_reader(
            images, protocol.data.image_size, choice=context.runtime.images, work_dir=context.work_dir
        ),
        sample_ids=images.sample_ids,
        tokens=tokens,
        jitter=recipe.color_jitter,
        seed=context.seed,
    )
    result = train_recipe(
        context,
        recipe,
        objective=PretrainingObjective(method, mean=protocol.data.mean, std=protocol.data.std),
        weights=method,
        undecayed=method.no_weight_decay(),
        images=images,
        make_batch=make_batch,
        group=spec.images_in_a_group(dict(cell.hyperparameters)),
    )
    artefacts = {
        BACKBONE: save_weights(context.folder / BACKBONE, method.export_backbone()),
        METHOD_WEIGHTS: save_weights(context.folder / METHOD_WEIGHTS, method.state_dict()),
    }
    return StageResult(
        metrics={"loss": Metric(value=result.loss, n=result.loss_images, unit=spec.loss_unit)},
        data=images,
        seconds=result.seconds,
        images_seen=result.images_seen,
        train_flops=cell.train_flops,
        artefacts=artefacts,
        tokenizer=None if tokenised is None else tokenised.tokenizer,
    )
