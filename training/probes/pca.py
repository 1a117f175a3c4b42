"""Patch features as colours: the first three principal components (Oquab et al. 2023, section 7.5)."""

from __future__ import annotations

import numpy as np


def pca_colours(patches: np.ndarray) -> np.ndarray:
    """(N, h, w, 3) uint8 pictures of patch features (N, h * w, D).

    One PCA over the patches of all N images, so equal colours mean similar features in all of them. Each component is
    scaled to unit variance and passed through 255 / (1 + exp(-1.2 z)): the mapping of the DINOv3 demonstration, less
    steep since no background is masked out here. A component's sign is chosen so that its largest loading is positive.
    Fewer than three dimensions leave channels grey.
    """
    from training.probes.features import grid_side

    count, length, dim = patches.shape
    side = grid_side(length)
    x = patches.reshape(-1, dim).astype(np.float64)
    x = x - x.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    order = np.argsort(-values)[:3]
    axes = vectors[:, order]
    axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    z = x @ axes / np.sqrt(np.maximum(values[order], 1e-12))
    colours = np.full((len(x), 3), 127.5)
    colours[:, : z.shape[1]] = 255 / (1 + np.exp(-1.2 * np.clip(z, -20, 20)))
    return np.rint(colours).astype(np.uint8).reshape(count, side, side, 3)
