"""Samples that are not 8 bits wide, scaled to 8 bits: full range for integers of a known width, own range otherwise."""

from __future__ import annotations

import functools

import numpy as np

from foundry.images.colour import STRIP_PIXELS


@functools.lru_cache(maxsize=4)
def _scale_table(maximum: int) -> np.ndarray:
    values = np.minimum(np.arange(65536, dtype=np.float64), maximum)
    return np.rint(values * 255 / maximum).astype(np.uint8)


def scale_integers(values: np.ndarray, maximum: int) -> np.ndarray:
    """round(value * 255 / maximum) as uint8, for integers 0..``maximum`` <= 65535 of any shape."""
    return _scale_table(maximum)[values.astype(np.uint16, copy=False)]


def scale_range(values: np.ndarray) -> np.ndarray:
    """round(255 * (value - low) / (high - low)) as uint8, low and high being the extremes of the finite values.

    For (H, W) floats and 32-bit integers, whose nominal range says nothing. NaN and -inf become 0, +inf 255, and an
    image of one value 0.
    """
    height, width = values.shape
    step = max(1, STRIP_PIXELS // width)
    strips = [slice(top, top + step) for top in range(0, height, step)]
    low, high = np.inf, -np.inf
    for rows in strips:
        finite = values[rows][np.isfinite(values[rows])]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    result = np.zeros(values.shape, np.uint8)
    if low > high:
        return result
    for rows in strips:
        strip = values[rows].astype(np.float64)
        scaled = np.zeros_like(strip)
        if high > low:
            with np.errstate(invalid="ignore"):
                scaled = (strip - low) * (255 / (high - low))
        scaled = np.where(np.isnan(strip) | (strip == -np.inf), 0.0, np.where(strip == np.inf, 255.0, scaled))
        result[rows] = np.rint(scaled).astype(np.uint8)
    return result


def join_bytes(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """uint16 samples of their two bytes."""
    return (high.astype(np.uint16) << np.uint16(8)) | low


def unpremultiplied(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Straight uint16 ``colour`` (H, W, 3) of one that was multiplied by ``alpha`` / 65535 (uint16, (H, W)).

    Where alpha is 0 the colour does not show; it is returned as it was.
    """
    result = colour.copy()
    height, width = alpha.shape
    step = max(1, STRIP_PIXELS // width)
    for top in range(0, height, step):
        rows = slice(top, top + step)
        weight = alpha[rows, :, None].astype(np.float64)
        straight = np.rint(colour[rows] * 65535.0 / np.maximum(weight, 1.0))
        result[rows] = np.where(weight > 0, np.minimum(straight, 65535.0), colour[rows]).astype(np.uint16)
    return result
