"""Batches of crops and masks, prepared in worker processes."""

from __future__ import annotations

import ctypes
import dataclasses
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from foundry.errors import UserError
from foundry.images import decode_image
from training.data.augment import MultiCrop
from training.data.masks import step_masks
from training.data.randomness import Purpose, stream
from training.data.sampler import Order, StepSampler
from training.data.shards import ShardDataset
from training.recipe import Recipe


@dataclass
class Batch:
    """One process's part of a step, crop-major (all first crops, then all second ones).

    ``global_`` (2B, G, G, 3), ``local`` (L*B, l, l, 3), ``gram`` (2B or 0, g, g, 3) uint8; ``masks`` (2B, N) bool.
    """

    step: int
    global_: torch.Tensor
    local: torch.Tensor
    gram: torch.Tensor
    masks: torch.Tensor
    unreadable: tuple[str, ...] = ()
    """What is wrong with images that could not be read and were replaced by others."""

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``."""
        if device.type == "cpu":
            return self
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by the loader where a GPU is used)."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return dataclasses.replace(
            self,
            global_=change(self.global_),
            local=change(self.local),
            gram=change(self.gram),
            masks=change(self.masks),
        )


REPLACEMENTS = 8
"""Images tried in the place of one that cannot be read, before the dataset counts as damaged."""


class CropDataset(Dataset):
    """The crops of image ``index`` for place ``slot`` of ``step``: a pure function of (seed, step, slot, image).

    An image that cannot be read is replaced by the next one of the dataset, which is as deterministic.
    """

    def __init__(self, shards: ShardDataset, recipe: Recipe, scale: int) -> None:
        self.shards, self.seed = shards, recipe.seed
        self.multi_crop = MultiCrop(recipe.crops, scale)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, place: tuple[int, int, int]) -> tuple[int, Any, list[str]]:
        step, slot, index = place
        unreadable: list[str] = []
        for number in range(index, index + REPLACEMENTS):
            number %= len(self.shards)
            try:
                image = decode_image(self.shards.read(number))
            except UserError as error:
                unreadable.append(f"{self.shards.keys[number]}: {error}")
            else:
                return step, self.multi_crop(image, stream(self.seed, Purpose.CROPS, step, slot)), unreadable
        raise UserError(f"{self.shards.folder}: {REPLACEMENTS} images in a row cannot be read, first {unreadable[0]}")


class Collate:
    """Stacks the views of a step and adds its masks."""

    def __init__(self, recipe: Recipe, slots: range, grid: int) -> None:
        self.recipe, self.slots, self.grid = recipe, slots, grid

    def __call__(self, items: list[tuple[int, Any, list[str]]]) -> Batch:
        """The batch of the (step, views, problems) of this process's slots."""
        step = items[0][0]
        views = [view for _, view, _ in items]

        def crop_major(arrays: list[np.ndarray]) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(np.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])))

        masks = step_masks(self.recipe.masks, self.recipe.batch, self.slots, self.grid, self.recipe.seed, step)
        return Batch(
            step,
            crop_major([view.global_ for view in views]),
            crop_major([view.local for view in views]),
            crop_major([view.gram for view in views]),
            torch.from_numpy(masks),
            tuple(line for _, _, lines in items for line in lines),
        )


def _start_worker(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a loader worker never outlives its trainer
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def step_batches(
    shards: ShardDataset, recipe: Recipe, slots: range, grid: int, scale: int, start: int, workers: int, pin: bool
) -> Iterator[Batch]:
    """Batches of this process's ``slots`` for steps ``start`` ... ``recipe.steps`` - 1.

    ``grid``: patches along a side of a global crop. ``scale``: crops are made this many times larger than the recipe
    says. The number of ``workers`` never changes a batch.
    """
    order = Order(len(shards), recipe.seed, shards.weights)
    loader: DataLoader = DataLoader(
        CropDataset(shards, recipe, scale),
        batch_sampler=StepSampler(order, recipe.batch, slots, start, recipe.steps),
        num_workers=workers,
        collate_fn=Collate(recipe, slots, grid),
        worker_init_fn=_start_worker,
        pin_memory=pin,
        prefetch_factor=2 if workers else None,
    )
    try:
        yield from loader
    except UserError as error:
        # what a worker raises comes back as a text with the worker's traceback; its last line is the error itself
        last = str(error).strip().splitlines()[-1]
        raise UserError(last.partition("Error: ")[2] or last) from None
