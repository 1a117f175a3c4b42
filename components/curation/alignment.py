"""Second look at candidate pairs: lay one image on the other and compare them, block by block and in colour.

An affine map between the two 64 x 64 thumbnails is refined from the window found before, by Gauss-Newton on the
difference of the images normalised in brightness and contrast, with weights that forgive what only one of them shows
(Baker and Matthews 2004, "Lucas-Kanade 20 years on"). What the pair then agrees in is judged by blocks, so that a small
difference in a plain image counts and a watermark over a rich one does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.curation.blocks import by_blocks
from components.curation.windows import SCALE, Hypotheses

BLOCK = 256
"""Pairs worked on at a time."""
COARSE_ITERATIONS, FINE_ITERATIONS = 5, 8
COARSE_SIDE, FINE_SIDE, COMPARE_SIDE, COLOUR_SIDE = 16, 24, 48, 12
"""Points along each axis at which thumbnails are sampled."""
PROMISING = 0.84
"""Correlation of the smoothed images after the coarse steps from which a pair is looked at further."""
CELL = 8
"""Side of a compared block, in points."""
TEXTURE = 0.15
"""Standard deviation within a block (of an image of standard deviation 1) from which it is textured."""
AGREES = 0.6
"""Correlation from which two textured blocks agree."""
FEW = 3
"""Textured blocks below which the middle of an image says nothing."""
FAINT = 8.0
"""Root mean square of a colour map (levels) below which an image counts as grey."""


@dataclass(frozen=True)
class Comparison:
    """How well pairs agree once aligned, each (m,).

    ``similarity``: mean correlation of the blocks textured in either image, weighted by texture. ``agreement``: share
    of that texture in blocks that agree. ``middle``: mean correlation of the textured blocks away from the edges, where
    a common frame or background does not help (1 where there are few). ``colour``: cosine of the colour maps; 1 where
    one of the two is grey.
    ``stretch``: ratio of the map's largest to its smallest scale in pixels of the images (1 for a true copy).
    ``overlap``: share of the template that the source covers. ``maps`` (m, 2, 3): the alignment, from the template's
    -1..1 (mirrored first) to the source's. All are 0 for pairs that are given up early.
    """

    similarity: np.ndarray
    agreement: np.ndarray
    middle: np.ndarray
    colour: np.ndarray
    stretch: np.ndarray
    overlap: np.ndarray
    maps: np.ndarray


def compare(
    grey: np.ndarray, colour: np.ndarray, sizes: np.ndarray, found: Hypotheses, threads: int | None = None
) -> Comparison:
    """Align and compare the pairs ``found`` of thumbnails ``grey`` (n, 64, 64), colour maps (n, 16, 16, 2) and image
    ``sizes`` (n, 2) width, height."""

    def work(span: slice) -> np.ndarray:
        pair_source, pair_template, mirrored = found.source[span], found.template[span], found.mirrored[span]
        used, place = np.unique(np.concatenate([pair_source, pair_template]), return_inverse=True)
        pair = (place[: len(pair_source)], place[len(pair_source) :], mirrored)
        image = grey[used].astype(np.float32) * SCALE
        smooth = blur(image, 1.5)
        start = np.zeros((len(pair_source), 2, 3), np.float32)
        start[:, 0, 0], start[:, 1, 1] = found.scale[span].T
        start[:, :, 2] = found.offset[span]
        slopes = gradients(smooth)
        maps = refine(smooth, slopes, *pair, start, COARSE_SIDE, COARSE_ITERATIONS)
        kept = np.flatnonzero(_correlation(smooth, *pair, maps) >= PROMISING)
        result = np.zeros((len(pair_source), 6 + 6))
        if len(kept):
            pair = (pair[0][kept], pair[1][kept], mirrored[kept])
            maps = refine(smooth, slopes, *pair, maps[kept], FINE_SIDE, FINE_ITERATIONS)
            similarity, agreement, middle, overlap = _judge(blur(image, 0.7), *pair, maps)
            tint = np.moveaxis(colour[used].astype(np.float32) * 2, 3, 0)
            scales = [sizes[side[kept]].astype(np.float64) for side in (pair_source, pair_template)]
            figures = [
                similarity,
                agreement,
                middle,
                _colour_cosine(tint, *pair, maps),
                _stretch(maps, *scales),
                overlap,
            ]
            result[kept] = np.column_stack([*figures, maps.reshape(-1, 6)])
        return result

    result = by_blocks(work, len(found.source), BLOCK, threads) if len(found.source) else np.zeros((0, 6 + 6))
    similarity, agreement, middle, tint, stretch, overlap = result[:, :6].T
    maps = result[:, 6:].astype(np.float32).reshape(-1, 2, 3)
    return Comparison(similarity, agreement, middle, tint, stretch, overlap, maps)


def flatness(grey: np.ndarray) -> np.ndarray:
    """Share of an image (n, 64, 64) uint8 whose 3 x 3 neighbourhoods span at most 3 grey levels, (n,): near 0 for
    photographs, above one half for icons, charts and drawings."""

    def work(span: slice) -> np.ndarray:
        low = high = grey[span]
        for axis in (1, 2):
            low, high = _of_three(low, axis, np.minimum), _of_three(high, axis, np.maximum)
        return np.asarray((high - low <= 3).mean(axis=(1, 2)))

    return by_blocks(work, len(grey), BLOCK)


def _of_three(image: np.ndarray, axis: int, best: np.ufunc) -> np.ndarray:
    """Smallest or largest of each pixel and its two neighbours along ``axis``."""
    result = image.copy()
    before = [slice(None)] * 3
    after = [slice(None)] * 3
    before[axis], after[axis] = slice(None, -1), slice(1, None)
    first, last = tuple(before), tuple(after)
    best(result[last], image[first], out=result[last])
    best(result[first], image[last], out=result[first])
    return result


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of each of (n, side, side) float32."""
    import cv2

    blurred = np.empty_like(image)
    for source, target in zip(image, blurred, strict=True):
        cv2.GaussianBlur(source, (0, 0), sigma, dst=target, borderType=cv2.BORDER_REPLICATE)
    return blurred


