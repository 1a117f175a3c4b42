"""Plain frames (bars of one colour along the sides): what lies inside them."""

from __future__ import annotations

import numpy as np

PLAIN = 8
"""Grey levels that the lines of one bar span at most."""
STEP = 24
"""Grey levels by which the picture must differ from the bar, along at least half of the line where it begins. A white
margin around a drawing does not end like this: it is part of the picture."""
MEANINGFUL = 6.0
"""Standard deviation (grey levels) that the picture inside has at least."""


def inner_pictures(
    grey: np.ndarray, colour: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What lies inside the frames of those of n images that have one, f of them.

    Takes thumbnails (n, 64, 64) uint8, colour maps (n, 16, 16, 2) int8 and sizes (n, 2) width, height. Gives the images
    (f,) int64; thumbnails, colour maps and sizes (float64) of their inner pictures; and where these lie in the images,
    (f, 4) float64 rows (centre x, centre y, half width, half height) in a frame of -1..1.
    """
    side = grey.shape[1]
    edges = bars(grey) / side
    framed = np.flatnonzero(edges.any(axis=0))
    left, right, top, bottom = edges[:, framed]
    boxes = np.stack([left - right, top - bottom, 1 - left - right, 1 - top - bottom], axis=1)
    inside = np.empty((len(framed), side, side), np.uint8)
    tint = np.empty((len(framed), *colour.shape[1:]), np.int8)
    for place, (image, box) in enumerate(zip(framed, boxes, strict=True)):
        inside[place] = within(grey[image, :, :, None], box)[..., 0]
        tint[place] = within(colour[image], box)
    full = inside.reshape(len(framed), side**2).std(axis=1) >= MEANINGFUL
    return framed[full], inside[full], tint[full], (sizes[framed] * boxes[:, 2:])[full], boxes[full]


def within(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """What ``box`` (centre x, centre y, half width, half height in a frame of -1..1) shows of ``image`` (side, side,
    channels), scaled to its size; of the same type."""
    x, y, half_width, half_height = box
    across, down = _resampling(x, half_width, len(image)), _resampling(y, half_height, len(image))
    scaled = down @ image.transpose(2, 0, 1).astype(np.float32) @ across.T
    return np.rint(scaled).astype(image.dtype).transpose(1, 2, 0)


def bars(grey: np.ndarray) -> np.ndarray:
    """Widths of the bars at the left, right, top and bottom of each image (n, 64, 64): (4, n) in thumbnail pixels, at
    most a quarter of the side; fractions count."""
    columns = grey.transpose(0, 2, 1)
    return np.stack([_bar(columns), _bar(columns[:, ::-1]), _bar(grey), _bar(grey[:, ::-1])])


def _bar(lines: np.ndarray) -> np.ndarray:
    """Width (n,) of the bar that begins at the first of ``lines`` (n, side, length).

    The line in which it ends is taken as a mixture of bar and picture, in the proportion that explains it best.
    """
    side = lines.shape[1]
    smallest = np.minimum.accumulate(lines.min(axis=2).astype(np.int16), axis=1)
    largest = np.maximum.accumulate(lines.max(axis=2).astype(np.int16), axis=1)
    whole = (largest - smallest <= PLAIN).sum(axis=1)
    found = (whole > 0) & (whole < side // 4)
    whole = np.where(found, whole, 1)
    row = np.arange(len(lines))
    picture = lines[row, whole + 1].astype(np.float32)
    contrast = lines[row, whole - 1].astype(np.float32) - picture
    found &= (np.abs(contrast) >= STEP).mean(axis=1) >= 0.5
    share = ((lines[row, whole] - picture) * contrast).sum(axis=1) / np.maximum((contrast**2).sum(axis=1), 1)
    return np.asarray(np.where(found, whole + np.clip(share, 0, 1), 0))


def _resampling(centre: float, half: float, side: int) -> np.ndarray:
    """(side, side) float32 bilinear weights that stretch a part of a line of pixels (in -1..1) over the whole line,
    from pixels that lie in the part entirely."""
    start, stop = (centre - half + 1) / 2 * side, (centre + half + 1) / 2 * side
    place = start + (np.arange(side) + 0.5) / side * (stop - start) - 0.5
    place = np.clip(place, np.ceil(start - 1e-6), np.floor(stop + 1e-6) - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(side))).astype(np.float32)
