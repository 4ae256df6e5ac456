"""The k-means codebook: assignment against the golden ids, whitening, clustering, files of centroids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from protocols.errors import HarnessError
from tokenizers.kmeans import KMeans, Whitening, load_centroids
from tokenizers.sampling import FeatureSample, FeatureSpool

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "kclip_assign_tiny.npz")
CENTROIDS = GOLDEN["in.centroids"]
OPTIONS = {"codebook_size": 8, "iterations": 5, "restarts": 1, "max_points_per_centroid": 256}


def points(count: int = 2000, width: int = 6) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(3))


def test_ids_are_the_golden_l2_ids() -> None:
    codebook = KMeans(torch.from_numpy(CENTROIDS))
    ids = codebook.assign(GOLDEN["in.features_BxNxC"])
    assert ids.dtype == torch.int64
    np.testing.assert_array_equal(ids.numpy(), GOLDEN["out.ids_L2"])
    assert (ids.numpy() != GOLDEN["wrong.ids_cosine"]).any()
    assert (ids.numpy() != GOLDEN["wrong.ids_inner_product"]).any()


def test_ties_go_to_the_lowest_id() -> None:
    one = points(1, 37)
    others = points(300, 37) + 9
    centroids = torch.cat([others[:5], one, others[5:], one, one])
    assert KMeans(centroids).assign(one).tolist() == [5]
    line = KMeans(torch.tensor([[2.0], [-2.0], [2.0]]))
    assert line.assign(torch.tensor([[0.0], [-1.0], [1.0]])).tolist() == [0, 1, 0]


def test_a_large_offset_does_not_cancel() -> None:
    centroids = torch.tensor([[1000.0, 0.0], [1000.0, 0.01]])
    features = torch.tensor([[1000.0, 0.004], [1000.0, 0.006]])
    assert KMeans(centroids).assign(features).tolist() == [0, 1]


def test_whitening_gives_the_identity_covariance() -> None:
    mixed = points(5000, 6) @ points(6, 6) + 3
    white = Whitening.fit(mixed, epsilon=0.0).apply(mixed)
    torch.testing.assert_close(white.mean(0), torch.zeros(6).double(), atol=1e-9, rtol=0)
    covariance = white.T @ white / len(white)
    torch.testing.assert_close(covariance, torch.eye(6).double(), atol=1e-8, rtol=0)


def test_whitening_drops_directions_without_variance() -> None:
    grey = points(500, 4)
    tripled = grey.repeat_interleave(3, dim=1)
    whitening = Whitening.fit(tripled, epsilon=0.0)
    assert whitening.projection.shape == (12, 4)
    peaks = whitening.projection.gather(0, whitening.projection.abs().argmax(0, keepdim=True))
    assert (peaks > 0).all()
    with pytest.raises(HarnessError, match="all patches are the same"):
        Whitening.fit(torch.ones(5, 4), epsilon=0.1)


def test_epsilon_shrinks_each_direction_as_stated() -> None:
    features = points(4000, 3) * torch.tensor([3.0, 1.0, 0.1])
    white = Whitening.fit(features, epsilon=0.5).apply(features)
    variances = torch.linalg.eigvalsh(torch.cov(features.double().T, correction=0)).flip(0)
    torch.testing.assert_close(white.var(0, correction=0), variances / (variances + 0.5))


def test_clustering_repeats_by_its_seed() -> None:
    first, again, other = (KMeans.fit(points(), seed=seed, **OPTIONS) for seed in (0, 0, 1))
    assert torch.equal(first.centroids, again.centroids)
    assert not torch.equal(first.centroids, other.centroids)
    assert (first.codebook_size, first.width) == (8, 6)


def test_clustering_finds_separate_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    features = (centres[:, None] + 0.1 * points(200, 2)).reshape(-1, 2)
    options = OPTIONS | {"codebook_size": 3, "restarts": 5}
    ids = KMeans.fit(features, seed=0, **options).assign(features).reshape(3, 200)
    assert (ids == ids[:, :1]).all()
    assert len(ids[:, 0].unique()) == 3


def test_clustering_refuses_what_it_cannot_cluster() -> None:
    with pytest.raises(HarnessError, match="7 patches cannot make 8 centroids"):
        KMeans.fit(points(7), seed=0, **OPTIONS)
    spoilt = points()
    spoilt[5, 1] = torch.nan
    with pytest.raises(HarnessError, match="NaN"):
        KMeans.fit(spoilt, seed=0, **OPTIONS)


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(HarnessError, match=r"\(\.\.\., 32\), got \(4, 31\)"):
        KMeans(torch.from_numpy(CENTROIDS)).assign(torch.zeros(4, 31))


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_centroids_load_from_each_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"centroids.{suffix}"
    if suffix == "npy":
        np.save(path, CENTROIDS)
    elif suffix == "npz":
        np.savez(path, centroids=CENTROIDS)
    else:
        save_file({"centroids": torch.from_numpy(CENTROIDS)}, path)
    ids = load_centroids(path).assign(GOLDEN["in.features_BxNxC"])
    np.testing.assert_array_equal(ids.numpy(), GOLDEN["out.ids_L2"])


def test_unsuitable_files_of_centroids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no such file"):
        load_centroids(tmp_path / "absent.npy")
    pickled = tmp_path / "pickled.npy"
    np.save(pickled, np.array([{"code": 1}], dtype=object), allow_pickle=True)
    for name, content in {"a.npz": b"no zip", "a.safetensors": b"?" * 40, "a.pkl": b"\x80\x04."}.items():
        (tmp_path / name).write_bytes(content)
    for name in ("pickled.npy", "a.npz", "a.safetensors", "a.pkl"):
        with pytest.raises(HarnessError, match=rf"{name}: cannot be read"):
            load_centroids(tmp_path / name)
    np.savez(tmp_path / "two.npz", a=CENTROIDS, b=CENTROIDS)
    with pytest.raises(HarnessError, match=r"got \['a', 'b'\]"):
        load_centroids(tmp_path / "two.npz")
    np.save(tmp_path / "flat.npy", CENTROIDS[0])
    with pytest.raises(HarnessError, match=r"\(K, D\), got \(32,\)"):
        load_centroids(tmp_path / "flat.npy")


@pytest.mark.parametrize("chunk", [1, 13, 400, 1000])
def test_the_sample_does_not_depend_on_the_chunks(chunk: int) -> None:
    def sampled(size: int, seed: int = 0) -> np.ndarray:
        sample = FeatureSample(limit=100, seed=seed)
        features = np.arange(1000, dtype=np.float32).reshape(-1, 1)
        for start in range(0, 1000, size):
            sample.add(features[start : start + size])
        return sample.rows()[:, 0]

    rows = sampled(chunk)
    np.testing.assert_array_equal(rows, sampled(77))
    assert len(np.unique(rows)) == 100
    assert (np.diff(rows) > 0).all()
    assert 300 < rows.mean() < 700
    assert (rows != sampled(chunk, seed=1)).any()


def test_a_small_population_is_sampled_whole() -> None:
    sample = FeatureSample(limit=50, seed=0)
    sample.add(np.ones((20, 3), dtype=np.float32))
    assert sample.rows().shape == (20, 3)
    assert FeatureSample(limit=5, seed=0).rows().size == 0


def test_the_spool_gives_back_its_batches(tmp_path: Path) -> None:
    spool = FeatureSpool(tmp_path)
    batches = [points(count * 4, 6).numpy().reshape(count, 4, 6) for count in (3, 1, 2)]
    for batch in batches:
        spool.append(batch)
    for found, batch in zip(spool.batches(), batches, strict=True):
        np.testing.assert_array_equal(found, batch)
    assert list(tmp_path.iterdir()) == []
