"""Which pairs of images may be copies: nearest neighbours by two descriptors that copies hardly change."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from components.curation.blocks import by_blocks

BLOCK = 512
"""Images described at a time."""
BINS = 8
"""Orientations of the gradient histograms, over half a turn."""
SCALE = np.float32(1 / 255)


def unit(rows: np.ndarray) -> np.ndarray:
    """``rows`` (n, d) scaled to unit Euclidean length; rows of zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def gradient_histograms(grey: np.ndarray, cells: int) -> np.ndarray:
    """Histograms of gradient orientation, weighted by magnitude: (n, 64, 64) uint8 to (n, cells, cells, 8) float32.

    Orientation is that of the line (half a turn); a gradient is shared between its two nearest bins.
    """
    image = grey.astype(np.float32) * SCALE
    vertical, horizontal = np.zeros_like(image), np.zeros_like(image)
    vertical[:, 1:-1] = image[:, 2:] - image[:, :-2]
    horizontal[:, :, 1:-1] = image[:, :, 2:] - image[:, :, :-2]
    magnitude = np.sqrt(vertical**2 + horizontal**2)
    position = np.arctan2(vertical, horizontal) * np.float32(BINS / np.pi) + np.float32(BINS)  # 0 .. 2 * BINS
    lower = position.astype(np.int32)
    share = position - lower.astype(np.float32)
    cell = np.arange(grey.shape[1]) * cells // grey.shape[1]
    place = (np.arange(len(grey))[:, None, None] * cells + cell[:, None]) * cells + cell
    histograms = np.zeros(len(grey) * cells * cells * BINS)
    for bins, weight in ((lower, 1 - share), (lower + 1, share)):
        index = place * BINS + bins % BINS
        histograms += np.bincount(index.ravel(), (weight * magnitude).ravel(), minlength=len(histograms))
    return histograms.reshape(len(grey), cells, cells, BINS).astype(np.float32)


def shape_descriptor(grey: np.ndarray) -> np.ndarray:
    """(n, 64) float32 of unit length: gradient histograms of a 4 x 4 grid, folded so that a mirror image has the same.

    Changes little under re-encoding, scale, light, small crops and rotations.
    """
    histograms = gradient_histograms(grey, 4)
    mirrored = histograms[:, :, ::-1][..., (0, 7, 6, 5, 4, 3, 2, 1)]
    folded = (histograms + mirrored)[:, :, :2]
    return unit(np.sqrt(unit(folded.reshape(len(grey), -1))))


def palette_descriptor(grey: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """(n, 56) float32 of unit length: histograms of hue (weighted by saturation), saturation and luminance.

    Changes little under crops, frames, captions and mirrors.
    """
    opponent = colour.reshape(len(colour), -1, 2).astype(np.float32) * (2 * SCALE)
    saturation = np.minimum(np.hypot(opponent[..., 0], opponent[..., 1]), 1)
    hue = np.arctan2(opponent[..., 1], opponent[..., 0]) / np.float32(2 * np.pi) + 0.5
    light = grey.reshape(len(grey), -1).astype(np.float32) * SCALE
    chroma = np.concatenate([_histogram(hue, 16, saturation), _histogram(saturation, 8)], axis=1)
    return unit(np.concatenate([0.5 * unit(np.sqrt(chroma)), 0.3 * unit(_histogram(light, 32))], axis=1))


def _histogram(values: np.ndarray, bins: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Histogram of each row of ``values`` (n, m) in 0..1: (n, bins) float32."""
    rows = np.arange(len(values))[:, None]
    index = rows * bins + np.clip((values * bins).astype(np.int64), 0, bins - 1)
    flat = None if weights is None else weights.ravel()
    counts = np.bincount(index.ravel(), flat, minlength=len(values) * bins)
    return counts.reshape(len(values), bins).astype(np.float32)


SHAPE = 64
"""Numbers of a shape descriptor, which come first in :func:`descriptors`."""


def descriptors(grey: np.ndarray, colour: np.ndarray, threads: int | None = None) -> np.ndarray:
    """Shape and palette descriptors of thumbnails side by side: (n, 120) float32."""
    if not len(grey):
        return np.zeros((0, 120), np.float32)
    shape = by_blocks(lambda span: shape_descriptor(grey[span]), len(grey), BLOCK, threads)
    palette = by_blocks(lambda span: palette_descriptor(grey[span], colour[span]), len(grey), BLOCK, threads)
    return np.concatenate([shape, palette], axis=1)


TABLE = 1 << 24
"""Similarities held at a time by one thread; fewer images are compared at once where there are many others."""


def nearest_neighbours(rows: np.ndarray, count: int, threads: int | None, asked: np.ndarray) -> np.ndarray:
    """The ``count`` nearest others among ``rows`` (n, d), unit vectors, of those ``asked`` for (m,), by brute force.

    (m, at most ``count``) int64, in no order among themselves; n is at least 2 and m at least 1.
    """
    count = min(count, len(rows) - 1)

    def search(span: slice) -> np.ndarray:
        similarity = rows[asked[span]] @ rows.T
        similarity[np.arange(span.stop - span.start), asked[span]] = -np.inf
        return np.argpartition(-similarity, count - 1, axis=1)[:, :count].astype(np.int64)

    return by_blocks(search, len(asked), max(16, min(BLOCK, TABLE // len(rows))), threads)


def candidate_pairs(
    described: np.ndarray,
    hashes: np.ndarray,
    neighbours: int,
    threads: int | None = None,
    fresh: np.ndarray | None = None,
) -> np.ndarray:
    """Pairs (m, 2) int64, i < j, sorted, of images with these :func:`descriptors` that may be copies of each other.

    Neighbours by shape, and by shape and palette together (a grey copy keeps the one, a framed copy the other); and
    images of equal difference hash, each with the next, which ties large groups of plain copies together even where
    they outnumber the neighbours. Few images are all compared with all; of many the neighbours are searched for.
    ``fresh`` (n,) bool: only pairs with one of these, which are compared with all.
    """
    if len(described) < 2 or (fresh is not None and not fresh.any()):
        return np.zeros((0, 2), np.int64)
    spaces = np.ascontiguousarray(described[:, :SHAPE]), unit(described)
    if fresh is None:
        from components.curation.compute import Compute
        from components.curation.neighbours import neighbours as nearest

        asked, compute = np.arange(len(described)), Compute(threads=threads)
        found = [_pairs(asked, nearest(rows, neighbours, compute=compute).index) for rows in spaces]
    else:
        asked = np.flatnonzero(fresh)
        found = [_pairs(asked, nearest_neighbours(rows, neighbours, threads, asked)) for rows in spaces]
    order = np.argsort(hashes, kind="stable")
    equal = hashes[order][1:] == hashes[order][:-1]
    if fresh is not None:
        equal &= fresh[order][1:] | fresh[order][:-1]
    found.append(np.stack([order[:-1][equal], order[1:][equal]], axis=1))
    return _unique(found, len(described))


def _pairs(rows: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    return np.stack([np.repeat(rows, neighbours.shape[1]), neighbours.ravel().astype(np.int64)], axis=1)


def _unique(pairs: Iterable[np.ndarray], count: int) -> np.ndarray:
    both = np.concatenate([np.sort(part, axis=1) for part in pairs])
    codes = np.unique(both[:, 0] * count + both[:, 1])
    return np.stack([codes // count, codes % count], axis=1)
