"""What curation knows of one image: measured once, when it is decoded; all that follows works on these kilobytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

SIDE = 64
"""Side of the grey thumbnail."""
COLOUR_SIDE = 16
"""Side of the colour map."""


@dataclass(frozen=True)
class Measurement:
    """Figures of one decoded image.

    ``grey`` (64, 64) uint8: luminance of the whole image squeezed to a square. ``colour`` (16, 16, 2) int8: half of
    (R - G) and of ((R + G) / 2 - B), likewise. ``contrast``: standard deviation of the channel that varies most.
    ``hash``: 64-bit difference hash, the smaller of the image's and of its mirror image's.
    """

    width: int
    height: int
    pixels_sha256: str
    contrast: float
    hash: int
    grey: np.ndarray
    colour: np.ndarray


def measure(pixels: np.ndarray) -> Measurement:
    """Measure decoded ``pixels``, (H, W, 3) uint8 RGB."""
    from PIL import Image

    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    method = Image.Resampling.BOX if min(width, height) >= SIDE else Image.Resampling.BILINEAR
    small = image.resize((SIDE, SIDE), method)
    grey = small.convert("L")
    red, green, blue = np.moveaxis(np.asarray(small.reduce(SIDE // COLOUR_SIDE), dtype=np.int16), 2, 0)
    colour = np.stack([(red - green) // 2, ((red + green) // 2 - blue) // 2], axis=-1).astype(np.int8)
    return Measurement(
        width,
        height,
        _digest(pixels),
        _contrast(image.histogram()),
        mirror_free_hash(np.asarray(grey.resize((9, 8), Image.Resampling.BOX))),
        np.asarray(grey),
        colour,
    )


def _digest(pixels: np.ndarray) -> str:
    digest = hashlib.sha256(f"{pixels.shape[0]} {pixels.shape[1]}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _contrast(histogram: list[int]) -> float:
    """Largest standard deviation of the three channels counted in ``histogram`` (3 x 256)."""
    counts = np.array(histogram, dtype=np.float64).reshape(3, 256)
    levels = np.arange(256)
    total = counts.sum(axis=1)
    mean = counts @ levels / total
    return round(float(np.sqrt(np.maximum(counts @ levels**2 / total - mean**2, 0).max())), 3)


def mirror_free_hash(grey: np.ndarray) -> int:
    """Difference hash of an (8, 9) image: which of two horizontal neighbours is brighter, 64 bits; the smaller of
    that of the image and of its mirror image."""
    levels = grey.astype(np.int16)
    bits = [levels[:, 1:] > levels[:, :-1], levels[:, ::-1][:, 1:] > levels[:, ::-1][:, :-1]]
    return min(int.from_bytes(np.packbits(side).tobytes(), "big") for side in bits)
