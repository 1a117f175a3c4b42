"""Lloyd's iterations on rows that threads and processes share.

Rows lie in fixed blocks (:class:`components.curation.compute.Compute`); which of them are compared in one matrix
product follows from the block alone, never from threads or processes. The sum of a cluster's members is exact, so that
every order of adding gives the same bits: a coordinate is rounded to a multiple of 2^-e, where e is the largest with
which the sum over all rows fits the 53 bits of a float64 (31 for a million unit vectors, 21 for a thousand million).
Therefore only rows that change cluster are added and subtracted. All else adds up whole numbers.

So an iteration is a function of the centroids: one that starts from saved centroids gives the bits that it would have
given in its place. Bounds on distances (Hamerly 2010) are not kept: with 64 and more dimensions they were seen to cost
more time than they save.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from components.curation.blocks import spans_of
from components.curation.compute import Compute, Run
from components.curation.rows import Rows
from components.curation.scores import Table, tile_shape

READ = 512
"""Rows read at a time to find the largest coordinate."""
SUMMED = 1024
"""Rows that a thread adds to the sums at a time, at most."""
LARGEST = 2.0**50
"""Coordinates below it have squares that can be summed in float32."""


class Lloyd:
    """The state of an iteration: ``centroids`` (k, d) float32 and the clusters of this process's rows, ``own``.

    Memory: 4 bytes a row, 30 bytes a coordinate of the centroids, and in each thread about four tiles, 16 bytes a
    coordinate of ``SUMMED`` rows, and sums of its own where these fit into what a thread may take.
    """

    def __init__(self, points: Rows, compute: Compute, run: Run, *, spherical: bool = False) -> None:
        """Raises :class:`ValueError` where points are not finite numbers."""
        self._compute, self._run, self._spherical = compute, run, spherical
        self._device = torch.device(compute.device)
        self.own = compute.own_rows(len(points))
        self._points = points.part(self.own).held(compute.held_bytes).near(self._device)
        self._spans = spans_of(len(self.own), compute.block)
        self._lock = threading.Lock()
        self.assignment = torch.full((len(self.own),), -1, dtype=torch.int32, device=self._device)
        largest = self._largest()
        fits = np.floor(51 - np.log2(len(points)) - np.log2(largest)) if largest else 0
        self._scale = 2.0 ** min(60, int(fits))

    def begin(self, centroids: Tensor, *, sums: bool = True) -> None:
        """Start from ``centroids`` (k, d). Without ``sums`` they can only be assigned to."""
        self.centroids = centroids.to(self._device, torch.float32)
        self._tile = tile_shape(self._compute.table, self._points.dimensions, len(centroids), self._compute.block)
        self._sums = torch.zeros_like(self.centroids, dtype=torch.float64) if sums else None
        self._thread = threading.local()
        self._threads_sums: list[Tensor] = []
        self.assignment.fill_(-1)

    def assign(self) -> int:
        """Assign every row to its nearest centroid; returns how many rows of all processes changed cluster."""
        table = Table(self.centroids, *self._tile)
        summed = max(1, min(SUMMED, self._compute.memory // (64 * self._points.dimensions)))  # takes a fourth of it

        def work(span: slice) -> int:
            # all products before all sums: each of them fills the cache with its own
            new = torch.cat([table.nearest(self._loaded(rows)) for rows in self._slices(span)])
            parts = _parts(span, summed)
            return sum(self._assigned(rows, new[rows.start - span.start : rows.stop - span.start]) for rows in parts)

        changed = torch.tensor([sum(self._run(work, self._spans))])
        for sums in self._threads_sums:
            assert self._sums is not None
            self._sums += sums
            sums.zero_()
        return int(self._compute.sum(changed).item())

    def update(self) -> None:
        """Move the centroids to the means of their members; those without members stay."""
        assert self._sums is not None
        counts = self._compute.sum(torch.bincount(self.assignment, minlength=len(self.centroids)))[:, None]
        sums = self._sums if self._compute.processes == 1 else self._compute.sum(self._sums.clone())
        means = sums / (counts.clamp(min=1) * self._scale)
        used = counts > 0
        if self._spherical:
            length = torch.linalg.vector_norm(means, dim=1, keepdim=True)
            used = used & (length > 1e-12)
            means = means / length.clamp(min=1e-12)
        self.centroids = torch.where(used, means.float(), self.centroids)

    def distances(self) -> Tensor:
        """(own rows,) float32: squared distances to the own centroids, from differences of coordinates."""
        found = torch.empty(len(self.own), device=self._device)

        def work(span: slice) -> None:
            for rows in self._slices(span):
                away = self._points.read(rows).to(self._device) - self.centroids[self.assignment[rows]]
                found[rows] = away.square_().sum(dim=1)

        for _ in self._run(work, self._spans):
            pass
        return found

    def _largest(self) -> float:
        """The largest absolute coordinate of all processes' rows."""

        def work(span: slice) -> float:
            parts = [self._points.read(rows) for rows in _parts(span, READ)]
            return float(torch.stack([part.abs().max() for part in parts]).max())

        own = torch.tensor([0.0, *self._run(work, self._spans)], dtype=torch.float64).max()  # nan if one of them is
        own = own.nan_to_num(nan=torch.inf)  # a maximum over processes may lose nan
        largest = float(self._compute.largest(own.reshape(1)).item())
        if largest > LARGEST:
            raise ValueError("the points hold numbers that are not finite, or too large to be squared")
        return largest

    def _slices(self, span: slice) -> list[slice]:
        return _parts(span, self._tile[0])

    def _loaded(self, rows: slice) -> Tensor:
        """These rows, (r, d), on the device."""
        return self._points.read(rows).to(self._device)

    def _own_sums(self) -> Tensor | None:
        """Sums that only this thread adds to: they are exact, so that they may be put together in any order. None
        where the clusters are too many for each thread to have some."""
        assert self._sums is not None
        if 8 * self._sums.numel() > self._compute.memory // 8:
            return None
        if getattr(self._thread, "of", None) is not self._sums:
            self._thread.of, self._thread.sums = self._sums, torch.zeros_like(self._sums)
            with self._lock:
                self._threads_sums.append(self._thread.sums)
        found: Tensor = self._thread.sums
        return found

    def _assigned(self, rows: slice, new: Tensor) -> int:
        """Record where ``rows`` belong; returns how many changed."""
        old = self.assignment[rows]
        changed = torch.nonzero(new != old)[:, 0]
        if self._sums is not None and len(changed):
            x = self._points.read((changed + rows.start).cpu().numpy()).to(self._device)
            units = (x * self._scale).round_().double()
            old_of_changed = old[changed]
            own = self._own_sums()
            with self._lock if own is None else nullcontext():
                sums = self._sums if own is None else own
                sums.index_add_(0, new[changed], units)
                if int(old_of_changed[0]) >= 0:  # in the first pass no row has a cluster
                    sums.index_add_(0, old_of_changed, units, alpha=-1)
        self.assignment[rows] = new.to(torch.int32)
        return len(changed)


def _parts(span: slice, size: int) -> list[slice]:
    return [slice(start, min(start + size, span.stop)) for start in range(span.start, span.stop, size)]
