"""Work over many rows in blocks of a fixed size, so that results are equal to the bit for any number of threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import numpy as np

T = TypeVar("T")


class Blocks(Protocol):
    """Calls ``work`` with the slice of each block and gives the results in block order."""

    def __call__(self, work: Callable[[slice], T]) -> Iterator[T]:
        """Results of all blocks."""
        ...


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def fixed_blocks(rows: int, size: int, threads: int | None = None) -> Iterator[Blocks]:
    """:class:`Blocks` of ``size`` rows, on ``threads`` threads (default: all cores of this process).

    Inside, BLAS runs on one thread: which sums it forms would otherwise depend on the machine's load and core count.
    At most a few finished blocks wait to be consumed, whatever the number of blocks.
    """
    from threadpoolctl import threadpool_limits

    spans = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    count = min(threads or available_cores(), len(spans))

    def alone(work: Callable[[slice], T]) -> Iterator[T]:
        return map(work, spans)

    def together(work: Callable[[slice], T]) -> Iterator[T]:
        running = []
        for span in spans:
            running.append(executor.submit(work, span))
            if len(running) > 2 * count:
                yield running.pop(0).result()
        for future in running:
            yield future.result()

    with threadpool_limits(1, user_api="blas"):
        if count <= 1:
            yield alone
        else:
            with ThreadPoolExecutor(count, thread_name_prefix="blocks") as executor:
                yield together


def by_blocks(work: Callable[[slice], np.ndarray], rows: int, size: int, threads: int | None = None) -> np.ndarray:
    """What ``work`` makes of the blocks of ``rows`` (at least one row), joined along the first axis."""
    with fixed_blocks(rows, size, threads) as blocks:
        return np.concatenate(list(blocks(work)))
