from __future__ import annotations

import numpy as np
import pytest

from components.curation import kmeans as kmeans_module
from components.curation.kmeans import hierarchical_kmeans, kmeans


def mixture(
    count: int, centres: int, dimensions: int, seed: int = 0, spread: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    middles = generator.normal(size=(centres, dimensions))
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    labels = generator.integers(centres, size=count)
    points = middles[labels] + spread * generator.normal(size=(count, dimensions)) / dimensions**0.5
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


def distances(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return ((points[:, None].astype(np.float64) - centroids[None].astype(np.float64)) ** 2).sum(axis=2)


@pytest.mark.parametrize("spherical", [False, True])
def test_the_result_is_a_fixed_point_of_lloyd(spherical: bool) -> None:
    points, _ = mixture(700, 9, 12)
    found = kmeans(points, 9, seed=3, iterations=200, spherical=spherical)
    table = distances(points, found.centroids)
    np.testing.assert_array_equal(found.assignment, table.argmin(axis=1))
    np.testing.assert_allclose(found.distance, table.min(axis=1), atol=1e-5)
    assert found.inertia == pytest.approx(table.min(axis=1).sum(), rel=1e-5)
    for number, centroid in enumerate(found.centroids):
        mean = points[found.assignment == number].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(centroid, mean / np.linalg.norm(mean) if spherical else mean, atol=1e-6)


def test_clear_clusters_are_found() -> None:
    points, labels = mixture(600, 12, 16, spread=0.05)
    found = kmeans(points, 12, seed=0)
    assert len(set(zip(labels.tolist(), found.assignment.tolist(), strict=True))) == 12


def test_inertia_is_as_good_as_scikit_learns() -> None:
    from sklearn.cluster import KMeans

    points, _ = mixture(800, 40, 16, spread=0.6)
    ours = np.mean([kmeans(points, 25, seed=seed).inertia for seed in range(4)])
    theirs = np.mean([KMeans(25, n_init=1, max_iter=50, random_state=seed).fit(points).inertia_ for seed in range(4)])
    assert ours <= theirs * 1.02


def test_results_are_equal_to_the_bit_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans_module, "BLOCK", 128)
    points, _ = mixture(1000, 20, 24, spread=0.8)
    results = [kmeans(points, 20, seed=5, iterations=8, threads=threads) for threads in (1, 2, 4)]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].centroids, other.centroids)
        np.testing.assert_array_equal(results[0].assignment, other.assignment)
        assert results[0].inertia == other.inertia


def test_the_seed_decides() -> None:
    points, _ = mixture(400, 30, 8, spread=1.0)
    one, same, other = (kmeans(points, 20, seed=seed, iterations=3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.centroids, same.centroids)
    assert not np.array_equal(one.centroids, other.centroids)


def test_fewer_distinct_points_than_clusters() -> None:
    points = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    found = kmeans(points, 7, seed=0)
    assert found.inertia == 0
    assert found.centroids.shape == (7, 3)
    np.testing.assert_array_equal(found.centroids[found.assignment], points)


@pytest.mark.parametrize("clusters", [0, 5])
def test_impossible_numbers_of_clusters_are_refused(clusters: int) -> None:
    with pytest.raises(ValueError, match="cannot make"):
        kmeans(np.zeros((4, 2), np.float32), clusters, seed=0)


def test_every_point_as_its_own_cluster() -> None:
    points, _ = mixture(12, 12, 6)
    assert kmeans(points, 12, seed=0).inertia == pytest.approx(0, abs=1e-5)


def test_levels_nest_and_higher_ones_cluster_the_centroids_below() -> None:
    points, _ = mixture(900, 30, 12, spread=0.3)
    found = hierarchical_kmeans(points, [30, 8, 2], seed=0)
    paths = found.paths()
    assert paths.shape == (900, 3)
    for upper, lower in ((0, 1), (1, 2)):
        pairs = {(a, b) for a, b in zip(paths[:, upper].tolist(), paths[:, lower].tolist(), strict=True)}
        assert len(pairs) == len({b for _, b in pairs}), "a cluster has one parent"
    for below, (centroids, parents) in enumerate(zip(found.centroids[1:], found.parents[1:], strict=True)):
        table = distances(found.centroids[below], centroids)
        np.testing.assert_array_equal(parents, table.argmin(axis=1))
    assert sorted(np.unique(paths[:, 2])) == list(range(len(found.centroids[0])))


def test_levels_larger_than_the_pool_shrink_to_it() -> None:
    points, _ = mixture(5, 5, 4)
    paths = hierarchical_kmeans(points, [64, 12], seed=0).paths()
    assert len(np.unique(paths[:, 1])) == 5
    with pytest.raises(ValueError, match="finest first"):
        hierarchical_kmeans(points, [2, 4], seed=0)
