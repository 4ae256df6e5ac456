"""Stage `knn`: classes by the nearest labelled images, in the frozen trunk's features. Nothing is trained.

Weighted votes as in Wu et al. (arXiv 1805.01978, section 3.4), over the features that a linear probe without
augmentation sees. The search is exact. Cosines are sums in float64, rounded to float32: which images are
nearest then depends neither on how the search is cut into pieces nor on the device, but for cosines that lie
within 1e-15 of where the rounding changes. Of equal cosines the earlier labelled image counts as nearer, of
equal votes the class with the lower number wins.

Q evaluated images, M labelled ones, D width, K neighbours, C classes.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.classification import write_predictions
from benchmark.probe import finite_features, frozen_trunk, whitened
from benchmark.process_group import ShareDone, process_rank
from benchmark.stage import CellContext, StageResult
from protocols.recipes import NearestNeighbours

QUERIES, KEYS = 256, 16384  # what is compared at once: 34 MB of cosines in float64
_MAGNITUDE, _LOW = 0x7FFFFFFF, 0xFFFFFFFF


def run(context: CellContext) -> StageResult:
    """Predict every evaluated image once. Of several processes the first one does it alone."""
    if process_rank():
        raise ShareDone
    started, protocol = time.perf_counter(), context.protocol
    recipe = protocol.evaluation(context.cell.evaluation or "", context.cell.trunk)
    assert isinstance(recipe, NearestNeighbours)
    labelled = context.images("training").first(recipe.labelled_images)
    evaluated = context.images(recipe.evaluated_part)
    frozen = frozen_trunk(context, features=recipe.features)
    keys = finite_features(labelled, frozen, recipe, context)
    queries = finite_features(evaluated, frozen, recipe, context)
    if recipe.whiten:
        keys, queries = whitened(keys, queries)
    cosines, positions = nearest(
        unit(queries), unit(keys), neighbours=recipe.neighbours, device=context.runtime.device
    )
    predicted = vote(
        cosines,
        torch.from_numpy(labelled.labels)[positions],
        classes=len(labelled.classes),
        temperature=recipe.temperature,
    )
    metrics, artefacts = write_predictions(context.folder, evaluated, predicted)
    return StageResult(
        metrics=metrics,
        data=evaluated,
        seconds=time.perf_counter() - started,
        images_seen=len(labelled) + len(evaluated),
        train_flops=context.cell.train_flops,
        artefacts=artefacts,
    )


def unit(features: Tensor) -> Tensor:
    """(n, D) at length 1. FloatingPointError for features that are not finite: they are near to nothing."""
    if not torch.isfinite(features).all():
        raise FloatingPointError("some features of the frozen trunk are not finite")
    return F.normalize(features, dim=1)


def nearest(
    queries: Tensor,
    keys: Tensor,
    *,
    neighbours: int,
    device: str,
    queries_at_once: int = QUERIES,
    keys_at_once: int = KEYS,
) -> tuple[Tensor, Tensor]:
    """The nearest keys (M, D) of each query (Q, D), the nearest first, all of length 1 and on the CPU.

    Returns cosines, float32 (Q, K), and positions among the keys, int64 (Q, K).
    """
    best = torch.empty((len(queries), 0), dtype=torch.int64)
    for start in range(0, len(keys), keys_at_once):
        chunk = keys[start : start + keys_at_once].to(device, torch.float64)
        positions = torch.arange(start, start + len(chunk), device=device)
        merged = []
        for rows, found in zip(queries.split(queries_at_once), best.split(queries_at_once), strict=True):
            cosines = (rows.to(device, torch.float64) @ chunk.T).float()
            ranks = torch.cat([found.to(device), _ranks(cosines, positions)], dim=1)
            merged.append(ranks.topk(min(neighbours, ranks.shape[1]), dim=1).values.cpu())
        best = torch.cat(merged)
    return _cosines(best), _LOW - (best & _LOW)


def vote(cosines: Tensor, labels: Tensor, *, classes: int, temperature: float) -> npt.NDArray[np.int64]:
    """The class of each query, int64 (Q,), from its neighbours' cosines and labels (Q, K), nearest first."""
    # A factor common to all votes of a query changes nothing, and keeps the largest at 1.
    weights = ((cosines - cosines[:, :1]).double() / temperature).exp()
    predicted = []
    for rows, voted in zip(weights.split(QUERIES), labels.split(QUERIES), strict=True):
        votes = torch.zeros(len(rows), classes, dtype=torch.float64).scatter_add_(1, voted, rows)  # (Q, C)
        predicted.append(votes.numpy().argmax(axis=1))  # numpy's is the first of equal ones
    return np.concatenate(predicted).astype(np.int64)


def _ranks(cosines: Tensor, positions: Tensor) -> Tensor:
    """Cosines (Q, M) and positions (M,) -> int64 (Q, M), no two of a row equal, in the order of nearness.

    Above, the cosine's bits as an integer that grows with it; below, 32 bits that fall with the position.
    """
    bits = (cosines + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0
    ordered = torch.where(bits < 0, bits ^ _MAGNITUDE, bits).long()
    return (ordered << 32) + (_LOW - positions)


def _cosines(ranks: Tensor) -> Tensor:
    """The cosines, float32, that `_ranks` was given."""
    ordered = (ranks >> 32).int()
    return torch.where(ordered < 0, ordered ^ _MAGNITUDE, ordered).view(torch.float32)