def gradients(image: np.ndarray) -> np.ndarray:
    """Horizontal and vertical change of (n, side, side) per half frame (1 in -1..1): (2, n, side, side)."""
    slopes = np.zeros((2, *image.shape), np.float32)
    factor = np.float32(image.shape[1] / 4)
    slopes[0, :, :, 1:-1] = (image[:, :, 2:] - image[:, :, :-2]) * factor
    slopes[1, :, 1:-1] = (image[:, 2:] - image[:, :-2]) * factor
    return slopes


def _points(side: int) -> np.ndarray:
    """(3, side * side) homogeneous points of a regular grid in -1..1."""
    steps = (np.arange(side) + 0.5) / side * 2 - 1
    y, x = np.meshgrid(steps, steps, indexing="ij")
    return np.stack([x.ravel(), y.ravel(), np.ones(side * side)]).astype(np.float32)


def _template_points(points: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    where = np.repeat(points[None, :2], len(mirrored), axis=0)
    where[mirrored, 0] *= -1
    return where


@dataclass(frozen=True)
class _Sampling:
    """Where (m, 2, q) points in -1..1 fall in images: bilinear weights, computed once for several image stacks."""

    corner: np.ndarray
    right: np.ndarray
    down: np.ndarray
    side: int
    inside: np.ndarray
    """(m, q) float32, 1 for points inside the image, else 0."""

    @classmethod
    def at(cls, index: np.ndarray, where: np.ndarray, side: int) -> _Sampling:
        x, y = ((where + 1) / 2 * side - np.float32(0.5)).transpose(1, 0, 2)
        inside = (np.minimum(x, y) >= -0.5) & (np.maximum(x, y) <= side - 0.5)
        x, y = np.clip(x, 0, side - 1.001), np.clip(y, 0, side - 1.001)
        left, top = x.astype(np.int32), y.astype(np.int32)
        corner = (index * side * side)[:, None] + top * side + left
        right, down = x - left.astype(np.float32), y - top.astype(np.float32)
        return cls(corner, right, down, side, inside.astype(np.float32))

    def of(self, images: np.ndarray) -> np.ndarray:
        flat = images.reshape(-1)
        upper = flat.take(self.corner)
        upper += (flat.take(self.corner + 1) - upper) * self.right
        below = self.corner + self.side
        lower = flat.take(below)
        lower += (flat.take(below + 1) - lower) * self.right
        lower -= upper
        lower *= self.down
        lower += upper
        return np.asarray(lower)


def _map(maps: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.matmul(maps, points)


def _standard(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``values`` (m, q) at weighted mean 0 and standard deviation 1, and that deviation (m, 1)."""
    total = weights.sum(axis=1, keepdims=True) + 1e-6
    centred = values - (values * weights).sum(axis=1, keepdims=True) / total
    deviation = np.sqrt((weights * centred**2).sum(axis=1, keepdims=True) / total) + np.float32(1e-3)
    return centred / deviation, deviation


def refine(
    smooth: np.ndarray,
    slopes: np.ndarray,
    source: np.ndarray,
    template: np.ndarray,
    mirrored: np.ndarray,
    start: np.ndarray,
    count: int,
    iterations: int,
) -> np.ndarray:
    """Affine maps (m, 2, 3) from template to source, improved from ``start`` at ``count`` x ``count`` points."""
    side = smooth.shape[1]
    points = _points(count)
    goal = _Sampling.at(template, _template_points(points, mirrored), side).of(smooth)
    maps = start.copy()
    moving = np.arange(len(maps))
    for _ in range(iterations):
        sampling = _Sampling.at(source[moving], _map(maps[moving], points), side)
        values, inside = sampling.of(smooth), sampling.inside
        difference = _standard(goal[moving], inside)[0] - _standard(values, inside)[0]
        weights = inside / (1 + (2 * difference) ** 2)
        mine, deviation = _standard(values, weights)
        difference = _standard(goal[moving], weights)[0] - mine
        across, down = sampling.of(slopes[0]) / deviation, sampling.of(slopes[1]) / deviation
        x, y = points[0], points[1]
        rows = [across * x, across * y, across, down * x, down * y, down, mine, np.ones_like(mine)]
        jacobian = np.stack(rows, axis=1)
        weighted = jacobian * weights[:, None]
        normal = np.matmul(weighted, jacobian.transpose(0, 2, 1))
        right = np.matmul(weighted, difference[..., None])
        damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) / 8 + 1e-4
        normal += np.eye(8, dtype=np.float32) * damping[:, None, None]
        change = np.linalg.solve(normal, right)[:, :6, 0].reshape(-1, 2, 3)
        maps[moving] += np.clip(change, -0.08, 0.08)
        moving = moving[np.abs(change).max(axis=(1, 2)) > 1e-3]
        if not len(moving):
            break
    return maps


def _correlation(
    smooth: np.ndarray, source: np.ndarray, template: np.ndarray, mirrored: np.ndarray, maps: np.ndarray
) -> np.ndarray:
    """Correlation (m,) of pairs as they are aligned now, where they overlap."""
    side, points = smooth.shape[1], _points(COARSE_SIDE)
    sampling = _Sampling.at(source, _map(maps, points), side)
    goal = _Sampling.at(template, _template_points(points, mirrored), side).of(smooth)
    inside = sampling.inside
    product = _standard(sampling.of(smooth), inside)[0] * _standard(goal, inside)[0]
    return np.asarray((product * inside).sum(axis=1) / (inside.sum(axis=1) + 1e-6))


def laid_on(
    images: np.ndarray, source: np.ndarray, template: np.ndarray, mirrored: np.ndarray, maps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sources and templates (m, side, side) of aligned pairs of ``images`` (k, side, side) at the pixels of the
    templates, and 1 where the source has such a pixel, else 0; all float32."""
    side = images.shape[1]
    points = _points(side)
    sampling = _Sampling.at(source, _map(maps, points), side)
    other = _Sampling.at(template, _template_points(points, mirrored), side).of(images)
    mine, other, inside = (values.reshape(-1, side, side) for values in (sampling.of(images), other, sampling.inside))
    return mine, other, inside


def _judge(
    crisp: np.ndarray, source: np.ndarray, template: np.ndarray, mirrored: np.ndarray, maps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(similarity, agreement, middle, overlap) of aligned pairs; see :class:`Comparison`."""
    side, points = crisp.shape[1], _points(COMPARE_SIDE)
    sampling = _Sampling.at(source, _map(maps, points), side)
    inside = sampling.inside
    mine = _standard(sampling.of(crisp), inside)[0]
    other = _standard(_Sampling.at(template, _template_points(points, mirrored), side).of(crisp), inside)[0]
    seen = _cells(inside)
    total = seen.sum(axis=-1) + 1e-6
    centred = []
    for values in (_cells(mine), _cells(other)):
        mean = (values * seen).sum(axis=-1, keepdims=True) / total[..., None]
        centred.append((values - mean) * seen)
    variance = [(values**2).sum(axis=-1) / total for values in centred]
    covariance = (centred[0] * centred[1]).sum(axis=-1) / total
    correlation = np.clip(covariance / (np.sqrt(variance[0] * variance[1]) + 0.02), -1, 1)
    texture = np.sqrt(np.maximum(*variance))
    texture *= (texture > TEXTURE) & (seen.mean(axis=-1) > 0.6)
    weight = texture.sum(axis=1) + 1e-6
    similarity = (texture * correlation).sum(axis=1) / weight
    agreement = (texture * (correlation > AGREES)).sum(axis=1) / weight
    textured = (texture > 0) & _away_from_edges()
    count = textured.sum(axis=1)
    middle = np.where(count >= FEW, (textured * correlation).sum(axis=1) / np.maximum(count, 1), 1.0)
    return similarity, agreement, middle, inside.mean(axis=1)


def _away_from_edges() -> np.ndarray:
    """Which of the 36 blocks do not lie at the edge."""
    place = np.arange(COMPARE_SIDE // CELL)
    inner = (place > 0) & (place < len(place) - 1)
    return np.asarray(inner[:, None] & inner).ravel()


def _cells(values: np.ndarray) -> np.ndarray:
    """(m, 48 * 48) as (m, 36, 64): the points of each block together."""
    count = COMPARE_SIDE // CELL
    return values.reshape(-1, count, CELL, count, CELL).transpose(0, 1, 3, 2, 4).reshape(-1, count**2, CELL**2)


def _colour_cosine(
    tint: np.ndarray, source: np.ndarray, template: np.ndarray, mirrored: np.ndarray, maps: np.ndarray
) -> np.ndarray:
    side, points = tint.shape[2], _points(COLOUR_SIDE)
    here = _Sampling.at(source, _map(maps, points), side)
    there = _Sampling.at(template, _template_points(points, mirrored), side)
    mine = np.concatenate([here.of(channel) * here.inside for channel in tint], axis=1)
    other = np.concatenate([there.of(channel) * here.inside for channel in tint], axis=1)
    lengths = np.linalg.norm(mine, axis=1), np.linalg.norm(other, axis=1)
    faint = np.minimum(*lengths) < FAINT * np.sqrt(mine.shape[1])
    cosine = (mine * other).sum(axis=1) / np.maximum(lengths[0] * lengths[1], 1e-6)
    return np.where(faint, 1.0, cosine)


def _stretch(maps: np.ndarray, source_size: np.ndarray, template_size: np.ndarray) -> np.ndarray:
    linear = source_size[:, :, None] * maps[:, :, :2] / template_size[:, None, :]
    scales = np.linalg.svd(linear, compute_uv=False)
    ratio: np.ndarray = scales[:, 0] / np.maximum(scales[:, 1], 1e-9)
    return ratio
