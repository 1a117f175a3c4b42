"""The nearest centroid of each of some rows: a table of scores in tiles of the size of a core's cache.

The nearest centroid c of a row x is that of largest x . c - |c|^2 / 2: a matrix product of the rows as they lie in
memory, and a bias for each centroid. Both, and the maxima of a tile, are computed while it lies in the cache.
Where torch has MKL, centroids are brought once a pass into the order in which its product reads them, which every tile
would else do again.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 256
"""Rows of a tile where there are many centroids."""
GRAIN = 16
"""Tiles have a multiple of so many rows, which suits the kernels of matrix products."""


def tile_shape(numbers: int, dimensions: int, clusters: int, most_rows: int) -> tuple[int, int]:
    """(rows, columns) of a tile of at most ``numbers`` scores; the rows with their coordinates are no more either."""
    widest = max(GRAIN, numbers // ROWS)
    columns = -(-clusters // -(-clusters // widest))
    rows = max(GRAIN, numbers // max(columns, dimensions) // GRAIN * GRAIN)
    return min(rows, most_rows), columns


def _packs(device: torch.device) -> bool:
    return device.type == "cpu" and hasattr(torch.ops.mkl, "_mkl_linear") and torch.backends.mkl.is_available()


class Table:
    """``centroids`` (k, d), compared with at most ``rows`` rows at a time, ``columns`` centroids at a time."""

    def __init__(self, centroids: Tensor, rows: int, columns: int) -> None:
        self._parts = centroids.contiguous().split(columns)
        self._bias = (centroids.square().sum(dim=1) / -2).split(columns)
        self._rows = rows
        self._packed: list[Tensor] | None = None
        if _packs(centroids.device):
            self._packed = [torch.ops.mkl._mkl_reorder_linear_weight(part, rows) for part in self._parts]

    def nearest(self, x: Tensor) -> Tensor:
        """The numbers (r,) int64 of the centroids nearest to ``x`` (r, d); of equally near ones the first."""
        start, best, nearest = 0, None, None
        for number, (part, bias) in enumerate(zip(self._parts, self._bias, strict=True)):
            if self._packed and len(x) == self._rows:
                scores = torch.ops.mkl._mkl_linear(x, self._packed[number], part, None, self._rows).add_(bias)
            else:
                scores = torch.addmm(bias, x, part.T)
            index = _largest(scores)
            if len(self._parts) == 1:
                return index
            score = scores.gather(1, index[:, None])[:, 0]
            if best is None or nearest is None:
                best, nearest = score, index
            else:
                nearest = torch.where(score > best, index + start, nearest)
                best = torch.maximum(score, best)
            start += len(part)
        assert nearest is not None
        return nearest


def _largest(scores: Tensor) -> Tensor:
    if scores.is_cuda:
        return scores.argmax(dim=1)
    return torch.from_numpy(scores.numpy().argmax(axis=1))  # several times as fast as torch's
