"""Collectives that are no-ops in one process, so that the same code runs with and without a process group.

A loss of this package is defined on the batch of all processes together. Rank r returns a *share* L_r with
mean_r L_r = L, so that averaging gradients over ranks (what DDP and FSDP do) gives the gradient of L itself:
the number of processes never changes the mathematics.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank(group: dist.ProcessGroup | None = None) -> int:
    """This process's number in ``group`` (default: all processes); 0 without a process group."""
    return dist.get_rank(group) if is_distributed() else 0


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """The number of processes in ``group`` (default: all processes); 1 without a process group."""
    return dist.get_world_size(group) if is_distributed() else 1


def sum_over_ranks(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """``tensor`` summed over ``group``, in place; returns it. No gradient flows through it."""
    if world_size(group) > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor


def max_over_ranks(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The element-wise maximum of ``tensor`` over ``group``, in place; returns it."""
    if world_size(group) > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return tensor


def mean_over_ranks(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """``tensor`` averaged over ``group``, in place; returns it. Of the shares of a loss, this is the loss."""
    return sum_over_ranks(tensor, group).div_(world_size(group)) if world_size(group) > 1 else tensor


def merged_over_ranks(values: dict[str, float]) -> dict[str, float]:
    """The entries of all processes in one mapping; those of later processes count where several have a name."""
    if world_size() == 1:
        return values
    found: list[dict[str, float]] = [{}] * world_size()
    dist.all_gather_object(found, values)
    return {name: value for each in found for name, value in each.items()}


def gather_rows(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The rows (n, ...) of every rank under each other in rank order: (ranks * n, ...). The same n on every rank.

    No gradient flows through it.
    """
    if world_size(group) == 1:
        return tensor.detach()
    tensor = tensor.detach().contiguous()
    gathered = tensor.new_empty((world_size(group) * tensor.shape[0], *tensor.shape[1:]))
    dist.all_gather(list(gathered.chunk(world_size(group))), tensor, group=group)
    return gathered


def barrier(group: dist.ProcessGroup | None = None) -> None:
    """Wait for every process of ``group``."""
    if world_size(group) > 1:
        dist.barrier(group)
