"""k-means for many points: greedy k-means++ seeding on a sample, exact Lloyd iterations on all points.

Results are equal to the bit for any number of threads and of processes on machines of one kind;
:mod:`components.curation.lloyd` says in which order sums are formed and why it does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from components.curation.compute import Compute
from components.curation.lloyd import Lloyd
from components.curation.rows import Rows
from components.curation.seeding import seeds


@dataclass(frozen=True)
class Clustering:
    """``centroids`` (k, d) float32, ``assignment`` (n,) int64 in 0..k-1, ``distance`` (n,) float32 squared Euclidean
    to the own centroid, ``inertia`` their float64 sum, ``iterations`` the Lloyd iterations run."""

    centroids: np.ndarray
    assignment: np.ndarray
    distance: np.ndarray
    inertia: float
    iterations: int


@dataclass(frozen=True)
class Started:
    """A clustering that is not finished: ``centroids`` (k, d) float32 after so many ``iterations``."""

    centroids: np.ndarray
    iterations: int


def kmeans(
    points: np.ndarray | Rows,
    clusters: int,
    *,
    seed: int,
    iterations: int = 50,
    spherical: bool = False,
    compute: Compute | None = None,
    resume: Started | None = None,
    save: Callable[[Started], None] | None = None,
) -> Clustering:
    """Cluster ``points`` (n, d), floating-point numbers that may be a memory map, into ``clusters`` (at most n).

    Stops when no assignment changes. An empty cluster keeps its centroid. ``spherical`` puts centroids back on the
    unit sphere after each update (points are then expected to be of unit length). Every process reads the points of
    its own share and gets the whole result. ``save`` is called, in every process, between iterations; the same call
    with ``resume`` set to what it was given ends with an equal result.

    Raises :class:`ValueError` where points are not finite or fewer than ``clusters``.
    """
    rows = _checked(points, clusters)
    compute = compute or Compute()
    with compute.workers() as run:
        lloyd = Lloyd(rows, compute, run, spherical=spherical)
        if resume:
            lloyd.begin(torch.from_numpy(resume.centroids))
        else:
            lloyd.begin(seeds(rows, clusters, np.random.default_rng(seed), compute, run))
        done = begun = resume.iterations if resume else 0
        while lloyd.assign() and done < iterations:
            if save and done > begun:
                save(Started(lloyd.centroids.cpu().numpy(), done))
            lloyd.update()
            done += 1
        return _result(lloyd, len(rows), compute, done)


def assigned(points: np.ndarray | Rows, centroids: np.ndarray, *, compute: Compute | None = None) -> Clustering:
    """Every one of ``points`` (n, d) with the nearest of ``centroids`` (k, d), which stay: no iteration."""
    rows = _checked(points, 1)
    compute = compute or Compute()
    with compute.workers() as run:
        lloyd = Lloyd(rows, compute, run)
        lloyd.begin(torch.from_numpy(centroids), sums=False)
        lloyd.assign()
        return _result(lloyd, len(rows), compute, 0)


def _checked(points: np.ndarray | Rows, clusters: int) -> Rows:
    shape = (len(points), points.dimensions) if isinstance(points, Rows) else points.shape
    if len(shape) != 2 or not 1 <= clusters <= shape[0]:
        raise ValueError(f"cannot make {clusters} clusters of points of shape {shape}")
    return points if isinstance(points, Rows) else Rows(points)


def _result(lloyd: Lloyd, count: int, compute: Compute, iterations: int) -> Clustering:
    distance = compute.joined(lloyd.distances(), lloyd.own, count).numpy()
    assignment = compute.joined(lloyd.assignment, lloyd.own, count).numpy().astype(np.int64)
    inertia = float(distance.sum(dtype=np.float64))
    return Clustering(lloyd.centroids.cpu().numpy(), assignment, distance, inertia, iterations)
