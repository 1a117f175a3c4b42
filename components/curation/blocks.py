"""Work over many rows in blocks of a fixed size, so that results are equal to the bit for any number of threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import numpy as np

S = TypeVar("S")
T = TypeVar("T")


class Blocks(Protocol):
    """Calls ``work`` with the slice of each block and gives the results in block order."""

    def __call__(self, work: Callable[[slice], T]) -> Iterator[T]:
        """Results of all blocks."""
        ...


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spans_of(rows: int, size: int) -> list[slice]:
    """The blocks of ``size`` rows, the last one shorter."""
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def in_order(executor: ThreadPoolExecutor, waiting: int, work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """What ``work`` makes of ``items``, in their order; at most ``waiting`` results are under way or not consumed."""
    running: deque[Future[T]] = deque()
    for item in items:
        running.append(executor.submit(work, item))
        if len(running) > waiting:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


@contextmanager
def fixed_blocks(rows: int, size: int, threads: int | None = None) -> Iterator[Blocks]:
    """:class:`Blocks` of ``size`` rows, on ``threads`` threads (default: all cores of this process).

    Inside, BLAS runs on one thread: which sums it forms would otherwise depend on the machine's load and core count.
    At most a few finished blocks wait to be consumed, whatever the number of blocks.
    """
    from threadpoolctl import threadpool_limits

    spans = spans_of(rows, size)
    count = min(threads or available_cores(), len(spans))

    def alone(work: Callable[[slice], T]) -> Iterator[T]:
        return map(work, spans)

    with threadpool_limits(1, user_api="blas"):
        if count <= 1:
            yield alone
        else:
            with ThreadPoolExecutor(count, thread_name_prefix="blocks") as executor:
                yield lambda work: in_order(executor, 2 * count, work, spans)


def by_blocks(work: Callable[[slice], np.ndarray], rows: int, size: int, threads: int | None = None) -> np.ndarray:
    """What ``work`` makes of the blocks of ``rows`` (at least one row), joined along the first axis."""
    with fixed_blocks(rows, size, threads) as blocks:
        return np.concatenate(list(blocks(work)))
