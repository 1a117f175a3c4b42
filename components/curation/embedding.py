"""What images are clustered by. Without a trained backbone: a hand-made descriptor of form, layout and colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.curation.blocks import by_blocks, fixed_blocks
from components.curation.candidates import SCALE, gradient_histograms, palette_descriptor, unit

DESCRIBE_BLOCK, SUM_BLOCK = 512, 4096
"""Images described at a time; rows whose sums are added together."""


def describe(grey: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Concepts in thumbnails ``grey`` (n, 64, 64) uint8 and colour maps (n, 16, 16, 2) int8: (n, 232) float32.

    Gradient histograms of a 4 x 4 grid (form), light and colour means of a 4 x 4 grid (layout) and the histograms of
    hue, saturation and light of the whole (palette), each part of unit length, weighted 1, 0.6 and 0.6.
    """
    count = len(grey)
    form = unit(np.sqrt(unit(gradient_histograms(grey, 4).reshape(count, -1))))
    light = grey.reshape(count, 4, 16, 4, 16).mean(axis=(2, 4), dtype=np.float32) * SCALE - 0.5
    tint = colour.reshape(count, 4, 4, 4, 4, 2).mean(axis=(2, 4), dtype=np.float32) * (4 * SCALE)
    layout = unit(np.concatenate([light.reshape(count, -1), tint.reshape(count, -1)], axis=1))
    return np.concatenate([form, 0.6 * layout, 0.6 * palette_descriptor(grey, colour)], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Projection:
    """``mean`` (d,) and orthonormal ``directions`` (d, c), float64: what makes principal components of any rows."""

    mean: np.ndarray
    directions: np.ndarray

    @classmethod
    def fit(cls, rows: np.ndarray, count: int, threads: int | None = None) -> Projection:
        """The ``count`` directions of largest variance of ``rows`` (n, d) float32, at most d, the largest first. The
        largest entry of a direction is positive."""
        dimensions = rows.shape[1]
        with fixed_blocks(len(rows), SUM_BLOCK, threads) as blocks:
            mean = sum(blocks(lambda span: rows[span].sum(axis=0, dtype=np.float64)), np.zeros(dimensions)) / len(rows)

            def outer(span: slice) -> np.ndarray:
                centred = rows[span] - mean
                return np.asarray(centred.T @ centred)

            covariance = sum(blocks(outer), np.zeros((dimensions, dimensions)))
            directions = np.linalg.eigh(covariance)[1][:, ::-1][:, : min(count, dimensions)]
            signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])])
        return cls(mean, directions * signs)

    def __call__(self, rows: np.ndarray, threads: int | None = None) -> np.ndarray:
        """``rows`` (n, d) float32 centred and turned onto the directions: (n, c) float32."""
        return by_blocks(
            lambda span: ((rows[span] - self.mean) @ self.directions).astype(np.float32), len(rows), SUM_BLOCK, threads
        )


class Descriptor:
    """The vectors of images by the descriptor made by hand, in the principal components of the first images given, or
    as a ``projection`` has them that was found before."""

    def __init__(self, components: int, projection: Projection | None = None) -> None:
        self._components = components
        self.projection = projection

    def __call__(self, grey: np.ndarray, colour: np.ndarray) -> np.ndarray:
        """(n, at most ``components``) float32 of unit length, of what :func:`describe` takes; n is at least 1."""
        rows = by_blocks(lambda span: describe(grey[span], colour[span]), len(grey), DESCRIBE_BLOCK)
        self.projection = self.projection or Projection.fit(rows, self._components)
        return unit(self.projection(rows)).astype(np.float32)
