"""k-means tokenizers: a frozen feature extractor, and the nearest of K centroids as the token.

The clustering is plain faiss Kmeans as the paper's k-CLIP uses it (random initial points, Euclidean,
not spherical); tokens are L2 nearest neighbours. Pixels are whitened first, learned features are not.

Shapes: M feature vectors, D their width, R the whitened width, K centroids, B images, N patches each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

# torch has to come before faiss: in the other order their OpenMP runtimes clash.
import torch  # isort: skip
import faiss  # isort: skip
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from protocols.errors import HarnessError
from tokenizers.base import Tokenizer
from tokenizers.features import FeatureExtractor, PixelPatches, TimmFeatures, packaged_weights
from tokenizers.sampling import Features, FeatureSample, FeatureSpool
from tokenizers.specs import TokenizerSpec

_ROWS = 4096
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
    ) -> KMeans:
        """Cluster `features` (M, D) float32; whitened first unless `whitening_epsilon` is None.

        On GPUs if `gpu` and faiss finds any. HarnessError for a NaN, or fewer features than centroids.
        """
        if len(features) < codebook_size:
            raise HarnessError(
                f"{len(features)} patches cannot make {codebook_size} centroids; give more images, "
                "or set a smaller codebook_size"
            )
        if not torch.isfinite(features).all():
            raise HarnessError("the features to cluster hold NaN or infinity; look at the images")
        whitening = None
        if whitening_epsilon is not None:
            whitening = Whitening.fit(features, epsilon=whitening_epsilon)
            features = whitening.apply(features)
        points = np.ascontiguousarray(features.cpu().numpy(), dtype=np.float32)
        faiss.omp_set_num_threads(torch.get_num_threads())
        clustering = faiss.Kmeans(
            points.shape[1],
            codebook_size,
            niter=iterations,
            nredo=restarts,
            max_points_per_centroid=max_points_per_centroid,
            min_points_per_centroid=1,  # only silences a warning; too few points are refused above
            seed=seed,
            spherical=False,
            gpu=gpu and faiss.get_num_gpus() > 0,
        )
        clustering.train(points)
        return cls(torch.from_numpy(np.array(clustering.centroids)), whitening)

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

        Computed in float64, so that neither cancellation nor the size of a batch moves an id.
        HarnessError for features of another width.
        """
        features = torch.as_tensor(features)
        if features.ndim == 0 or features.shape[-1] != self.width:
            raise HarnessError(f"features must be (..., {self.width}), got {tuple(features.shape)}")
        centroids_DK = self.centroids.to(features.device, torch.float64).T
        half_squares_K = centroids_DK.square().sum(0) / 2
        ids = []
        for rows in features.reshape(-1, self.width).split(_ROWS):
            points = rows.double() if self.whitening is None else self.whitening.apply(rows)
            # |x - c|^2 / 2 less |x|^2 / 2, which is the same for every centroid.
            ids.append(torch.addmm(half_squares_K, points, centroids_DK, alpha=-1).argmin(1))
        return self._lowest_equal.to(features.device)[torch.cat(ids)].reshape(features.shape[:-1])

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


