"""k-means tokenizers: a frozen feature extractor, and the nearest of K centroids as the token.

The clustering is plain faiss Kmeans as the paper's k-CLIP uses it (random initial points, Euclidean,
not spherical); tokens are L2 nearest neighbours. Pixels are whitened first, learned features are not.

Shapes: M feature vectors, D their width, R the whitened width, K centroids, B images, N patches each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocols.errors import HarnessError
from tokenizers.base import Tokenizer
from tokenizers.clustering import FitIteration, Report, cluster
from tokenizers.codebook import KMeans, Whitening, check_count, load_centroids
from tokenizers.features import FeatureExtractor, PixelPatches
from tokenizers.sampling import Features, FeatureSample, FeatureSpool
from tokenizers.specs import TokenizerSpec

__all__ = ["FitIteration", "KMeans", "KMeansTokenizer", "PixelKMeans", "Whitening", "load_centroids"]

_ROWS_AT_ONCE = 2**14


class KMeansTokenizer(Tokenizer):
    """Any feature extractor with a k-means codebook; a subclass chooses the extractor."""

    whitening_epsilon: float | None = None
    _device = torch.device("cpu")

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
        """True once fitted, loaded, or given centroids, and the network's weights are there."""
        return self._codebook is not None and not self.needs_weights

    @property
    def needs_weights(self) -> bool:
        """True until the feature network's file of weights is loaded, where it has one."""
        return self.extractor.needs_weights

    def load_published(self, source: Path, *, accept_unknown: bool = False) -> None:
        """Load the feature network's weights from the folder or file `source`, as the base class says."""
        if self.extractor.needs_weights or self.extractor.weights_digest is not None:
            try:
                self.extractor.load_published(source, accept_unknown=accept_unknown)
            except HarnessError as error:
                raise HarnessError(f"tokenizer {self.name}: {error}") from None
        else:
            super().load_published(source, accept_unknown=accept_unknown)

    @property
    def sampled_features(self) -> int | None:
        """How many features `fit_features` is to get; None where `fit` samples in memory."""
        sampled: int | None = self.config.get("sampled_features")
        return sampled

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
        return codebook.assign(self.extract(images).to(self._device)).cpu()

    def extract(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> features (B, N, D) float32 on the CPU."""
        self.check_images(images)
        return self.extractor.features(images)

    def assign(self, features: Tensor | NDArray[Any]) -> Tensor:
        """Features (..., D) of the extractor -> ids (...). HarnessError if not fitted."""
        return self.codebook.assign(features)

    def codebook_rows(self) -> Tensor:
        """The centroids (K, D), or (K, R) behind the whitening. HarnessError if not fitted."""
        return self.codebook.centroids.cpu()

    def distances(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N) float64: of each patch to its centroid. HarnessError if not fitted."""
        codebook = self.codebook
        return codebook.distances(self.extract(images).to(self._device)).cpu()

    def fit(self, images: Iterable[Tensor], *, report: Report | None = None) -> None:
        """Fit the centroids on batches (B, 3, S, S), replacing an earlier fit.

        At most `sampled_features`, else codebook_size x max_points_per_centroid patches are used, a sample
        in memory over all images that depends on the seed and on the images' order, not on the batches.
        """
        self._fit_on((self.extract(batch).numpy() for batch in images), report=report)

    def fit_features(self, features_MD: NDArray[np.float16], *, report: Report | None = None) -> None:
        """Fit the centroids on features of the extractor (M, D) in float16, replacing an earlier fit.

        For a memory-mapped file of any size: it is read through the page cache and never copied, unless it
        holds more than codebook_size x max_points_per_centroid rows, of which as many are drawn and copied.
        Memory holds a block of 32768 decoded rows (131072 D bytes), at most four codebooks (16 K D) and 16
        bytes a row: 1.2 GB for the paper's 4,194,304 x 4096 and 8192 centroids. HarnessError for features of
        another type or width, too few, or not finite.
        """
        wanted = (self.extractor.width, np.dtype(np.float16))
        if features_MD.ndim != 2 or (features_MD.shape[1], features_MD.dtype) != wanted:
            raise HarnessError(
                f"tokenizer {self.name} is fitted on features (M, {wanted[0]}) {wanted[1]}, got "
                f"{features_MD.shape} {features_MD.dtype}"
            )
        if self.whitening_epsilon is not None:
            raise HarnessError(
                f"tokenizer {self.name} whitens features, which a file of them is not: use fit"
            )
        config = self.config
        check_count(len(features_MD), codebook_size=self.codebook_size)
        for start in range(0, len(features_MD), _ROWS_AT_ONCE):
            if not np.isfinite(features_MD[start : start + _ROWS_AT_ONCE]).all():
                raise HarnessError("the features to cluster hold NaN or infinity; look at the images")
        centroids = cluster(
            features_MD,
            codebook_size=config["codebook_size"],
            iterations=config["iterations"],
            restarts=config["restarts"],
            max_points_per_centroid=config["max_points_per_centroid"],
            seed=config["seed"],
            gpu=self._device.type == "cuda",
            report=report,
        )
        self._codebook = KMeans(torch.from_numpy(centroids))

    def fit_encode(
        self, images: Iterable[Tensor], *, scratch: Path | None = None, report: Report | None = None
    ) -> Iterator[Tensor]:
        """Fit on `images` at once, then their tokens batch by batch; the extractor runs once per image.

        The features wait in a temporary file in `scratch`: 4 x images x N x D bytes.
        """
        spool = FeatureSpool(scratch)

        def kept() -> Iterator[Features]:
            for batch in images:
                features = self.extract(batch).numpy()
                spool.append(features)
                yield features

        self._fit_on(kept(), report=report)
        codebook = self.codebook
        return (
            codebook.assign(torch.from_numpy(features).to(self._device)).cpu() for features in spool.batches()
        )

    def load_centroids(self, path: str | Path) -> None:
        """Use the centroids in `path` (see the function of that name). HarnessError if they do not fit."""
        self._take(load_centroids(path), origin=str(path))

    def to(self, device: torch.device | str) -> KMeansTokenizer:
        """Run feature network, clustering and comparison on `device`; tokens come back to the CPU."""
        self.extractor.to(device)
        self._device = torch.device(device)
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

    def _fit_on(self, features: Iterable[Features], *, report: Report | None) -> None:
        config = self.config
        limit = self.sampled_features or config["codebook_size"] * config["max_points_per_centroid"]
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
            gpu=self._device.type == "cuda",
            report=report,
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
