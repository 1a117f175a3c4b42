"""k-means in fixed blocks: k-means++ seeding, Lloyd iterations, and the hierarchy of levels that balancing needs.

Rows are processed in blocks of a fixed size and the blocks' sums are added in block order, so results are equal to
the bit for any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.curation.blocks import Blocks, fixed_blocks

BLOCK = 8192
"""Rows of a block. Part of the definition of a result: sums are formed block by block."""


@dataclass(frozen=True)
class Clustering:
    """``centroids`` (k, d) float32, ``assignment`` (n,) int64 in 0..k-1, ``distance`` (n,) float32 squared Euclidean
    to the own centroid, ``inertia`` their float64 sum, ``iterations`` the Lloyd iterations run."""

    centroids: np.ndarray
    assignment: np.ndarray
    distance: np.ndarray
    inertia: float
    iterations: int


def kmeans(
    points: np.ndarray,
    clusters: int,
    *,
    seed: int,
    iterations: int = 50,
    spherical: bool = False,
    threads: int | None = None,
) -> Clustering:
    """Cluster ``points`` (n, d) float32 into ``clusters`` (at most n).

    Stops when no assignment changes. An empty cluster keeps its centroid. ``spherical`` puts centroids back on the
    unit sphere after each update (points are then expected to be of unit length).
    """
    points = np.ascontiguousarray(points, dtype=np.float32)
    if points.ndim != 2 or not 1 <= clusters <= len(points):
        raise ValueError(f"cannot make {clusters} clusters of points of shape {points.shape}")
    with fixed_blocks(len(points), BLOCK, threads) as blocks:
        squared = np.einsum("nd,nd->n", points, points)
        centroids = _seed(points, squared, clusters, np.random.default_rng(seed), blocks)
        assignment, distance = _assign(points, squared, centroids, blocks)
        done = 0
        while done < iterations:
            done += 1
            centroids = _means(points, assignment, centroids, spherical, blocks)
            moved, distance = _assign(points, squared, centroids, blocks)
            unchanged = np.array_equal(moved, assignment)
            assignment = moved
            if unchanged:
                break
    return Clustering(centroids, assignment, distance, float(distance.sum(dtype=np.float64)), done)


def _distances(points: np.ndarray, squared: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (rows, k), never below 0."""
    distances = points @ centroids.T
    distances *= -2
    distances += squared[:, None]
    distances += np.einsum("kd,kd->k", centroids, centroids)
    return np.maximum(distances, 0, out=distances)


def _assign(
    points: np.ndarray, squared: np.ndarray, centroids: np.ndarray, blocks: Blocks
) -> tuple[np.ndarray, np.ndarray]:
    def nearest(span: slice) -> tuple[np.ndarray, np.ndarray]:
        distances = _distances(points[span], squared[span], centroids)
        index = distances.argmin(axis=1)
        return index, distances[np.arange(len(index)), index]

    parts = list(blocks(nearest))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _means(points: np.ndarray, assignment: np.ndarray, old: np.ndarray, spherical: bool, blocks: Blocks) -> np.ndarray:
    def sums(span: slice) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(assignment[span], kind="stable")
        own = assignment[span][order]
        starts = np.flatnonzero(np.r_[True, own[1:] != own[:-1]])
        return own[starts], np.add.reduceat(points[span][order], starts, axis=0, dtype=np.float64)

    totals = np.zeros(old.shape, dtype=np.float64)
    for own, part in blocks(sums):
        totals[own] += part
    counts = np.bincount(assignment, minlength=len(old))[:, None]
    centroids = np.where(counts > 0, totals / np.maximum(counts, 1), old)
    if spherical:
        length = np.linalg.norm(centroids, axis=1, keepdims=True)
        centroids = np.where(length > 1e-12, centroids / np.maximum(length, 1e-12), old)
    return centroids.astype(np.float32)


def _seed(
    points: np.ndarray, squared: np.ndarray, clusters: int, generator: np.random.Generator, blocks: Blocks
) -> np.ndarray:
    """Greedy k-means++: each next centre is the best (lowest potential) of 2 + floor(ln k) draws in proportion to
    the squared distance (Arthur and Vassilvitskii 2007, section 5)."""
    trials = 2 + int(np.log(clusters))
    chosen = [int(generator.integers(len(points)))]
    closest = np.concatenate(list(blocks(lambda span: _distances(points[span], squared[span], points[chosen])[:, 0])))
    while len(chosen) < clusters:
        cumulative = np.cumsum(closest, dtype=np.float64)
        if cumulative[-1] <= 0:  # fewer distinct points than clusters: any other rows serve, their clusters stay empty
            rest = np.setdiff1d(np.arange(len(points)), chosen)[: clusters - len(chosen)]
            return points[np.concatenate([chosen, rest])]
        draws = np.searchsorted(cumulative, generator.random(trials) * cumulative[-1], side="right")
        candidates = np.minimum(draws, len(points) - 1)

        def nearer(span: slice, candidates: np.ndarray = candidates, closest: np.ndarray = closest) -> np.ndarray:
            return np.minimum(_distances(points[span], squared[span], points[candidates]), closest[span, None])

        potentials = np.concatenate(list(blocks(nearer)))
        best = int(np.argmin(potentials.sum(axis=0, dtype=np.float64)))
        chosen.append(int(candidates[best]))
        closest = np.ascontiguousarray(potentials[:, best])
    return points[chosen]


@dataclass(frozen=True)
class Hierarchy:
    """Levels of clusters, finest first: ``parents[0]`` (n,) maps points to level-1 clusters, ``parents[t]`` maps the
    clusters of level t to those of level t + 1. ``centroids[t]`` (k_t, d) belong to level t + 1."""

    parents: tuple[np.ndarray, ...]
    centroids: tuple[np.ndarray, ...]

    def paths(self) -> np.ndarray:
        """(n, levels) int64: the cluster of each point at every level, top level first."""
        columns = [self.parents[0]]
        for parents in self.parents[1:]:
            columns.append(parents[columns[-1]])
        return np.stack(columns[::-1], axis=1)


def hierarchical_kmeans(
    points: np.ndarray,
    levels: Sequence[int],
    *,
    seed: int,
    iterations: int = 50,
    spherical: bool = False,
    threads: int | None = None,
) -> Hierarchy:
    """k-means on ``points``, then on the centroids of each level (Vo et al. 2024, "Automatic data curation").

    ``levels`` are the cluster counts, finest first and falling; empty clusters are dropped, so that a level may have
    fewer. Level t uses the seed ``(seed, t)``.
    """
    if list(levels) != sorted(levels, reverse=True) or min(levels, default=0) < 1:
        raise ValueError(f"levels {list(levels)}: give falling cluster counts, finest first")
    parents, centroids = [], []
    current = points
    for number, clusters in enumerate(levels):
        own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        found = kmeans(
            current,
            min(clusters, len(current)),
            seed=own_seed,
            iterations=iterations,
            spherical=spherical,
            threads=threads,
        )
        used, assignment = np.unique(found.assignment, return_inverse=True)
        parents.append(assignment)
        centroids.append(found.centroids[used])
        current = centroids[-1]
    return Hierarchy(tuple(parents), tuple(centroids))
