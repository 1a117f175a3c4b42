"""Numbers of one view by which two augmentations are compared."""

from __future__ import annotations

import numpy as np

NAMES = ("red", "green", "blue", "contrast", "colourfulness", "detail", "left minus right")


def describe(view: np.ndarray) -> np.ndarray:
    """(7,) of a (H, W, 3) uint8 view: channel means, contrast, colourfulness, detail (what a blur takes), asymmetry."""
    pixels = view.astype(np.float64)
    grey = pixels.mean(axis=2)
    detail = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    half = grey.shape[1] // 2
    asymmetry = grey[:, :half].mean() - grey[:, half:].mean()
    return np.array([*pixels.mean(axis=(0, 1)), grey.std(), np.ptp(pixels, axis=2).mean(), detail, asymmetry])