class KMeansTokenizer(Tokenizer):
    """Any feature extractor with a k-means codebook; a subclass chooses the extractor."""

    whitening_epsilon: float | None = None
    _on_gpu = False

    def __init__(
        self, spec: TokenizerSpec, config: Mapping[str, Any], *, extractor: FeatureExtractor
    ) -> None:
        super().__init__(spec, config)
        self.extractor = extractor
        self.image_size, self.grid = extractor.image_size, extractor.grid
        self.codebook_size = self.config["codebook_size"]
        self._codebook: KMeans | None = None

    @property
    def is_fitted(self) -> bool:
        """True once fitted, loaded, or given centroids."""
        return self._codebook is not None

    @property
    def codebook(self) -> KMeans:
        """The fitted codebook. HarnessError if there is none yet."""
        if self._codebook is None:
            raise HarnessError(
                f"tokenizer {self.name} is not fitted: call fit(images), load(folder) or load_centroids(path)"
            )
        return self._codebook

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> (B, N) int64, row-major. HarnessError if not fitted."""
        codebook = self.codebook
        return codebook.assign(self._features(images))

    def assign(self, features: Tensor | NDArray[Any]) -> Tensor:
        """Features (..., D) of the extractor -> ids (...). HarnessError if not fitted."""
        return self.codebook.assign(features)

    def fit(self, images: Iterable[Tensor]) -> None:
        """Fit the centroids on batches (B, 3, S, S), replacing an earlier fit.

        At most codebook_size x max_points_per_centroid patches are used, a sample over all images that
        depends on the seed and on the images' order, not on the batches.
        """
        self._fit_on(self._features(batch).numpy() for batch in images)

    def fit_encode(self, images: Iterable[Tensor], *, scratch: Path | None = None) -> Iterator[Tensor]:
        """Fit on `images` at once, then their tokens batch by batch; the extractor runs once per image.

        The features wait in a temporary file in `scratch`: 4 x images x N x D bytes.
        """
        spool = FeatureSpool(scratch)

        def kept() -> Iterator[Features]:
            for batch in images:
                features = self._features(batch).numpy()
                spool.append(features)
                yield features

        self._fit_on(kept())
        codebook = self.codebook
        return (codebook.assign(features) for features in spool.batches())

    def load_centroids(self, path: str | Path) -> None:
        """Use the centroids in `path` (see the function of that name). HarnessError if they do not fit."""
        self._take(load_centroids(path), origin=str(path))

    def to(self, device: torch.device | str) -> KMeansTokenizer:
        """Run feature network and clustering on `device`; features and tokens come back to the CPU."""
        self.extractor.to(device)
        self._on_gpu = torch.device(device).type == "cuda"
        return self

    def weights(self) -> dict[str, Tensor]:
        """The codebook's tensors. HarnessError if not fitted."""
        return self.codebook.tensors()

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take a codebook's tensors. HarnessError if they are not one, or not of this size."""
        self._take(KMeans.from_tensors(weights), origin="the weights given")

    def frozen_weights_digest(self) -> str | None:
        """SHA-256 of the feature network's weights file, None for pixels."""
        return self.extractor.weights_digest

    def _features(self, images: Tensor) -> Tensor:
        self.check_images(images)
        return self.extractor.features(images)

    def _fit_on(self, features: Iterable[Features]) -> None:
        config = self.config
        limit = config["codebook_size"] * config["max_points_per_centroid"]
        sample = FeatureSample(limit=limit, seed=config["seed"])
        for features_BND in features:
            sample.add(features_BND.reshape(-1, self.extractor.width))
        self._codebook = KMeans.fit(
            torch.from_numpy(sample.rows()),
            codebook_size=config["codebook_size"],
            iterations=config["iterations"],
            restarts=config["restarts"],
            max_points_per_centroid=config["max_points_per_centroid"],
            seed=config["seed"],
            whitening_epsilon=self.whitening_epsilon,
            gpu=self._on_gpu,
        )

    def _take(self, codebook: KMeans, *, origin: str) -> None:
        found, wanted = (codebook.codebook_size, codebook.width), (self.codebook_size, self.extractor.width)
        if found != wanted:
            raise HarnessError(
                f"{origin}: {found[0]} centroids for features of width {found[1]}, but tokenizer {self.name} "
                f"is configured for {wanted[0]} and its features have width {wanted[1]}"
            )
        self._codebook = codebook


class PixelKMeans(KMeansTokenizer):
    """k-pixel: whitened raw patches. Needs no network and no labels."""

    def __init__(self, spec: TokenizerSpec, config: Mapping[str, Any]) -> None:
        extractor = PixelPatches(patch_size=config["patch_size"], image_size=config["image_size"])
        super().__init__(spec, config, extractor=extractor)
        self.whitening_epsilon = config["whitening_epsilon"]


class FeatureKMeans(KMeansTokenizer):
    """k-feature: the stride-16 map of a frozen timm network, not normalised, as k-CLIP takes CLIP's."""

    def __init__(self, spec: TokenizerSpec, config: Mapping[str, Any]) -> None:
        model = config["model"]
        weights = packaged_weights(model)
        extractor = TimmFeatures(model=model, image_size=config["image_size"], weights=weights)
        super().__init__(spec, config, extractor=extractor)
