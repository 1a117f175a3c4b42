"""Hierarchical k-means with resampling (Vo et al. 2024, "Automatic data curation for self-supervised learning").

Centroids of k-means are denser where points are denser, so that common concepts get most clusters. Clustering the
centroids again, level by level, and within a level clustering again a few members of every cluster, evens that out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from components.curation.compute import Compute
from components.curation.config import Level
from components.curation.kmeans import Clustering, Started, assigned, kmeans
from components.curation.rows import Rows

IMAGES_A_CLUSTER, CLUSTERS_A_CLUSTER = 8, 3
"""Members that a cluster of the first and of a further level should have on average, at least."""


@dataclass(frozen=True)
class Hierarchy:
    """Levels of clusters, finest first: ``parents[0]`` (n,) maps points to level-1 clusters, ``parents[t]`` maps the
    clusters of level t to those of level t + 1. ``centroids[t]`` (k_t, d) belong to level t + 1."""

    parents: tuple[np.ndarray, ...] = ()
    centroids: tuple[np.ndarray, ...] = ()

    def paths(self) -> np.ndarray:
        """(n, levels) int64: the cluster of each point at every level, top level first."""
        columns = [self.parents[0]]
        for parents in self.parents[1:]:
            columns.append(parents[columns[-1]])
        return np.stack(columns[::-1], axis=1)


@dataclass(frozen=True)
class Progress:
    """Where :func:`hierarchical_kmeans` stands: the levels that are ``whole``; of the next one ``steps`` whole
    clusterings, of which the last ended with ``centroids``; and the ``started`` one after them."""

    whole: Hierarchy = Hierarchy()
    steps: int = 0
    centroids: np.ndarray | None = None
    started: Started | None = None


def fitted(levels: Sequence[Level], count: int) -> tuple[Level, ...]:
    """``levels`` for ``count`` points: each with as many clusters as leave 8 points, or 3 clusters, for one of them.

    A level that gets fewer is resampled by at most half of its mean cluster.
    """
    found = []
    available, share = count, IMAGES_A_CLUSTER
    for level in levels:
        clusters = max(1, min(level.clusters, available // share))
        if clusters < level.clusters:
            half = max(1, available // clusters // 2)
            changes = {"resampled": min(level.resampled, half), "splits": min(level.splits, clusters)}
            level = level.model_copy(update={"clusters": clusters, **changes})
        found.append(level)
        available, share = clusters, CLUSTERS_A_CLUSTER
    return tuple(found)


@dataclass(frozen=True)
class _Settings:
    seed: int
    iterations: int
    spherical: bool
    compute: Compute
    save: Callable[[Progress], None]

    def seed_of(self, *place: int) -> int:
        """A seed that belongs to this place of the hierarchy."""
        return int(np.random.SeedSequence([self.seed, *place]).generate_state(1)[0])


def hierarchical_kmeans(
    points: np.ndarray | Rows,
    levels: Sequence[Level],
    *,
    seed: int,
    iterations: int = 50,
    spherical: bool = False,
    compute: Compute | None = None,
    resume: Progress | None = None,
    save: Callable[[Progress], None] | None = None,
) -> Hierarchy:
    """k-means on ``points`` (n, d), then on the centroids of each level, finest first; empty clusters are dropped.

    ``save`` is called with the progress between iterations, after each clustering and after each level, in every
    process with equal arrays; the same call with ``resume`` set to such a progress goes on from there and ends with
    equal results.
    """
    settings = _Settings(seed, iterations, spherical, compute or Compute(), save or (lambda progress: None))
    rows = points if isinstance(points, Rows) else Rows(points)
    progress = resume or Progress()
    whole = progress.whole
    if whole.parents and len(whole.parents[0]) != len(rows):
        raise ValueError(f"a progress of {len(whole.parents[0])} points cannot go on with {len(rows)}")
    for number, level in list(enumerate(levels))[len(whole.parents) :]:
        current = Rows(whole.centroids[-1]) if number else rows
        found = _level(current, level, number, progress, settings)
        used, parents = np.unique(found.assignment, return_inverse=True)
        whole = Hierarchy((*whole.parents, parents), (*whole.centroids, found.centroids[used]))
        progress = Progress(whole)
        settings.save(progress)
    return whole


def _level(points: Rows, level: Level, number: int, progress: Progress, settings: _Settings) -> Clustering:
    """All clusterings of a level, from ``progress`` on; the last one."""
    found = None
    if progress.centroids is not None:
        found = assigned(points, progress.centroids, compute=settings.compute)
    while progress.steps < level.steps:
        if found is not None and level.splits > 1:
            return _split(points, found, level.clusters, number, settings)
        found = _clustered(points, found, level, number, progress, settings)
        progress = Progress(progress.whole, progress.steps + 1, found.centroids)
        if progress.steps < level.steps:
            settings.save(progress)
    assert found is not None
    return found


def _clustered(
    points: Rows, last: Clustering | None, level: Level, number: int, progress: Progress, settings: _Settings
) -> Clustering:
    """The first clustering of a level, or the one of the members that the ``last`` one gives."""
    sample = points if last is None else points.chosen(closest_members(last, level.resampled))
    found = kmeans(
        sample,
        min(level.clusters // level.splits, len(sample)),
        seed=settings.seed_of(number, progress.steps),
        iterations=settings.iterations,
        spherical=settings.spherical,
        compute=settings.compute,
        resume=progress.started,
        save=lambda started: settings.save(replace(progress, started=started)),
    )
    return found if last is None else assigned(points, found.centroids, compute=settings.compute)


def closest_members(clustering: Clustering, count: int) -> np.ndarray:
    """The ``count`` points of each cluster that are nearest to its centroid, or all where it has fewer: (m,) int64,
    rising. Of equally near ones the first."""
    order = np.lexsort((clustering.distance, clustering.assignment))
    own = clustering.assignment[order]
    sizes = np.bincount(own, minlength=len(clustering.centroids))
    place = np.arange(len(own)) - (np.cumsum(sizes) - sizes)[own]
    return np.sort(order[place < count])


def _split(points: Rows, coarse: Clustering, clusters: int, number: int, settings: _Settings) -> Clustering:
    """Each cluster of ``coarse`` clustered by itself, by one thread of one process, into its part of ``clusters``."""
    compute = settings.compute
    sizes = np.bincount(coarse.assignment, minlength=len(coarse.centroids))
    members = np.split(np.argsort(coarse.assignment, kind="stable"), np.cumsum(sizes)[:-1])
    parts = np.diff(np.arange(len(sizes) + 1) * clusters // len(sizes))
    pieces = np.minimum(sizes, parts)
    first = np.cumsum(pieces) - pieces
    largest_first = [int(parent) for parent in np.argsort(-sizes, kind="stable") if sizes[parent]]
    own = largest_first[compute.rank :: compute.processes]

    def work(parent: int) -> Clustering:
        return kmeans(
            points.chosen(members[parent]),
            int(pieces[parent]),
            seed=settings.seed_of(number, 1, parent),
            iterations=settings.iterations,
            spherical=settings.spherical,
            compute=compute.for_one_thread(),
        )

    centroids = np.zeros((int(pieces.sum()), points.dimensions), dtype=np.float32)
    assignment, distance = np.zeros(len(points), dtype=np.int64), np.zeros(len(points), dtype=np.float32)
    iterations = 0
    with compute.workers() as run:
        for parent, found in zip(own, run(work, own), strict=True):
            centroids[first[parent] : first[parent] + pieces[parent]] = found.centroids
            assignment[members[parent]] = first[parent] + found.assignment
            distance[members[parent]] = found.distance
            iterations = max(iterations, found.iterations)
    for array in (centroids, assignment, distance):
        compute.sum(torch.from_numpy(array))  # each entry comes from one process; the others have 0
    iterations = int(compute.largest(torch.tensor([iterations])).item())
    return Clustering(centroids, assignment, distance, float(distance.sum(dtype=np.float64)), iterations)
