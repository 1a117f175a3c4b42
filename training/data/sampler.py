"""Which image fills which place of which step: an endless order that is a pure function of (seed, step)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from training.data.randomness import Purpose, stream

_KINDS_A_BLOCK = 4096


class Order:
    """An endless shuffled order over ``size`` images.

    Passes follow each other without a gap, so a batch may span two. With equal weights each pass is a permutation;
    otherwise image i appears about weights[i] / mean(weights) times a pass (systematic resampling, then shuffled).
    """

    def __init__(self, size: int, seed: int, weights: np.ndarray | None = None) -> None:
        self.size, self.seed = size, seed
        even = weights is None or np.allclose(weights, weights[0])
        self._cumulative = None if even else np.cumsum(np.asarray(weights, dtype=np.float64))
        self._pass = functools.lru_cache(maxsize=2)(self._draw_pass)

    def _draw_pass(self, number: int) -> np.ndarray:
        generator = stream(self.seed, Purpose.ORDER, number)
        if self._cumulative is None:
            return generator.permutation(self.size)
        places = (np.arange(self.size) + generator.random()) / self.size * self._cumulative[-1]
        chosen = np.minimum(np.searchsorted(self._cumulative, places, side="right"), self.size - 1)
        return generator.permutation(chosen)

    def indices(self, start: int, count: int) -> np.ndarray:
        """The images at places ``start`` ... ``start + count - 1`` of the endless order, (count,) int64."""
        places = np.arange(start, start + count, dtype=np.int64)
        passes = places // self.size
        result = np.empty(count, dtype=np.int64)
        for number in np.unique(passes):
            chosen = passes == number
            result[chosen] = self._pass(int(number))[places[chosen] - number * self.size]
        return result

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_pass"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._pass = functools.lru_cache(maxsize=2)(self._draw_pass)


class Steps(Protocol):
    """Which images a step takes."""

    def images(self, step: int, slots: range) -> np.ndarray:
        """The images at ``slots`` of ``step``'s whole batch, (len(slots),) int64."""
        ...


class OneOrder:
    """Every step takes the next ``batch`` images of one order."""

    def __init__(self, order: Order, batch: int) -> None:
        self.order, self.batch = order, batch

    def images(self, step: int, slots: range) -> np.ndarray:
        """The images at ``slots`` of ``step``."""
        return self.order.indices(step * self.batch + slots.start, len(slots))


class MixedOrders:
    """Every step is of one kind, drawn by ``shares`` for all processes alike, and takes the next images of its order.

    ``members[kind]`` are the images that order ``kind`` counts through. Siméoni et al. 2025, section 3.1: one step in
    ten holds images of one clean dataset only, nine hold a mixture of the others.
    """

    def __init__(
        self, orders: Sequence[Order], members: Sequence[np.ndarray], shares: Sequence[float], batch: int, seed: int
    ) -> None:
        self.orders, self.members, self.batch, self.seed = list(orders), list(members), batch, seed
        self._edges = np.cumsum(np.asarray(shares, dtype=np.float64)) / np.sum(shares)
        self._kinds = np.zeros(0, dtype=np.int64)

    def kind(self, step: int) -> int:
        """The kind of ``step``."""
        return int(self._until(step)[step])

    def images(self, step: int, slots: range) -> np.ndarray:
        """The images at ``slots`` of ``step``, numbered over all datasets."""
        kinds = self._until(step)
        kind = int(kinds[step])
        earlier = int((kinds[:step] == kind).sum())
        return self.members[kind][self.orders[kind].indices(earlier * self.batch + slots.start, len(slots))]

    def _until(self, step: int) -> np.ndarray:
        """Kinds of the steps from 0 to at least ``step``, drawn in blocks that depend on the seed alone."""
        while len(self._kinds) <= step:
            block = len(self._kinds) // _KINDS_A_BLOCK
            draws = stream(self.seed, Purpose.MIXTURE, block).random(_KINDS_A_BLOCK)
            self._kinds = np.concatenate((self._kinds, np.searchsorted(self._edges, draws, side="right")))
        return self._kinds


def share(batch: int, rank: int, world: int) -> range:
    """The slots of a global batch that process ``rank`` of ``world`` computes: consecutive, sizes within 1."""
    base, extra = divmod(batch, world)
    first = rank * base + min(rank, extra)
    return range(first, first + base + (1 if rank < extra else 0))


class StepSampler:
    """Batch sampler: for each step from ``start``, the (step, slot, image) triples of this process."""

    def __init__(self, steps: Steps, slots: range, start: int, stop: int) -> None:
        self.steps, self.slots, self.start, self.stop = steps, slots, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for step in range(self.start, self.stop):
            images = self.steps.images(step, self.slots)
            yield [(step, slot, int(image)) for slot, image in zip(self.slots, images, strict=True)]
