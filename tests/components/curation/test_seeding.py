from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from components.curation import seeding
from components.curation.compute import Compute
from components.curation.rows import Rows
from components.curation.seeding import chosen_rows, sample_rows, seeds
from tests.components.curation.mixtures import distances, mixture


def chosen(points: np.ndarray, clusters: int, seed: int, threads: int = 1) -> np.ndarray:
    with Compute(threads=threads).workers() as run:
        return chosen_rows(torch.from_numpy(points), clusters, np.random.default_rng(seed), run)


def test_potential_is_that_of_scikit_learns_greedy_seeding() -> None:
    from sklearn.cluster import kmeans_plusplus

    points, _ = mixture(600, 60, 8, spread=0.4)

    def potential(rows: np.ndarray) -> float:
        return float(distances(points, points[rows]).min(axis=1).sum())

    ours = [potential(chosen(points, 40, seed)) for seed in range(12)]
    theirs = [potential(kmeans_plusplus(points, 40, random_state=seed)[1]) for seed in range(12)]
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.05)


def test_draws_are_in_proportion_to_the_present_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """One trial at a time: the third centre follows the distances from the first two, although it may have been drawn
    when there was only the first."""
    monkeypatch.setattr(np, "log", lambda _: -1)  # 2 + floor(ln k) = 1
    points = np.array([[0], [1], [3], [7]], np.float32)
    triples = Counter(tuple(chosen(points, 3, seed).tolist()) for seed in range(1500))
    for first in range(4):
        away = ((points - points[first]) ** 2)[:, 0]
        for second in set(range(4)) - {first}:
            left = np.minimum(away, ((points - points[second]) ** 2)[:, 0])
            for third in set(range(4)) - {first, second}:
                expected = 0.25 * away[second] / away.sum() * left[third] / left.sum()
                assert triples[first, second, third] / 1500 == pytest.approx(expected, abs=0.03)


def test_few_points_are_all_the_sample_and_of_many_a_fixed_part() -> None:
    generator = np.random.default_rng(0)
    np.testing.assert_array_equal(sample_rows(1000, 10, generator), np.arange(1000))
    rows = sample_rows(1_000_000, 1000, np.random.default_rng(1))
    assert len(rows) == 16_000 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, sample_rows(1_000_000, 1000, np.random.default_rng(1)))
    assert len(sample_rows(100_000, 1000, generator)) == 6250  # not more than every 16th
    assert len(sample_rows(100_000, 10_000, generator)) == 40_000  # but no fewer than four a cluster
    np.testing.assert_array_equal(sample_rows(10_000, 5000, generator), np.arange(10_000))


def test_seeds_are_points_and_equal_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "TILE_ROWS", 64)
    points, _ = mixture(3000, 50, 8, spread=0.4)
    found = []
    for threads in (1, 3):
        compute = Compute(threads=threads)
        with compute.workers() as run:
            found.append(seeds(Rows(points), 50, np.random.default_rng(0), compute, run).numpy())
    np.testing.assert_array_equal(*found)
    rows = {point.tobytes() for point in points}
    assert len({row.tobytes() for row in found[0]} & rows) == 50


def test_copies_are_not_chosen_twice_while_there_are_others() -> None:
    points = np.repeat(mixture(20, 20, 16)[0], 30, axis=0)
    assert len({row // 30 for row in chosen(points, 20, 0).tolist()}) == 20
    assert len(set(chosen(points, 25, 0).tolist())) == 25
