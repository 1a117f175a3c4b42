"""What curation knows of one image: measured once, when it is decoded; all that follows works on these kilobytes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SIDE = 64
"""Side of the grey thumbnail."""
COLOUR_SIDE = 16
"""Side of the colour map."""
CLEAR_CONTRAST = 16.0
"""Contrast (levels) that need not be known better: from here on that of the thumbnail is enough."""


@dataclass(frozen=True)
class Measurement:
    """Figures of one decoded image.

    ``grey`` (64, 64) uint8: luminance of the whole image squeezed to a square. ``colour`` (16, 16, 2) int8: half of
    (R - G) and of ((R + G) / 2 - B), likewise. ``contrast``: standard deviation of the channel that varies most, of all
    pixels, or of the thumbnail where that is ``CLEAR_CONTRAST`` already (a mean varies no more than what it is of).
    ``hash``: 64-bit difference hash, the smaller of the image's and of its mirror image's.

    ``pixels_sha256`` is equal for equal pixels: sha256 over sides, a 128-bit authentication code of all pixels (GMAC,
    NIST SP 800-38D, under a fixed key), ``grey`` and ``colour``. The code takes a fifteenth of the time of sha256 and
    tells apart whatever nobody made to collide; pictures made to collide must look the same in the thumbnail too.
    """

    width: int
    height: int
    pixels_sha256: str
    contrast: float
    hash: int
    grey: np.ndarray
    colour: np.ndarray


@dataclass(frozen=True)
class Sketch:
    """What :func:`measurements` needs of an image whose pixels are gone: ``small`` is its thumbnail (64, 64, 3) and
    ``code`` its authentication code."""

    width: int
    height: int
    contrast: float
    code: bytes
    small: np.ndarray


def sketch(pixels: np.ndarray) -> Sketch:
    """Look at decoded ``pixels``, (H, W, 3) uint8 RGB, once."""
    height, width = pixels.shape[:2]
    pixels = np.ascontiguousarray(pixels)
    small = thumbnail(pixels)
    contrast = _contrast(small)
    if contrast < CLEAR_CONTRAST or pixels.size < small.size:
        contrast = _contrast(pixels)
    return Sketch(width, height, contrast, _cipher().encrypt(bytes(12), b"", pixels.reshape(-1).data), small)


def measurements(sketches: Sequence[Sketch]) -> list[Measurement]:
    """The figures of some images (at least one), in their order; one image has the same figures in any company."""
    import cv2

    count = len(sketches)
    column = np.concatenate([each.small for each in sketches])  # one below the other: all steps keep to an image
    grey = cv2.cvtColor(column, cv2.COLOR_RGB2GRAY)
    cells = cv2.resize(column, (COLOUR_SIDE, count * COLOUR_SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
    red, green, blue = cells[..., 0], cells[..., 1], cells[..., 2]
    colour = np.stack([(red - green) >> 1, (((red + green) >> 1) - blue) >> 1], axis=-1).astype(np.int8)
    hashes = mirror_free_hashes(cv2.resize(grey, (9, count * 8), interpolation=cv2.INTER_AREA).reshape(count, 8, 9))
    greys, colours = grey.reshape(count, SIDE, SIDE), colour.reshape(count, COLOUR_SIDE, COLOUR_SIDE, 2)
    return [
        Measurement(each.width, each.height, _digest(each, *maps), each.contrast, bits, *maps)
        for each, bits, *maps in zip(sketches, hashes.tolist(), greys, colours, strict=True)
    ]


def measure(pixels: np.ndarray) -> Measurement:
    """Measure decoded ``pixels``, (H, W, 3) uint8 RGB."""
    return measurements([sketch(pixels)])[0]


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """``pixels`` (H, W, 3) uint8 squeezed or stretched to (64, 64, 3): nearly the means of its cells.

    Sides of 256 and more are halved by means; what is left is interpolated linearly to 128 and halved. What has no side
    above 64 is interpolated at once.
    """
    import cv2

    if max(pixels.shape[:2]) <= SIDE:
        return np.asarray(cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR))
    small, down, across = pixels, 1, 1
    while max(small.shape[:2]) >= 4 * SIDE:
        rows, columns = (2 if side >= 4 * SIDE else 1 for side in small.shape[:2])
        height, width = small.shape[0] // rows, small.shape[1] // columns
        whole = small[: height * rows, : width * columns]
        small = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
        down, across = down * rows, across * columns
    # scales, not a size: they go by the whole image, of which halving may have left out a last odd row or column
    scale_y, scale_x = 2 * SIDE * down / pixels.shape[0], 2 * SIDE * across / pixels.shape[1]
    double = cv2.resize(small, None, fx=scale_x, fy=scale_y, interpolation=cv2.INTER_LINEAR)
    missing = (2 * SIDE - double.shape[0], 2 * SIDE - double.shape[1])
    if any(missing):
        double = cv2.copyMakeBorder(double, 0, missing[0], 0, missing[1], cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(double, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


@functools.cache
def _cipher() -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(b"dino-foundry pix")


def _digest(sketch: Sketch, grey: np.ndarray, colour: np.ndarray) -> str:
    sides = f"{sketch.height} {sketch.width}\n".encode()
    return hashlib.sha256(sides + sketch.code + grey.tobytes() + colour.tobytes()).hexdigest()


def _contrast(pixels: np.ndarray) -> float:
    """Largest standard deviation of the three channels."""
    import cv2

    return round(float(cv2.meanStdDev(pixels)[1].max()), 3)


def mirror_free_hashes(grey: np.ndarray) -> np.ndarray:
    """Difference hashes, (n,) uint64, of images (n, 8, 9): which of two horizontal neighbours is brighter, 64 bits;
    the smaller of that of the image and of its mirror image."""
    mirrored = grey[:, :, ::-1]
    bits = np.stack([side[:, :, 1:] > side[:, :, :-1] for side in (grey, mirrored)])
    codes = np.packbits(bits.reshape(2, len(grey), 64), axis=-1).view(">u8")[..., 0]
    return codes.min(axis=0).astype(np.uint64)
