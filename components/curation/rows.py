"""Rows of a matrix that may be a memory map, read in pieces; the matrix is never copied as a whole."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor


class Rows:
    """The rows of ``matrix`` (m, d) of floating-point numbers: all, or the n rows of ``index``, in its order.

    ``matrix`` may be a memory map, ``np.load(path, mmap_mode="r")``, which every process opens for itself.
    """

    def __init__(self, matrix: np.ndarray, index: np.ndarray | None = None) -> None:
        if matrix.ndim != 2 or not matrix.shape[1] or not np.issubdtype(matrix.dtype, np.floating):
            raise ValueError(f"points of shape {matrix.shape} and type {matrix.dtype}: give floating-point (n, d)")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self._matrix = torch.from_numpy(matrix)
        self._index = None if index is None else np.asarray(index, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._matrix) if self._index is None else len(self._index)

    @property
    def dimensions(self) -> int:
        """Numbers in a row."""
        return self._matrix.shape[1]

    def _with(self, matrix: Tensor, index: np.ndarray | None) -> Rows:
        other = object.__new__(Rows)
        other._matrix, other._index = matrix, index
        return other

    def chosen(self, rows: np.ndarray) -> Rows:
        """The rows of these numbers, in this order."""
        return self._with(self._matrix, rows if self._index is None else self._index[rows])

    def part(self, rows: range) -> Rows:
        """Consecutive rows."""
        if self._index is None:
            return self._with(self._matrix[rows.start : rows.stop], None)
        return self._with(self._matrix, self._index[rows.start : rows.stop])

    def held(self, most_bytes: int) -> Rows:
        """The same rows, read into memory if they are chosen ones and take at most ``most_bytes`` as float32."""
        if self._index is None or 4 * len(self) * self.dimensions > most_bytes:
            return self
        return self._with(self.read(slice(0, len(self))), None)

    def near(self, device: torch.device) -> Rows:
        """The same rows, copied to ``device`` if it is a GPU and they take less than half of its free memory."""
        size = len(self) * self.dimensions * self._matrix.element_size()
        if device.type != "cuda" or 2 * size > torch.cuda.mem_get_info(device)[0]:
            return self
        return self._with(self._selected(slice(0, len(self))).to(device), None)

    def read(self, rows: slice | np.ndarray) -> Tensor:
        """These rows as float32 (r, d), on the device where they lie; a slice of a float32 matrix is a view of it."""
        return self._selected(rows).to(torch.float32)

    def _selected(self, rows: slice | np.ndarray) -> Tensor:
        if self._index is not None:
            rows = self._index[rows]
        if isinstance(rows, slice):
            return self._matrix[rows]
        return torch.index_select(self._matrix, 0, torch.from_numpy(rows).to(self._matrix.device))
