from __future__ import annotations

import numpy as np
import pytest

from components.curation.config import Level
from components.curation.hierarchy import Progress, closest_members, fitted, hierarchical_kmeans
from components.curation.kmeans import Clustering, assigned
from tests.components.curation.mixtures import distances, mixture


def plain(*clusters: int) -> list[Level]:
    return [Level(clusters=count) for count in clusters]


def test_levels_nest_and_higher_ones_cluster_the_centroids_below() -> None:
    points, _ = mixture(900, 30, 12, spread=0.3)
    found = hierarchical_kmeans(points, plain(30, 8, 2), seed=0)
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
    paths = hierarchical_kmeans(points, plain(64, 12), seed=0).paths()
    assert len(np.unique(paths[:, 1])) == 5


def test_few_points_get_levels_that_fit_them() -> None:
    assert fitted(plain(64, 12), 600) == tuple(plain(64, 12))
    assert fitted(plain(64, 12), 100) == tuple(plain(12, 4))
    assert fitted(plain(64, 12), 3) == tuple(plain(1, 1))
    resampled = Level(clusters=64, resampled=30, passes=3)
    assert fitted([resampled], 600) == (resampled,)
    assert fitted([resampled], 100) == (Level(clusters=12, resampled=4, passes=3),)
    assert fitted([Level(clusters=500, splits=20)], 100) == (Level(clusters=12, splits=12),)


def closest_by_hand(points: np.ndarray, centroids: np.ndarray, assignment: np.ndarray, count: int) -> set[int]:
    """Sorting each cluster's members by their float64 distances."""
    chosen: set[int] = set()
    for number, centroid in enumerate(centroids.astype(np.float64)):
        members = np.flatnonzero(assignment == number)
        away = ((points[members].astype(np.float64) - centroid) ** 2).sum(axis=1)
        chosen.update(members[np.argsort(away)[:count]].tolist())
    return chosen


def test_a_resampling_pass_clusters_the_members_nearest_to_their_centroids() -> None:
    points, _ = mixture(1500, 60, 12, spread=0.5)
    states: list[Progress] = []
    level = Level(clusters=24, resampled=6, passes=3)
    hierarchical_kmeans(points, [level], seed=4, iterations=200, save=states.append)
    ends = [state for state in states if not state.started]
    assert [state.steps for state in ends] == [1, 2, 3, 0]
    for before, after in zip(ends[:2], ends[1:3], strict=True):
        assert before.centroids is not None and after.centroids is not None
        last = assigned(points, before.centroids)
        sample = sorted(closest_by_hand(points, last.centroids, last.assignment, count=6))
        np.testing.assert_array_equal(sample, closest_members(last, 6))
        new = after.centroids.astype(np.float64)
        nearest = distances(points[sample], new).argmin(axis=1)
        for number in range(24):  # a fixed point of Lloyd on the sample, in float64
            np.testing.assert_allclose(new[number], points[sample][nearest == number].mean(axis=0), atol=1e-6)
        assert not np.array_equal(before.centroids, after.centroids)
    whole = ends[-1].whole  # and all points belong to the nearest of the last of these centroids
    np.testing.assert_array_equal(whole.parents[0], distances(points, whole.centroids[0]).argmin(axis=1))


def test_closest_members_are_all_of_small_clusters_and_the_first_of_equals() -> None:
    distance = np.array([3, 1, 2, 1, 5, 1], np.float32)
    clustering = Clustering(np.zeros((4, 2), np.float32), np.array([0, 0, 0, 0, 2, 0]), distance, 0.0, 1)
    assert closest_members(clustering, 2).tolist() == [1, 3, 4]
    assert closest_members(clustering, 9).tolist() == [0, 1, 2, 3, 4, 5]


def test_resampling_gives_rare_concepts_more_clusters() -> None:
    generator = np.random.default_rng(0)
    common, rare = generator.normal(size=(4000, 2)) * 0.3, generator.normal(size=(100, 2)) * 0.3 + (6, 0)
    points = np.concatenate([common, rare]).astype(np.float32)

    def for_rare(level: Level) -> float:
        found = [hierarchical_kmeans(points, [level], seed=seed).centroids[0] for seed in range(3)]
        return float(np.mean([(centroids[:, 0] > 3).sum() for centroids in found]))

    assert for_rare(Level(clusters=20, resampled=20, passes=10)) > 2 * for_rare(Level(clusters=20))


def test_splits_divide_each_coarse_cluster_by_itself() -> None:
    points, _ = mixture(2000, 80, 12, spread=0.5)
    states: list[Progress] = []
    levels = [Level(clusters=67, splits=8), Level(clusters=4)]
    found = hierarchical_kmeans(points, levels, seed=0, iterations=100, save=states.append)
    ended = next(state.centroids for state in states if state.steps == 1)
    assert ended is not None and len(ended) == 8
    fine, coarse = found.parents[0], distances(points, ended).argmin(axis=1)
    assert len(found.centroids[0]) == 67
    for parent in range(8):
        members = coarse == parent
        pieces = np.unique(fine[members])
        assert len(pieces) in (8, 9) and not np.isin(fine[~members], pieces).any()
        table = distances(points[members], found.centroids[0][pieces])
        np.testing.assert_array_equal(fine[members], pieces[table.argmin(axis=1)])
        for piece in pieces:
            np.testing.assert_allclose(found.centroids[0][piece], points[fine == piece].mean(axis=0), atol=1e-6)


def test_a_coarse_cluster_smaller_than_its_splits_gives_a_cluster_for_each_member() -> None:
    points = np.concatenate([np.eye(8)[:3] + 10, mixture(200, 4, 8)[0]]).astype(np.float32)
    paths = hierarchical_kmeans(points, [Level(clusters=20, splits=10)], seed=0).paths()[:, 0]
    assert len(set(paths[:3].tolist())) == 3
    assert not set(paths[:3].tolist()) & set(paths[3:].tolist())


def test_an_interrupted_hierarchy_goes_on_to_equal_results() -> None:
    points, _ = mixture(600, 60, 12, spread=0.4)
    levels = [Level(clusters=60, splits=6), Level(clusters=24, resampled=2, passes=2), Level(clusters=5)]
    states: list[Progress] = []
    whole = hierarchical_kmeans(points, levels, seed=2, spherical=True, save=states.append)
    ends = [(len(state.whole.parents), state.steps) for state in states if not state.started]
    assert ends == [(0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0)]
    assert len(states) > 10
    for done, state in enumerate(states):
        later: list[Progress] = []
        found = hierarchical_kmeans(points, levels, seed=2, spherical=True, resume=state, save=later.append)
        assert len(later) == len(states) - done - 1
        for ours, theirs in zip((*found.parents, *found.centroids), (*whole.parents, *whole.centroids), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="cannot go on"):
        hierarchical_kmeans(points[:-1], levels, seed=2, resume=states[-2])
