"""k-means by faiss, one iteration at a time, so that there is news of a fit that takes hours.

The result is that of faiss.Kmeans with the same settings, bit for bit (but with max_points_per_centroid 1 and
more points than K, where faiss takes the first K of them as they are): random initial points, Euclidean, not
spherical; the restart with the lowest last objective is kept. Its loop is repeated here around single
iterations, whose only state is the centroids: empty clusters are split by a generator that faiss starts
anew each time, and restart r draws its initial points by the seed + 1 + 15486557 r. A restart ends early
when an iteration's objective is exactly the one before.

Shapes: M points, D their width, K centroids.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# torch has to come before faiss: in the other order their OpenMP runtimes clash.
import torch  # isort: skip
import faiss  # isort: skip
import numpy as np
from numpy.typing import NDArray

_RESTART_STEP = 15486557  # of faiss' Clustering::train


@dataclass(frozen=True, kw_only=True)
class FitIteration:
    """One iteration of k-means has ended: the `iteration`-th (from 1) of restart `restart` (from 0).

    objective  sum of the squared distances of all points to their centroids before this iteration's update
    imbalance  K sum(n^2) / (sum n)^2 over the clusters' sizes n: 1 where all are of equal size
    splits     empty clusters that took half of another one
    """

    restart: int
    restarts: int
    iteration: int
    iterations: int
    objective: float
    seconds: float
    imbalance: float
    splits: int


Report = Callable[[FitIteration], None]


def cluster(
    points_MD: NDArray[np.float32] | NDArray[np.float16],
    *,
    codebook_size: int,
    iterations: int,
    restarts: int,
    max_points_per_centroid: int,
    seed: int,
    gpu: bool = False,
    report: Report | None = None,
) -> NDArray[np.float32]:
    """Finite points (M, D), M at least K -> centroids (K, D); on all GPUs if `gpu` and faiss finds any.

    Of more than K x max_points_per_centroid points, a copy of as many drawn ones is used. Float16 points
    are decoded block by block as they are read, so a memory-mapped array costs page cache and no copy.
    """
    width = points_MD.shape[1]
    faiss.omp_set_num_threads(torch.get_num_threads())
    index: Any = faiss.IndexFlatL2(width)
    if gpu and faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_all_gpus(index)
    limit = codebook_size * max_points_per_centroid
    points: NDArray[Any] = points_MD
    if len(points) > limit:
        points = points[_permutation(len(points), seed=seed)[:limit]]
    points = np.ascontiguousarray(points)
    best, lowest = None, np.inf
    for restart in range(restarts):
        drawn = _permutation(len(points), seed=seed + 1 + restart * _RESTART_STEP)[:codebook_size]
        # faiss takes this many points as they are, in their order.
        initial = points if len(points) == codebook_size else points[drawn]
        centroids, objective, previous = initial.astype(np.float32), np.inf, None
        for iteration in range(iterations):
            started = time.perf_counter()
            centroids, stats = _iterate(points, centroids, index)
            objective = stats.obj
            if report is not None:
                report(
                    FitIteration(
                        restart=restart,
                        restarts=restarts,
                        iteration=iteration + 1,
                        iterations=iterations,
                        objective=objective,
                        seconds=time.perf_counter() - started,
                        imbalance=stats.imbalance_factor,
                        splits=stats.nsplit,
                    )
                )
            if objective == previous:
                break
            previous = objective
        if objective < lowest:
            best, lowest = centroids, objective
    assert best is not None, "points are finite, so objectives are"
    return best


def _iterate(
    points_MD: NDArray[Any], centroids_KD: NDArray[np.float32], index: Any
) -> tuple[NDArray[np.float32], Any]:
    """Centroids after one iteration, and what faiss says of it."""
    codebook_size, width = centroids_KD.shape
    step: Any = faiss.Clustering(width, codebook_size)
    step.niter = step.nredo = 1
    # Sampled already; and too few points are the caller's to refuse, or a warning is printed.
    step.max_points_per_centroid = len(points_MD)
    step.min_points_per_centroid = 1
    # The caller vouches for finite points; looking again would read all of them once more.
    step.check_input_data_for_NaNs = False
    faiss.copy_array_to_vector(centroids_KD.ravel(), step.centroids)
    if points_MD.dtype == np.float16:
        codec = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16)
        step.train_encoded(points_MD.view(np.uint8), codec, index)
    else:
        step.train(points_MD, index)
    centroids = np.array(faiss.vector_float_to_array(step.centroids)).reshape(codebook_size, width)
    return centroids, step.iteration_stats.at(0)


def _permutation(count: int, *, seed: int) -> NDArray[np.int32]:
    """faiss' own random order of `count` points."""
    order = np.empty(count, dtype=np.int32)
    native: Any = faiss
    native.rand_perm(faiss.swig_ptr(order), count, seed)
    return order
