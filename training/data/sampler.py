"""Which image fills which place of which step: an endless order that is a pure function of (seed, step)."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from training.data.randomness import Purpose, stream


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


def share(batch: int, rank: int, world: int) -> range:
    """The slots of a global batch that process ``rank`` of ``world`` computes: consecutive, sizes within 1."""
    base, extra = divmod(batch, world)
    first = rank * base + min(rank, extra)
    return range(first, first + base + (1 if rank < extra else 0))


class StepSampler:
    """Batch sampler: for each step from ``start``, the (step, slot, image) triples of this process."""

    def __init__(self, order: Order, batch: int, slots: range, start: int, stop: int) -> None:
        self.order, self.batch, self.slots, self.start, self.stop = order, batch, slots, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for step in range(self.start, self.stop):
            images = self.order.indices(step * self.batch + self.slots.start, len(self.slots))
            yield [(step, slot, int(image)) for slot, image in zip(self.slots, images, strict=True)]
