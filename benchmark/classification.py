"""What evaluations share: a supervised objective, and exact evaluation."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmark.augment import centre_crop
from benchmark.batches import Batch
from benchmark.checkpoint import load_weights
from benchmark.engine import TrainingResult
from benchmark.image_part import ImagePart
from benchmark.imported import Imports, is_imported
from benchmark.imported_weights import imported_trunk
from benchmark.layout import cell_folder
from benchmark.pretrain import BACKBONE
from benchmark.readers import read
from benchmark.stage import CellContext, StageResult
from benchmark.transforms import normalise
from leaderboard.record import PREDICTIONS_NAME, Metric
from methods import build_method
from methods.trunk import compile_each
from protocols.errors import HarnessError
from protocols.files import sha256_of_file, write_atomically
from protocols.recipes import RowEvaluation
from protocols.schema import Data

EVALUATION_BATCH = 250
PIECE = 50  # images that come from a reading process at once, through shared memory: 30 MB at 224 x 224
MOST_LIKELY = 5
MOST_NAMED = 10


class Classification(nn.Module):
    """Cross-entropy of a classifier's logits, as the engine trains it.

    Labels are class numbers (B,) or shares of the classes (B, C); smoothing acts on either alike.
    """

    def __init__(self, classifier: nn.Module, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.classifier = classifier
        self.label_smoothing = label_smoothing

    def loss(self, batch: Batch) -> Tensor:
        """Mean over the images of this micro-batch."""
        logits = self.classifier(batch["inputs"]).float()
        return F.cross_entropy(logits, batch["labels"], label_smoothing=self.label_smoothing)

    def compile_blocks(self) -> None:
        """See benchmark/step_choices.py; a classifier without blocks stays as it is."""
        if isinstance(self.classifier, VisionTransformer):
            compile_each(self.classifier.blocks)

    def recompute_blocks(self) -> None:
        """See benchmark/step_choices.py; a classifier without blocks keeps all that it computes."""
        if isinstance(self.classifier, VisionTransformer):
            self.classifier.set_grad_checkpointing()

    def positions(self, batch: Batch) -> Tensor:
        """Images of this micro-batch."""
        return torch.tensor(len(batch["labels"]))


def backbone_of(context: CellContext) -> dict[str, Tensor]:
    """The row's trunk: the parent's export, kept weights from elsewhere, or the seed's initialisation.

    Every method of one seed starts from that same initialisation.
    """
    if context.cell.parents:
        parent = context.parent()
        folder = cell_folder(context.work_dir, context.protocol.name, parent.cell_id)
        return load_weights(folder / BACKBONE, digest=parent.artefacts[BACKBONE])
    if is_imported(context.cell.method):
        imports = Imports(work_dir=context.work_dir, protocol=context.protocol.name)
        return imported_trunk(imports, context.cell)
    assert context.cell.method is not None
    trunk = context.trunk(drop_path=0.0)
    # The codebook belongs to a head that is not exported; any size gives the same trunk.
    method = build_method(context.cell.method, trunk=trunk, codebook_size=2, seed=context.seed)
    return method.export_backbone()


@torch.inference_mode()
def predict(
    classify: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    *,
    device: str,
    image_ids: Sequence[str],
) -> npt.NDArray[np.int64]:
    """The most likely class of every input, int64 (n,): each once, in order, none padded or dropped.

    HarnessError for logits that are not finite, naming the images.
    """
    predicted, finite = [], []
    for batch in batches:
        logits = classify(batch.to(device))
        finite.append(is_finite(logits))
        predicted.append(logits.argmax(dim=1).cpu())
    check_images(torch.cat(finite), image_ids, what="logits")
    return torch.cat(predicted).numpy()


@torch.inference_mode()
def most_likely_classes(
    classify: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    *,
    device: str,
    image_ids: Sequence[str],
) -> npt.NDArray[np.int64]:
    """The five most likely classes of every input, the likeliest first: int64 (n, 5).

    All of them where there are fewer than five. Of equal logits the class with the lower number comes first.
    HarnessError for logits that are not finite, naming the images.
    """
    ordered, finite = [], []
    for batch in batches:
        logits = classify(batch.to(device)).float().cpu()
        finite.append(is_finite(logits))
        ordered.append(logits.sort(dim=1, descending=True, stable=True).indices[:, :MOST_LIKELY])
    check_images(torch.cat(finite), image_ids, what="logits")
    return torch.cat(ordered).numpy()


def is_finite(rows: Tensor) -> Tensor:
    """(n, ...) -> bool (n,) on the CPU: whether all numbers of a row are finite."""
    return rows.isfinite().flatten(start_dim=1).all(dim=1).cpu()


def check_images(finite: Tensor, image_ids: Sequence[str], *, what: str) -> None:
    """HarnessError unless `finite` (n,) says of each image's `what` that it is finite, and of no others."""
    if len(finite) != len(image_ids):
        raise HarnessError(f"{what} of {len(finite)} images were computed, and there are {len(image_ids)}")
    bad = [image_ids[position] for position in (~finite).nonzero()[:, 0].tolist()]
    if bad:
        more = f" and {len(bad) - MOST_NAMED} more" if len(bad) > MOST_NAMED else ""
        raise HarnessError(
            f"the {what} of {len(bad)} of {len(image_ids)} images are not finite numbers: "
            f"{', '.join(bad[:MOST_NAMED])}{more}; nothing was measured: look at these images, or, if it is "
            "all of them, at the weights' training (metrics.jsonl of the cell that they come from)"
        )


