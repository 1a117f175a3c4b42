"""Balanced sampling over a hierarchy of clusters (Vo et al. 2024, "Automatic data curation for self-supervised
learning"): every cluster of a level gives the same number, as far as it has that many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def quotas(
    sizes: np.ndarray, target: int, generator: np.random.Generator, copies: int = 1, held: np.ndarray | None = None
) -> np.ndarray:
    """Share ``target`` among clusters of ``sizes`` (k,), as evenly as they allow: (k,) int64, its sum is
    ``min(target, copies * sum(sizes))``.

    Each cluster gives ``min(x, copies * size)`` with the largest x that fits, but at least what it has given before:
    ``held`` (k,), of which the sum is at most ``target``. What is left over goes one by one to random clusters that
    gave x and have more.
    """
    capacity = np.asarray(sizes, dtype=np.int64) * copies
    floor = np.zeros_like(capacity) if held is None else np.asarray(held, dtype=np.int64)
    if capacity.sum() <= target:
        return capacity
    low, high = 0, int(target)  # the largest x of which the shares sum to at most the target lies in low..high
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.maximum(np.minimum(capacity, middle), floor).sum()) <= target:
            low = middle
        else:
            high = middle - 1
    shares = np.maximum(np.minimum(capacity, low), floor)
    remainder = target - int(shares.sum())
    if remainder:
        larger = np.flatnonzero((capacity > low) & (floor <= low))
        shares[generator.choice(larger, remainder, replace=False)] += 1
    return shares


def effective_number(sizes: np.ndarray) -> float:
    """exp of the entropy of ``sizes`` (k,) as shares: how many equally large clusters they are worth. 0 of nothing."""
    sizes = sizes[sizes > 0].astype(np.float64)
    shares = sizes / sizes.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def effective_clusters(clusters: Sequence[str]) -> float:
    """:func:`effective_number` of the finest clusters that drawn images lie in."""
    return effective_number(np.array(list(Counter(clusters).values())))


def balanced_sample(
    paths: np.ndarray, target: int, *, seed: int, copies: int = 1, held: np.ndarray | None = None
) -> np.ndarray:
    """Draw ``target`` of n points, balanced over the clusters of ``paths`` (n, levels), top level first.

    Returns (n,) int64: how often each point is drawn, 0..``copies``; ``min(target, copies * n)`` in all. Within a
    finest cluster the members are drawn at random without replacement. A cluster's draws depend only on ``seed`` and
    its own path. ``held`` (n,): how often points have been drawn before, at most ``target`` in all; they are drawn at
    least as often again, and the others fill up the clusters that have the least.
    """
    drawn = np.zeros(len(paths), dtype=np.int64)
    held = np.zeros(len(paths), dtype=np.int64) if held is None else held
    _share_out(paths, np.arange(len(paths)), (), target, seed, copies, held, drawn)
    return drawn


def _share_out(
    paths: np.ndarray,
    members: np.ndarray,
    path: tuple[int, ...],
    target: int,
    seed: int,
    copies: int,
    held: np.ndarray,
    drawn: np.ndarray,
) -> None:
    generator = np.random.default_rng([seed, len(path), *path])
    if len(path) == paths.shape[1]:
        drawn[members] = quotas(np.ones(len(members)), target, generator, copies, held[members])
        return
    children, place, sizes = np.unique(paths[members, len(path)], return_inverse=True, return_counts=True)
    order = np.argsort(place, kind="stable")
    groups = np.split(members[order], np.cumsum(sizes)[:-1])
    given = np.array([held[group].sum() for group in groups])
    shares = quotas(sizes, target, generator, copies, given)
    for child, group, share in zip(children.tolist(), groups, shares.tolist(), strict=True):
        if share:
            _share_out(paths, group, (*path, child), share, seed, copies, held, drawn)
