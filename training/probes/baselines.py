"""What an image says without any network: its pixels and its colours, as features for the same protocols."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

RAW_SIDE = 16
"""Side of the thumbnail that raw pixels are compared at."""
BINS = 8
"""Bins a channel of the colour histogram of an image."""

Baseline = Callable[[np.ndarray], np.ndarray]


def raw_pixels(image: np.ndarray, side: int = RAW_SIDE) -> np.ndarray:
    """(side * side * 3,) float32: the (H, W, 3) uint8 image at ``side`` x ``side`` in [0, 1], minus its own mean."""
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    values = np.asarray(small, np.float32).ravel() / 255
    return values - values.mean()


def colour_histogram(image: np.ndarray, bins: int = BINS) -> np.ndarray:
    """(bins ** 3,) float32: square roots of the shares of the joint RGB bins of a (H, W, 3) uint8 image.

    The dot product of two of them is the Bhattacharyya coefficient, the kernel of the Hellinger distance (Arandjelović
    and Zisserman 2012, "Three things everyone should know to improve object retrieval", section 3).
    """
    cells = (image.reshape(-1, 3).astype(np.int64) * bins) >> 8
    index = (cells[:, 0] * bins + cells[:, 1]) * bins + cells[:, 2]
    counts = np.bincount(index, minlength=bins**3).astype(np.float32)
    return np.sqrt(counts / counts.sum())


BASELINES: dict[str, Baseline] = {"raw pixels": raw_pixels, "colour histogram": colour_histogram}
"""Name in tables -> feature of an image."""


def patch_baseline(name: str, image: np.ndarray, grid: int) -> np.ndarray:
    """(grid * grid, D) float32: the baseline ``name`` of each cell of a ``grid`` x ``grid`` division of the image.

    Cells are resized to 8 x 8 pixels first; raw pixels then keep their mean (it is all that tells flat cells apart) and
    the histogram has 4 bins a channel.
    """
    side = 8
    small = Image.fromarray(image).resize((grid * side, grid * side), Image.Resampling.BICUBIC)
    cells = np.asarray(small).reshape(grid, side, grid, side, 3).transpose(0, 2, 1, 3, 4)
    cells = cells.reshape(grid * grid, side, side, 3)
    if name == "raw pixels":
        return cells.reshape(len(cells), -1).astype(np.float32) / 255
    if name == "colour histogram":
        return np.stack([colour_histogram(cell, 4) for cell in cells])
    raise KeyError(name)
