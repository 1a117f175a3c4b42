"""EXIF orientation: read from a raw EXIF block, applied to an array."""

from __future__ import annotations

import struct

import numpy as np

_TAG = 0x0112
_KINDS = {3: "H", 4: "I"}


def orientation_of(exif: bytes | None) -> int:
    """Orientation 1..8 of an EXIF block (with or without its ``Exif`` prefix); 1 where it is missing or broken.

    Reads one value instead of parsing the block, so a hostile block costs nothing.
    """
    if not exif:
        return 1
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 10:
        return 1
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return 1
    (entries,) = struct.unpack_from(order + "H", exif, start)
    for position in range(start + 2, min(start + 2 + 12 * entries, len(exif) - 11), 12):
        tag, kind, count = struct.unpack_from(order + "HHI", exif, position)
        if tag == _TAG:
            (value,) = struct.unpack_from(order + _KINDS.get(kind, "H"), exif, position + 8)
            return value if kind in _KINDS and count == 1 and 1 <= value <= 8 else 1
    return 1


def swaps_sides(orientation: int) -> bool:
    """Whether the upright image has width and height exchanged."""
    return orientation >= 5


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """``pixels`` (H, W, ...) turned so that row 0 is the top of the scene and column 0 its left (a view).

    EXIF 2.32, tag 0x0112: the value says where the stored first row and column lie in the scene.
    """
    if orientation == 1:
        return pixels
    if swaps_sides(orientation):
        pixels = pixels.swapaxes(0, 1)
    mirrored = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
    rows, columns = mirrored.get(orientation, (1, 1))
    return pixels[::rows, ::columns]
