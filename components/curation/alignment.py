"""Second look at candidate pairs: lay one image on the other and compare them, block by block and in colour.

An affine map between the two 64 x 64 thumbnails is refined from the window found before, by Gauss-Newton on the
difference of the images normalised in brightness and contrast, with weights that forgive what only one of them shows
(Baker and Matthews 2004, "Lucas-Kanade 20 years on"). What the pair then agrees in is judged by blocks, so that a small
difference in a plain image counts and a watermark over a rich one does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.curation.blocks import fixed_blocks
from components.curation.windows import SCALE, Hypotheses

BLOCK = 256
"""Pairs worked on at a time."""
ITERATIONS = 12
REFINE_SIDE, COMPARE_SIDE, COLOUR_SIDE = 24, 48, 12
"""Points along each axis at which thumbnails are sampled."""
CELL = 8
"""Side of a compared block, in points."""
TEXTURE = 0.15
"""Standard deviation within a block (of an image of standard deviation 1) from which it is textured."""
AGREES = 0.6
"""Correlation from which two textured blocks agree."""
FAINT = 8.0
"""Root mean square of a colour map (levels) below which an image counts as grey."""


@dataclass(frozen=True)
class Comparison:
    """How well pairs agree once aligned, each (m,).

    ``similarity``: mean correlation of the blocks textured in either image, weighted by texture. ``agreement``: share
    of that texture in blocks that agree. ``colour``: cosine of the colour maps; 1 where one of the two is grey.
    ``stretch``: ratio of the map's largest to its smallest scale in pixels of the images (1 for a true copy).
    ``overlap``: share of the template that the source covers.
    """

    similarity: np.ndarray
    agreement: np.ndarray
    colour: np.ndarray
    stretch: np.ndarray
    overlap: np.ndarray


def compare(
    grey: np.ndarray, colour: np.ndarray, sizes: np.ndarray, found: Hypotheses, threads: int | None = None
) -> Comparison:
    """Align and compare the pairs ``found`` of thumbnails ``grey`` (n, 64, 64), colour maps (n, 16, 16, 2) and image
    ``sizes`` (n, 2) width, height."""
    used, place = np.unique(np.concatenate([found.source, found.template]), return_inverse=True)
    source, template = place[: len(found.source)], place[len(found.source) :]
    image = grey[used].astype(np.float32) * SCALE
    smooth, crisp = _blur(image, 1.5), _blur(image, 0.7)
    slopes = np.zeros((2, *smooth.shape), np.float32)  # change over the whole frame of -1..1
    slopes[0, :, :, 1:-1] = (smooth[:, :, 2:] - smooth[:, :, :-2]) * (image.shape[1] / 4)
    slopes[1, :, 1:-1] = (smooth[:, 2:] - smooth[:, :-2]) * (image.shape[1] / 4)
    tint = np.moveaxis(colour[used].astype(np.float32) * 2, 3, 0)
    ratio = sizes[used].astype(np.float64)

    def work(span: slice) -> np.ndarray:
        start = np.zeros((span.stop - span.start, 2, 3), np.float32)
        start[:, 0, 0], start[:, 1, 1] = found.scale[span].T
        start[:, :, 2] = found.offset[span]
        pair = (source[span], template[span], found.mirrored[span])
        maps = _refine(smooth, slopes, *pair, start)
        similarity, agreement, overlap = _judge(crisp, *pair, maps)
        colours = _colour_cosine(tint, *pair, maps)
        stretch = _stretch(maps, ratio[pair[0]], ratio[pair[1]])
        return np.stack([similarity, agreement, colours, stretch, overlap])

    with fixed_blocks(len(source), BLOCK, threads) as blocks:
        parts = list(blocks(work))
    return Comparison(*np.concatenate(parts, axis=1)) if parts else Comparison(*np.zeros((5, 0)))


def flatness(grey: np.ndarray) -> np.ndarray:
    """Share of an image (n, 64, 64) whose 3 x 3 neighbourhoods span at most 3 grey levels, (n,): near 0 for
    photographs, above one half for icons, charts and drawings."""
    from scipy.ndimage import maximum_filter, minimum_filter

    size = (1, 3, 3)
    spread = maximum_filter(grey, size).astype(np.int16) - minimum_filter(grey, size)
    return (spread <= 3).mean(axis=(1, 2))


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    blurred: np.ndarray = gaussian_filter(image, (0, sigma, sigma))
    return blurred


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
        return cls(corner, x - left, y - top, side, inside.astype(np.float32))

    def of(self, images: np.ndarray) -> np.ndarray:
        flat = images.reshape(-1)
        upper = flat[self.corner] * (1 - self.right) + flat[self.corner + 1] * self.right
        below = self.corner + self.side
        lower = flat[below] * (1 - self.right) + flat[below + 1] * self.right
        values: np.ndarray = upper * (1 - self.down) + lower * self.down
        return values


def _map(maps: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.matmul(maps, points)


def _standard(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``values`` (m, q) at weighted mean 0 and standard deviation 1, and that deviation (m, 1)."""
    total = weights.sum(axis=1, keepdims=True) + 1e-6
    centred = values - (values * weights).sum(axis=1, keepdims=True) / total
    deviation = np.sqrt((weights * centred**2).sum(axis=1, keepdims=True) / total) + np.float32(1e-3)
    return centred / deviation, deviation


def _refine(
    smooth: np.ndarray,
    slopes: np.ndarray,
    source: np.ndarray,
    template: np.ndarray,
    mirrored: np.ndarray,
    start: np.ndarray,
) -> np.ndarray:
    """Affine maps (m, 2, 3) from template to source, improved from ``start``."""
    side = smooth.shape[1]
    points = _points(REFINE_SIDE)
    goal = _Sampling.at(template, _template_points(points, mirrored), side).of(smooth)
    maps = start.copy()
    moving = np.arange(len(maps))
    for _ in range(ITERATIONS):
        sampling = _Sampling.at(source[moving], _map(maps[moving], points), side)
        values, inside = sampling.of(smooth), sampling.inside
        difference = _standard(goal[moving], inside)[0] - _standard(values, inside)[0]
        weights = inside / (1 + (2 * difference) ** 2)
        mine, deviation = _standard(values, weights)
        difference = _standard(goal[moving], weights)[0] - mine
        across, down = sampling.of(slopes[0]) / deviation, sampling.of(slopes[1]) / deviation
        x, y = points[0], points[1]
        columns = [across * x, across * y, across, down * x, down * y, down, mine, np.ones_like(mine)]
        jacobian = np.stack(columns, axis=-1)
        weighted = (jacobian * weights[..., None]).transpose(0, 2, 1)
        normal = np.matmul(weighted, jacobian)
        right = np.matmul(weighted, difference[..., None])
        damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) / 8 + 1e-4
        normal += np.eye(8, dtype=np.float32) * damping[:, None, None]
        change = np.linalg.solve(normal, right)[:, :6, 0].reshape(-1, 2, 3)
        maps[moving] += np.clip(change, -0.08, 0.08)
        moving = moving[np.abs(change).max(axis=(1, 2)) > 1e-3]
        if not len(moving):
            break
    return maps


def _judge(
    crisp: np.ndarray, source: np.ndarray, template: np.ndarray, mirrored: np.ndarray, maps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(similarity, agreement, overlap) of aligned pairs; see :class:`Comparison`."""
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
    return similarity, (texture * (correlation > AGREES)).sum(axis=1) / weight, inside.mean(axis=1)


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
