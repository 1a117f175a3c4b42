"""Points on the unit sphere that tests cluster."""

from __future__ import annotations

import numpy as np


def mixture(
    count: int, centres: int, dimensions: int, seed: int = 0, spread: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """(count, dimensions) float32 around random directions, and which direction each belongs to."""
    generator = np.random.default_rng(seed)
    middles = generator.normal(size=(centres, dimensions))
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    labels = generator.integers(centres, size=count)
    points = middles[labels] + spread * generator.normal(size=(count, dimensions)) / dimensions**0.5
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


def distances(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (n, k) float64, the plain way."""
    return ((points[:, None].astype(np.float64) - centroids[None].astype(np.float64)) ** 2).sum(axis=2)
