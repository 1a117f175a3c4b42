"""KoLeo: image embeddings spread out, by pushing each away from its nearest neighbour.

    L = - mean_i log(|x_i - x_nn(i)|_2),   x_i normalised, nn(i) the most similar other embedding of i's group

in float32 with a guard of 1e-8 in the difference and in the logarithm. Applied to each global crop on its own, never
between two crops of an image. Source: Sablayrolles et al. 2019; Oquab et al. 2023, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from training.distributed import gather_rows, rank, world_size


def koleo_loss(
    embeddings: Tensor,
    group_size: int | None = None,
    *,
    counts: Sequence[int] | None = None,
    images: float | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """L of one crop's embeddings (B, D), the pre-head CLS features after the final norm, as a float32 scalar.

    Neighbours are looked for among ``group_size`` consecutive images of the whole batch (default: all of it), which the
    processes hold one after the other, ``counts`` of them each (default: B each); so the value does not depend on the
    number of processes. ``images``: images per process, averaged over processes; then the mean of all processes' values
    is the loss of the whole batch. Nothing is exchanged while every group lies within one process.

    Raises ValueError for groups of one, or a batch that is not a whole number of groups.
    """
    held = list(counts or [len(embeddings)] * world_size(group))
    everyone = sum(held)
    size = group_size or everyone
    images = everyone / len(held) if images is None else images
    if size < 2 or everyone % size:
        raise ValueError(f"KoLeo in groups of {size} over {everyone} images: needs whole groups of at least 2")
    with torch.autocast(embeddings.device.type, enabled=False):
        own = F.normalize(embeddings.float(), dim=-1, eps=1e-8)
        if all(count % size == 0 for count in held):
            return -_log_distances(own, size).sum() / images
        # Groups reach into other processes. Each process computes the whole sum of the groups it takes part in, with
        # the others' embeddings as constants: that gives the exact gradient for its own without a backward exchange.
        start = sum(held[: rank(group)])
        end = start + len(own)
        everything = _gather(own, held, group)
        everything = torch.cat((everything[:start], own, everything[end:]))
        first = start // size * size
        last = -(-end // size) * size
        logs = _log_distances(everything[first:last], size)
        value = -logs[start - first : end - first].sum() / images
        gradient = -logs.sum() / images
        return value.detach() + (gradient - gradient.detach())


def _gather(own: Tensor, held: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all processes, of which process r holds ``held[r]``."""
    most = max(held)
    padded = F.pad(own, (0, 0, 0, most - len(own)))
    gathered = gather_rows(padded, group).unflatten(0, (len(held), most))
    return torch.cat([rows[:count] for rows, count in zip(gathered, held, strict=True)])


def _log_distances(normalised: Tensor, size: int) -> Tensor:
    """log distance (n,) of each row to its nearest neighbour among its ``size`` consecutive rows."""
    grouped = normalised.unflatten(0, (-1, size))
    with torch.no_grad():
        similarity = grouped @ grouped.transpose(1, 2)
        similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        nearest = similarity.argmax(dim=-1)
    neighbours = grouped.gather(1, nearest.unsqueeze(-1).expand_as(grouped))
    return (F.pairwise_distance(grouped, neighbours, p=2, eps=1e-8) + 1e-8).log().flatten()
