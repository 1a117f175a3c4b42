"""Where work over many rows runs: threads, processes and devices that share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from components.curation.blocks import available_cores, in_order
from training.distributed import is_distributed, max_over_ranks, rank, sum_over_ranks, world_size

BLOCKS = {"cpu": 4096, "cuda": 65536}
"""Rows of a block by device."""
TILES = {"cpu": 1 << 20, "cuda": 256 << 20}
"""Bytes of a table of distances by device, at most: what fits a core's cache, or enough to fill a GPU."""
MEMORY, SHARE = 256 << 20, 16
"""Bytes that one thread may take, unless told otherwise; of which a table of distances is one in so many at most."""

S = TypeVar("S")
T = TypeVar("T")


class Run(Protocol):
    """Calls ``work`` with every item and gives the results in the order of the items."""

    def __call__(self, work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """Results of all items."""
        ...


@dataclass(frozen=True)
class Compute:
    """Threads, processes and memory of a computation. Of these only ``device``, ``block_rows`` and a ``memory`` below
    :data:`SHARE` of :data:`TILES` can change the bits of a k-means."""

    threads: int | None = None
    """Threads of this process; default: its cores. On a GPU one thread works."""
    device: str = "cpu"
    """``cpu``, ``cuda`` or ``cuda:1``."""
    memory: int = MEMORY
    """Bytes that one thread may take for tables of distances and for copies of points, whatever the number of points
    and clusters."""
    block_rows: int | None = None
    """Rows of a block, which one thread of one process works on; shares of processes are whole blocks. Default: as
    :data:`BLOCKS` says."""
    group: dist.ProcessGroup | None = None
    """The processes that share the work; default: all of torch.distributed's where a process group exists."""
    alone: bool = False
    """This process works without the others."""

    @property
    def rank(self) -> int:
        """This process's number."""
        return 0 if self.alone else rank(self.group)

    @property
    def processes(self) -> int:
        """How many processes share the work."""
        return 1 if self.alone else world_size(self.group)

    @property
    def on_gpu(self) -> bool:
        """Whether tables of distances lie on a GPU."""
        return torch.device(self.device).type != "cpu"

    @property
    def table(self) -> int:
        """Float32 numbers of a table of distances."""
        return min(TILES["cuda" if self.on_gpu else "cpu"], self.memory // SHARE) // 4

    @property
    def held_bytes(self) -> int:
        """Bytes of points that a clustering may hold where they are chosen rows of a larger matrix, so that they are
        read only once."""
        return self.memory // 2

    @property
    def block(self) -> int:
        """Rows of a block."""
        return self.block_rows or BLOCKS["cuda" if self.on_gpu else "cpu"]

    def for_one_thread(self) -> Compute:
        """The same for one thread that works on a part of its own, without other processes."""
        return replace(self, threads=1, alone=True, group=None)

    def own(self, count: int) -> range:
        """This process's share of ``count`` things: consecutive ones."""
        return range(count * self.rank // self.processes, count * (self.rank + 1) // self.processes)

    def own_rows(self, rows: int) -> range:
        """This process's share of ``rows``: whole blocks, the last one maybe shorter."""
        blocks = self.own(-(-rows // self.block))
        return range(min(blocks.start * self.block, rows), min(blocks.stop * self.block, rows))

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor`` summed over the processes, in place; returns it."""
        return self._collective(sum_over_ranks, tensor)

    def largest(self, tensor: Tensor) -> Tensor:
        """The element-wise maximum of ``tensor`` over the processes, in place; returns it."""
        return self._collective(max_over_ranks, tensor)

    def joined(self, own: Tensor, rows: range, count: int) -> Tensor:
        """What every process has of its own ``rows``, in the order of all ``count``, on the processor's memory."""
        if self.processes == 1:
            return own.cpu()
        whole = torch.zeros((count, *own.shape[1:]), dtype=own.dtype)
        whole[rows.start : rows.stop] = own.cpu()
        return self.sum(whole)

    def _collective(self, over_ranks: Callable[..., Tensor], tensor: Tensor) -> Tensor:
        if self.processes == 1:
            return tensor
        if is_distributed() and dist.get_backend(self.group) == "nccl" and not tensor.is_cuda:
            return tensor.copy_(over_ranks(tensor.to(self.device), self.group))
        return over_ranks(tensor, self.group)

    @contextmanager
    def workers(self) -> Iterator[Run]:
        """:class:`Run` on the threads of this process. torch uses one thread in each of them, so that no sum depends
        on the number of cores, and no lower precision than float32."""
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        count = 1 if self.on_gpu else self.threads or available_cores()
        try:
            if threads != 1:
                torch.set_num_threads(1)
            if precision != "highest":
                torch.set_float32_matmul_precision("highest")
            if count == 1:
                yield lambda work, items: map(work, items)
            else:
                with ThreadPoolExecutor(count, thread_name_prefix="compute") as executor:
                    yield lambda work, items: in_order(executor, 2 * count, work, items)
        finally:
            if threads != 1:
                torch.set_num_threads(threads)
            if precision != "highest":
                torch.set_float32_matmul_precision(precision)
