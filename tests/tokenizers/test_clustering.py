"""Clustering in single iterations is faiss.Kmeans, from memory and from a float16 map, with live news."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# torch comes first: see tokenizers/clustering.py.
import faiss  # isort: skip
from numpy.typing import NDArray

from protocols.errors import HarnessError
from tokenizers import build_tokenizer
from tokenizers.clustering import FitIteration, cluster
from tokenizers.kmeans import KMeansTokenizer

WIDTH = 48
SETTINGS = {"codebook_size": 30, "iterations": 5, "restarts": 4, "max_points_per_centroid": 100, "seed": 1234}


def points(count: int, *, seed: int = 0) -> NDArray[np.float16]:
    drawn = np.random.default_rng(seed).standard_normal((count, WIDTH))
    return (drawn * 3).astype(np.float16)


def by_faiss(features: NDArray[Any], **changes: int) -> Any:
    settings = SETTINGS | changes
    kmeans = faiss.Kmeans(
        features.shape[1],
        settings["codebook_size"],
        niter=settings["iterations"],
        nredo=settings["restarts"],
        max_points_per_centroid=settings["max_points_per_centroid"],
        min_points_per_centroid=1,
        seed=settings["seed"],
        spherical=False,
    )
    kmeans.train(features.astype(np.float32))
    return kmeans


def on_disk(folder: Path, features: NDArray[np.float16]) -> Any:
    np.save(folder / "features.npy", features)
    return np.load(folder / "features.npy", mmap_mode="r")


def tokenizer(**changes: int) -> KMeansTokenizer:
    built = build_tokenizer("k-pixel", image_size=8, patch_size=4, **(SETTINGS | changes))
    assert isinstance(built, KMeansTokenizer)
    built.whitening_epsilon = None  # as the tokenizers of learned features
    return built


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("seed", [0, 1234, 2**31 - 1])
@pytest.mark.parametrize("count", [31, 2500, 8000])  # barely more than centroids; as many as used; more
def test_centroids_and_objectives_are_those_of_faiss(count: int, seed: int, kind: Any) -> None:
    features, news = points(count), list[FitIteration]()
    found = cluster(features.astype(kind), **(SETTINGS | {"seed": seed}), report=news.append)
    expected = by_faiss(features, seed=seed)
    np.testing.assert_array_equal(found, expected.centroids)
    assert [one.restart for one in news if one.iteration == 1] == [0, 1, 2, 3]
    # faiss keeps what led up to the best restart, and forgets the later ones.
    kept = news[: len(expected.iteration_stats)]
    assert [(one.objective, one.imbalance, one.splits) for one in kept] == [
        (stats["obj"], stats["imbalance_factor"], stats["nsplit"]) for stats in expected.iteration_stats
    ]
    last = {one.restart: one.objective for one in news}
    assert last[kept[-1].restart] == min(last.values())


@pytest.mark.parametrize("seed", range(8))
def test_empty_clusters_and_early_ends_are_those_of_faiss(seed: int) -> None:
    """Few distinct points: clusters are split, objectives rise at times, and restarts end early."""
    drawn = np.random.default_rng(seed)
    noise = (drawn.random((200, 1)) < 0.3) * drawn.standard_normal((200, 4)) * 0.1
    features = (drawn.standard_normal((12, 4))[drawn.integers(0, 12, 200)] + noise).astype(np.float16)
    settings = {"codebook_size": 40, "iterations": 12, "seed": seed}
    news: list[FitIteration] = []
    found = cluster(features, **(SETTINGS | settings), report=news.append)
    expected = by_faiss(features, **settings)
    np.testing.assert_array_equal(found, expected.centroids)
    assert [(one.objective, one.splits) for one in news[: len(expected.obj)]] == [
        (stats["obj"], stats["nsplit"]) for stats in expected.iteration_stats
    ]
    assert len(news) < 4 * 12
    assert sum(one.splits for one in news) > 0


def test_as_many_points_as_centroids_are_taken_as_they_are() -> None:
    features = points(30)
    np.testing.assert_array_equal(cluster(features, **SETTINGS), by_faiss(features).centroids)
    np.testing.assert_array_equal(cluster(features, **SETTINGS), features)


def test_news_comes_while_it_runs() -> None:
    class Enough(Exception):
        pass

    seen: list[FitIteration] = []

    def third(news: FitIteration) -> None:
        seen.append(news)
        if len(seen) == 3:
            raise Enough

    with pytest.raises(Enough):
        cluster(points(2000), **SETTINGS, report=third)
    assert (seen[-1].iteration, seen[-1].iterations, seen[-1].restarts) == (3, 5, 4)
    assert all(one.seconds > 0 for one in seen)


def test_the_best_restart_is_kept_wherever_it_comes() -> None:
    best = set()
    for seed in range(6):
        news: list[FitIteration] = []
        cluster(points(900, seed=seed), **(SETTINGS | {"seed": seed}), report=news.append)
        last = [one.objective for one in news if one.iteration == 5]
        best.add(last.index(min(last)))
    assert len(best) > 1, "the cases above must not all end with the same restart"


def test_a_map_gives_the_tokenizer_its_centroids(tmp_path: Path) -> None:
    features, news = points(2500), list[FitIteration]()
    built = tokenizer()
    built.fit_features(on_disk(tmp_path, features), report=news.append)
    np.testing.assert_array_equal(built.codebook.centroids.numpy(), by_faiss(features).centroids)
    assert len(news) == 20
    again = tokenizer()
    again.fit_features(on_disk(tmp_path, features))
    assert again.digest == built.digest


def test_a_fit_in_memory_reports_too() -> None:
    images = torch.rand(300, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    news: list[FitIteration] = []
    first, second = tokenizer(), tokenizer()
    first.fit(images.split(64), report=news.append)
    tokens = torch.cat(list(second.fit_encode(images.split(50), report=news.append)))
    assert len(news) == 40
    assert [(one.restart, one.objective) for one in news[:20]] == [
        (one.restart, one.objective) for one in news[20:]
    ]
    assert torch.equal(tokens, first.encode(images))


def test_unsuitable_maps_are_refused() -> None:
    built, features = tokenizer(), points(2500)
    for wrong in (features.astype(np.float32), features[:, :-1], features[0]):
        with pytest.raises(HarnessError, match=r"fitted on features \(M, 48\) float16, got"):
            built.fit_features(wrong)
    with pytest.raises(HarnessError, match="29 patches cannot make 30 centroids"):
        built.fit_features(features[:29])
    features[-1, -1] = np.inf
    with pytest.raises(HarnessError, match="hold NaN or infinity"):
        built.fit_features(features)
    built.whitening_epsilon = 0.1
    with pytest.raises(HarnessError, match="whitens features"):
        built.fit_features(points(2500))
    assert not built.is_fitted
