"""Images of the pool that are like those of a seed set (Oquab et al. 2023, appendix A): by sample or by cluster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.curation.blocks import fixed_blocks
from components.curation.config import RetrievalConfig
from components.curation.kmeans import kmeans

QUERIES, IMAGES = 256, 1 << 14
"""Seeds, and images of the pool, that are compared at a time: 16 MiB of similarities for each thread."""
IMAGES_A_CLUSTER = 8
"""Images of the pool that a cluster should have on average, at least."""
ITERATIONS = 50


@dataclass(frozen=True)
class Retrieved:
    """What a seed set brought: ``images`` (m,) int64, ascending places in the pool, each once; ``seeds`` (m,) int64 the
    seed that each was given to (-1 in cluster mode); ``clusters`` the clusters kept (0 in sample mode)."""

    images: np.ndarray
    seeds: np.ndarray
    clusters: int = 0


def retrieve(seeds: np.ndarray, pool: np.ndarray, config: RetrievalConfig, seed: int) -> Retrieved:
    """The images of ``pool`` (n, d) that ``config`` finds for ``seeds`` (q, d); rows are float32 of unit length."""
    if config.mode == "sample":
        return by_sample(seeds, pool, config.neighbours, config.limit)
    clusters = max(1, min(config.clusters, len(pool) // IMAGES_A_CLUSTER))
    found = kmeans(pool, clusters, seed=seed, iterations=ITERATIONS, spherical=True)
    nearest_centroid = nearest(seeds, found.centroids, 1)[0][:, 0]
    images, kept = by_cluster(
        found.assignment, nearest_centroid, config.min_hits, config.images, config.limit, np.random.default_rng(seed)
    )
    return Retrieved(images, np.full(len(images), -1), kept)


def nearest(
    queries: np.ndarray, pool: np.ndarray, count: int, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(places, similarities) (q, k) int64 and float32 of the ``k = min(count, n)`` rows of ``pool`` (n, d) with the
    largest dot products with each of ``queries`` (q, d), the largest first; of equal ones the lower place first.

    Exact, in fixed blocks, so that it is equal to the bit for any number of threads; 2 q n d operations.
    """
    count = min(count, len(pool))

    def search(span: slice) -> tuple[np.ndarray, np.ndarray]:
        rows = span.stop - span.start
        places = np.zeros((rows, 0), np.int64)
        similarities = np.zeros((rows, 0), np.float32)
        for start in range(0, len(pool), IMAGES):
            block = queries[span] @ np.asarray(pool[start : start + IMAGES]).T
            found = _largest(np.broadcast_to(np.arange(start, start + block.shape[1]), block.shape), block, count)
            places = np.concatenate([places, found[0]], axis=1)
            similarities = np.concatenate([similarities, found[1]], axis=1)
            places, similarities = _largest(places, similarities, count)
        return places, similarities

    if not len(queries):
        return np.zeros((0, count), np.int64), np.zeros((0, count), np.float32)
    with fixed_blocks(len(queries), QUERIES, threads) as blocks:
        parts = list(blocks(search))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _largest(places: np.ndarray, similarities: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` first columns by falling similarity, of equal ones the left-most."""
    if similarities.shape[1] > count:
        bound = -np.partition(-similarities, count - 1, axis=1)[:, count - 1 : count]
        kept, equal = similarities > bound, similarities == bound
        ties = equal & (np.cumsum(equal, axis=1) <= count - kept.sum(axis=1, keepdims=True))
        columns = np.nonzero(kept | ties)[1].reshape(-1, count)
        places = np.take_along_axis(places, columns, axis=1)
        similarities = np.take_along_axis(similarities, columns, axis=1)
    order = np.argsort(-similarities, axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1), np.take_along_axis(similarities, order, axis=1)


def by_sample(seeds: np.ndarray, pool: np.ndarray, count: int, limit: int) -> Retrieved:
    """``count`` images of ``pool`` (n, d) for each of ``seeds`` (q, d), no image for two of them.

    The rule: pairs of a seed and an image are taken in the order of falling similarity; one is accepted where the image
    is free and the seed has fewer than ``count``. So an image that several seeds ask for goes to the nearest, and the
    others have their next nearest: ``min(q * count, n)`` images in all, then the ``limit`` most similar ones.

    Computed as deferred acceptance (Gale and Shapley 1962), which gives the same and looks at the nearest images only:
    every seed asks its nearest images that have not refused it, an image keeps the nearest that ever asked.
    """
    width = min(len(pool), 2 * count)
    places, similarities = nearest(seeds, pool, width)
    holder = np.full(len(pool), -1)
    best = np.full(len(pool), -np.inf, np.float32)
    asked, having = np.zeros(len(seeds), np.int64), np.zeros(len(seeds), np.int64)
    while len(asking := np.flatnonzero((having < count) & (asked < len(pool)))):
        wanted = np.minimum(count - having[asking], len(pool) - asked[asking])
        if (asked[asking] + wanted).max() > width:
            width = min(len(pool), 2 * width)
            places, similarities = nearest(seeds, pool, width)
        who = np.repeat(asking, wanted)
        column = np.arange(len(who)) - np.repeat(np.cumsum(wanted) - wanted, wanted) + asked[who]
        asked[asking] += wanted
        image, likeness = places[who, column], similarities[who, column]
        order = np.lexsort((who, -likeness, image))
        who, image, likeness = who[order], image[order], likeness[order]
        first = np.r_[True, image[1:] != image[:-1]]
        who, image, likeness = who[first], image[first], likeness[first]
        wins = (likeness > best[image]) | ((likeness == best[image]) & (who < holder[image]))
        who, image, likeness = who[wins], image[wins], likeness[wins]
        left = holder[image]
        np.subtract.at(having, left[left >= 0], 1)
        np.add.at(having, who, 1)
        holder[image], best[image] = who, likeness
    taken = np.flatnonzero(holder >= 0)
    taken = np.sort(taken[np.lexsort((taken, -best[taken]))[:limit]])
    return Retrieved(taken, holder[taken])


def by_cluster(
    assignment: np.ndarray,
    hits: np.ndarray,
    min_hits: int,
    images: int,
    limit: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, int]:
    """(ascending places of the images drawn, number of clusters kept).

    ``assignment`` (n,): cluster of each image; ``hits`` (q,): cluster that each seed falls into. A cluster with at
    least ``min_hits`` seeds is kept and gives ``images`` of its images, or all; then ``limit`` of all, each by chance.
    """
    asked, counts = np.unique(hits, return_counts=True)
    kept = asked[counts >= min_hits]
    order = np.argsort(assignment, kind="stable")
    starts = np.searchsorted(assignment[order], kept)
    ends = np.searchsorted(assignment[order], kept, side="right")
    drawn = [np.zeros(0, np.int64)]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        members = order[start:end]
        drawn.append(members if len(members) <= images else generator.choice(members, images, replace=False))
    found = np.concatenate(drawn)
    if len(found) > limit:
        found = generator.choice(found, limit, replace=False)
    return np.sort(found), len(kept)