def evaluation_batches(
    images: ImagePart, recipe: RowEvaluation, data: Data, *, batch: int = EVALUATION_BATCH, workers: int = 0
) -> Iterator[Tensor]:
    """All images, in order, as (B, 3, S, S), the last shorter, read in `workers` further processes.

    Nothing is random: the recipe's centre crop, or else the shared square. With no further process a batch
    is read when it is asked for. DamagedImage for the first that cannot be read.
    """
    spans = [range(start, min(start + batch, len(images))) for start in range(0, len(images), batch)]
    pieces = [span[start : start + PIECE] for span in spans for start in range(0, len(span), PIECE)]
    workers = min(workers, len(pieces))
    reads = read(_EvaluationImages(images, recipe, data, pieces), order=range(len(pieces)), workers=workers)
    for span in spans:
        found = list(islice(reads, -(-len(span) // PIECE)))
        for one in found:
            if isinstance(one, HarnessError):
                raise one
        whole = torch.cat([one for one in found if isinstance(one, Tensor)])
        is_square = recipe.evaluation_crop_fraction is None
        yield normalise(whole, data.mean, data.std) if is_square else whole


class _EvaluationImages(Dataset[Tensor | HarnessError]):
    """Item = the images of one piece: the squares, uint8, or the normalised crops; or why there are none."""

    def __init__(
        self, images: ImagePart, recipe: RowEvaluation, data: Data, pieces: Sequence[Sequence[int]]
    ) -> None:
        self.images, self.data, self.pieces = images, data, pieces
        self.crop = centre_crop(recipe, data) if recipe.evaluation_crop_fraction is not None else None

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> Tensor | HarnessError:
        chosen = self.pieces[index]
        try:
            if self.crop is None:
                return torch.from_numpy(self.images.squares(chosen, self.data.image_size))
            return torch.stack([self.crop(self.images.image(one).convert("RGB")) for one in chosen])
        except HarnessError as error:
            return error  # raised there, it would come back as another error, with this process's traceback


def evaluation_result(
    context: CellContext,
    training: TrainingResult,
    images: ImagePart,
    predicted: npt.NDArray[np.int64],
    *,
    most_likely: npt.NDArray[np.int64] | None = None,
) -> StageResult:
    """What an evaluation gives back: its predictions kept, its cost that of the training alone."""
    metrics, artefacts = write_predictions(context.folder, images, predicted, most_likely=most_likely)
    return StageResult(
        metrics=metrics,
        data=images,
        seconds=training.seconds,
        images_seen=training.images_seen,
        train_flops=context.cell.train_flops,
        artefacts=artefacts,
    )


def write_predictions(
    folder: Path,
    images: ImagePart,
    predicted: npt.NDArray[np.int64],
    *,
    most_likely: npt.NDArray[np.int64] | None = None,
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Keep every image's prediction (n,); returns the metrics and the artefact's digest.

    With `most_likely` (n, 5) the share of images whose label is among the five is measured too; with
    fewer classes than five there is no such figure.
    """
    rows: dict[str, Any] = {
        "image_ids": np.array(images.image_ids),
        "labels": images.labels,
        "predicted": predicted,
    }
    if most_likely is not None:
        rows["most_likely"] = most_likely
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **rows)
    write_atomically(folder / PREDICTIONS_NAME, buffer.getvalue())
    correct = float(np.mean(predicted == images.labels))
    metrics = {"top1_percent": Metric(value=100 * correct, n=len(images), unit="%")}
    if most_likely is not None and most_likely.shape[1] == MOST_LIKELY:
        among = float(np.mean((most_likely == images.labels[:, None]).any(axis=1)))
        metrics["top5_percent"] = Metric(value=100 * among, n=len(images), unit="%")
    return metrics, {PREDICTIONS_NAME: sha256_of_file(folder / PREDICTIONS_NAME)}
