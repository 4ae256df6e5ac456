"""The k-means codebook: K centroids, perhaps behind a whitening, and the nearest of them as the token.

Shapes: M feature vectors, D their width, R the whitened width, K centroids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from protocols.errors import HarnessError
from tokenizers.clustering import Report, cluster

_ROWS = 4096
_PRODUCTS = 2**25
# Relative to the largest variance; below it a direction holds rounding errors and no signal.
_NO_VARIANCE = 1e-10


@dataclass(frozen=True)
class Whitening:
    """Centring and PCA whitening: x -> (x - mean) @ projection. Float64; mean (D,), projection (D, R)."""

    mean: Tensor
    projection: Tensor

    @classmethod
    def fit(cls, features: Tensor, *, epsilon: float) -> Whitening:
        """From features (M, D): each principal direction is divided by sqrt(variance + epsilon).

        Directions without variance are dropped, so R may be less than D. HarnessError if none is left.
        """
        centred = features.double()
        mean = centred.mean(0)
        centred = centred - mean
        variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
        variances, directions = variances.flip(0), directions.flip(1)  # largest first
        kept = variances > max(_NO_VARIANCE * float(variances[0]), 0.0)
        if not kept.any():
            raise HarnessError("cannot whiten: all patches are the same; fit on images that differ")
        variances, directions = variances[kept], directions[:, kept]
        # An eigenvector's sign is arbitrary: here its entry of largest size is positive.
        peaks = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        return cls(mean, directions * peaks.sign() / (variances + epsilon).sqrt())

    def apply(self, features: Tensor) -> Tensor:
        """(M, D) -> (M, R) float64."""
        return (features.double() - self.mean.to(features.device)) @ self.projection.to(features.device)


class KMeans:
    """A codebook of K centroids, and the whitening that features pass before they are compared."""

    def __init__(self, centroids: Tensor, whitening: Whitening | None = None) -> None:
        """`centroids` (K, D), or (K, R) behind a whitening. HarnessError for another shape or a NaN."""
        if centroids.ndim != 2 or 0 in centroids.shape or not torch.isfinite(centroids).all():
            raise HarnessError(f"centroids must be finite numbers (K, D), got {tuple(centroids.shape)}")
        if whitening is not None:
            shapes = (tuple(whitening.mean.shape), tuple(whitening.projection.shape))
            if len(shapes[0]) != 1 or shapes[1] != (*shapes[0], centroids.shape[1]):
                raise HarnessError(f"whitening {shapes} does not fit centroids {tuple(centroids.shape)}")
        self.centroids = centroids.float().contiguous()
        self.whitening = whitening
        # Equal centroids are at equal distances only up to rounding: let the first stand for all.
        _, first, inverse = np.unique(
            self.centroids.cpu().numpy(), axis=0, return_index=True, return_inverse=True
        )
        self._lowest_equal = torch.from_numpy(first[inverse.reshape(-1)])

    @classmethod
    def fit(
        cls,
        features: Tensor,
        *,
        codebook_size: int,
        iterations: int,
        restarts: int,
        max_points_per_centroid: int,
        seed: int,
        whitening_epsilon: float | None = None,
        gpu: bool = False,
        report: Report | None = None,
    ) -> KMeans:
        """Cluster `features` (M, D) float32; whitened first unless `whitening_epsilon` is None.

        `report` is told of every iteration as it ends; on GPUs if `gpu` and faiss finds any. HarnessError
        for a NaN, or fewer features than centroids.
        """
        check_count(len(features), codebook_size=codebook_size)
        if not torch.isfinite(features).all():
            raise HarnessError("the features to cluster hold NaN or infinity; look at the images")
        whitening = None
        if whitening_epsilon is not None:
            whitening = Whitening.fit(features, epsilon=whitening_epsilon)
            features = whitening.apply(features)
        points = np.ascontiguousarray(features.cpu().numpy(), dtype=np.float32)
        centroids = cluster(
            points,
            codebook_size=codebook_size,
            iterations=iterations,
            restarts=restarts,
            max_points_per_centroid=max_points_per_centroid,
            seed=seed,
            gpu=gpu,
            report=report,
        )
        return cls(torch.from_numpy(centroids), whitening)

    @property
    def codebook_size(self) -> int:
        """K."""
        return len(self.centroids)

    @property
    def width(self) -> int:
        """D, the width of the features that `assign` takes."""
        return self.centroids.shape[1] if self.whitening is None else len(self.whitening.mean)

    def assign(self, features: Tensor | NDArray[Any]) -> Tensor:
        """Features (..., D) -> ids (...) int64 of the L2 nearest centroid; the lowest id on ties.

        Computed in float64, so that neither cancellation nor the size of a batch moves an id. Holds three
        arrays (K, D) or (rows, K) of float64, rows at most 4096 and rows x K at most 2^25: 0.9 GB for
        8192 centroids of width 4096. HarnessError for features of another width.
        """
        features = torch.as_tensor(features)
        if features.ndim == 0 or features.shape[-1] != self.width:
            raise HarnessError(f"features must be (..., {self.width}), got {tuple(features.shape)}")
        centroids_DK = self.centroids.to(features.device, torch.float64).T
        half_squares_K = centroids_DK.square().sum(0) / 2
        ids = []
        at_once = min(_ROWS, max(_PRODUCTS // self.codebook_size, 1))
        for rows in features.reshape(-1, self.width).split(at_once):
            points = rows.double() if self.whitening is None else self.whitening.apply(rows)
            # |x - c|^2 / 2 less |x|^2 / 2, which is the same for every centroid.
            ids.append(torch.addmm(half_squares_K, points, centroids_DK, alpha=-1).argmin(1))
        return self._lowest_equal.to(features.device)[torch.cat(ids)].reshape(features.shape[:-1])

    def distances(self, features: Tensor) -> Tensor:
        """Features (..., D) -> the L2 distance of each to its nearest centroid (...), float64.

        Behind the whitening, where there is one: as `assign` compares them.
        """
        nearest = self.assign(features)
        centroids_KD = self.centroids.to(features.device, torch.float64)
        distances = []
        rows = features.reshape(-1, self.width).split(_ROWS)
        for some, ids in zip(rows, nearest.reshape(-1).split(_ROWS), strict=True):
            points = some.double() if self.whitening is None else self.whitening.apply(some)
            distances.append((points - centroids_KD[ids]).norm(dim=1))
        return torch.cat(distances).reshape(nearest.shape)

    def tensors(self) -> dict[str, Tensor]:
        """What `from_tensors` takes: `centroids`, and with a whitening its mean and projection."""
        tensors = {"centroids": self.centroids}
        if self.whitening is not None:
            tensors["whitening_mean"] = self.whitening.mean.contiguous()
            tensors["whitening_projection"] = self.whitening.projection.contiguous()
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> KMeans:
        """The codebook that `tensors` describes. HarnessError for missing or unexpected names."""
        names = set(tensors)
        if names == {"centroids"}:
            return cls(tensors["centroids"])
        if names == {"centroids", "whitening_mean", "whitening_projection"}:
            mean, projection = tensors["whitening_mean"], tensors["whitening_projection"]
            return cls(tensors["centroids"], Whitening(mean.double(), projection.double()))
        raise HarnessError(
            f"a codebook holds `centroids` (K, D), or with whitening also `whitening_mean` and "
            f"`whitening_projection`; got {sorted(names)}"
        )


def check_count(patches: int, *, codebook_size: int) -> None:
    """HarnessError unless there are at least as many patches as centroids to make of them."""
    if patches < codebook_size:
        raise HarnessError(
            f"{patches} patches cannot make {codebook_size} centroids; give more images, "
            "or set a smaller codebook_size"
        )


def load_centroids(path: str | Path) -> KMeans:
    """The codebook in a .safetensors, .npz or .npy file: `centroids` (K, D), or the file's only array.

    A file saved by a k-means tokenizer brings its whitening along. Nothing is ever unpickled.
    Raises HarnessError for a missing, damaged or unsuitable file.
    """
    path = Path(path)
    if not path.is_file():
        raise HarnessError(f"{path}: no such file of centroids")
    try:
        tensors = _read_tensors(path)
    except (SafetensorError, BadZipFile, ValueError, EOFError) as error:
        raise HarnessError(f"{path}: cannot be read as {path.suffix or 'centroids'}: {error}") from None
    if len(tensors) == 1:
        tensors = {"centroids": next(iter(tensors.values()))}
    try:
        return KMeans.from_tensors(tensors)
    except HarnessError as error:
        raise HarnessError(f"{path}: {error}") from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    if path.suffix == ".npy":
        return {"centroids": torch.from_numpy(np.load(path, allow_pickle=False))}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    raise ValueError("centroids are read from .safetensors, .npz and .npy files")
