"""Which processes train which students, and how a batch travels from those that loaded it to those that learn from it.

A teacher's pass over a batch costs the same for one student as for ten. In a divided distillation every process loads
its share of the batch and passes it through the teacher once; then each student's processes take the whole batch among
them, crops and the teacher's bottleneck features, and compute the scores of the prototypes themselves: a bottleneck has
hundreds of numbers where scores have tens of thousands (Siméoni et al. 2025, section 5.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from foundry.errors import UserError
from training.data.loader import Batch
from training.data.sampler import share
from training.distributed import rank, world_size

if TYPE_CHECKING:
    from training.recipe import Student


@dataclass(frozen=True)
class Division:
    """The processes by student: ``ranks`` of each, this process's student (``mine``) and its process ``group``."""

    ranks: tuple[range, ...]
    mine: int
    group: dist.ProcessGroup

    @classmethod
    def of(cls, students: Sequence[Student]) -> Division | None:
        """The division that the students' ``processes`` ask for; None where each process trains all in turn.

        Every process calls it. Raises :class:`UserError` where they are not as many as there are processes.
        """
        counts = [student.processes for student in students]
        if not any(counts):
            return None
        if sum(counts) != world_size():
            told = " + ".join(f"{student.processes} for {student.name}" for student in students)
            raise UserError(f"students: {told} make {sum(counts)} processes, and {world_size()} are running")
        starts = [sum(counts[:number]) for number in range(len(counts))]
        ranks = tuple(range(start, start + count) for start, count in zip(starts, counts, strict=True))
        groups = [dist.new_group(list(members)) for members in ranks]  # every process makes all of them
        mine = next(number for number, members in enumerate(ranks) if rank() in members)
        group = groups[mine]
        assert isinstance(group, dist.ProcessGroup)
        return cls(ranks, mine, group)

    def slots(self, batch: int, process: int | None = None) -> range:
        """The places in the batch that a process (default: this one) learns from."""
        process = rank() if process is None else process
        members = next(members for members in self.ranks if process in members)
        return share(batch, process - members.start, len(members))


class Exchange:
    """Hands rows of images from the processes that have them to those that want them.

    Process r has the images ``share(batch, r, world)`` and gets ``division.slots(batch, r)``, in order. All processes
    make the same calls.
    """

    def __init__(self, division: Division, batch: int) -> None:
        world = world_size()
        self.held = [share(batch, process, world) for process in range(world)]
        self.wanted = [division.slots(batch, process) for process in range(world)]
        self.rank = rank()

    def images(self, rows: Tensor) -> Tensor:
        """Rows (own images, ...) -> (wanted images, ...)."""
        return self.rows(rows, None, None)

    def rows(self, rows: Tensor, own: Sequence[int] | None, wanted: Sequence[int] | None) -> Tensor:
        """Rows of which image i of this process has ``own[i]``, and will have ``wanted[i]`` of those that it gets.

        None: one row an image. Rows of an image stay together and images in order.
        """
        mine, goal = self.held[self.rank], self.wanted[self.rank]
        first_own, first_wanted = _starts(own, len(mine)), _starts(wanted, len(goal))
        rows = rows.contiguous()
        found = rows.new_empty((first_wanted[-1], *rows.shape[1:]))
        transfers = []
        for process, (held, asked) in enumerate(zip(self.held, self.wanted, strict=True)):
            out, into = _common(mine, asked), _common(held, goal)
            piece = rows[first_own[out.start - mine.start] : first_own[out.stop - mine.start]] if out else rows[:0]
            place = (
                found[first_wanted[into.start - goal.start] : first_wanted[into.stop - goal.start]] if into else None
            )
            if process == self.rank:
                if place is not None:
                    place.copy_(piece)
                continue
            if len(piece):
                transfers.append(dist.P2POp(dist.isend, piece, process))
            if place is not None and len(place):
                transfers.append(dist.P2POp(dist.irecv, place, process))
        for request in dist.batch_isend_irecv(transfers) if transfers else ():
            request.wait()
        return found

    def crops(self, crops: Tensor) -> Tensor:
        """Crop-major rows (c * own images, ...) -> (c * wanted images, ...); c may be 0."""
        own, goal = len(self.held[self.rank]), len(self.wanted[self.rank])
        count = len(crops) // own
        if not count:
            return crops[:0]
        by_image = crops.unflatten(0, (count, own)).transpose(0, 1)
        return self.images(by_image).transpose(0, 1).reshape(count * goal, *crops.shape[1:])

    def batch(self, batch: Batch) -> Batch:
        """The part of the whole batch that this process learns from."""
        device = batch.global_.device
        masks = self.crops(batch.masks.to(torch.uint8)).bool()
        found = Batch.of(
            batch.step,
            self.crops(batch.global_),
            self.crops(batch.local),
            batch.gram[:0],
            self.crops(batch.distortions.to(device)).to(batch.distortions.device),
            masks,
        )
        return found

    def patches(self, patches: Tensor, own: Tensor, wanted: Tensor) -> Tensor:
        """Rows (n, b) of the masked patches of masks ``own`` (2 * own images, N), in their order, to those of
        ``wanted`` (2 * wanted images, N)."""
        of_own, of_wanted = own.sum(dim=1).tolist(), wanted.sum(dim=1).tolist()
        half, goal = len(of_own) // 2, len(of_wanted) // 2
        pieces = patches.split([sum(of_own[:half]), sum(of_own[half:])])
        found = [
            self.rows(piece, of_own[crop * half : (crop + 1) * half], of_wanted[crop * goal : (crop + 1) * goal])
            for crop, piece in enumerate(pieces)
        ]
        return torch.cat(found)


def _starts(counts: Sequence[int] | None, images: int) -> list[int]:
    if counts is None:
        return list(range(images + 1))
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return starts


def _common(one: range, other: range) -> range:
    return range(max(one.start, other.start), max(min(one.stop, other.stop), max(one.start, other.start)))
