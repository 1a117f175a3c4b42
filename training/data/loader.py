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
from foundry.images import open_image
from training.data.augment import MultiCrop, Views, shrinkage
from training.data.masks import step_masks
from training.data.mix import Kind, kinds_of
from training.data.randomness import Purpose, stream
from training.data.sampler import MixedOrders, OneOrder, Order, Steps, StepSampler
from training.data.shards import Images, ShardDataset
from training.objectives.ibot import mask_weights
from training.recipe import CropSizes, Recipe


@dataclass
class Batch:
    """One process's part of a step, crop-major (all first crops, then all second ones).

    ``global_`` (2B, G, G, 3), ``local`` (L*B, l, l, 3), ``gram`` (2B or 0, g, g, 3) uint8; ``masks`` (2B, N) bool.
    ``distortions`` ((2 + L) * B or 0, 11): of global and local crops, where the device is to do them.
    """

    step: int
    global_: torch.Tensor
    local: torch.Tensor
    gram: torch.Tensor
    distortions: torch.Tensor
    masks: torch.Tensor
    masked: torch.Tensor
    """(n,) int64 places of the masked patches among the 2B * N, found here so that no device has to be waited for."""
    mask_weights: torch.Tensor
    """(n,) float32, 1 / masked patches of the same crop."""
    unreadable: tuple[str, ...] = ()
    """What is wrong with images that could not be read and were replaced by others."""

    @classmethod
    def of(
        cls,
        step: int,
        global_: torch.Tensor,
        local: torch.Tensor,
        gram: torch.Tensor,
        distortions: torch.Tensor,
        masks: torch.Tensor,
        unreadable: tuple[str, ...] = (),
    ) -> Batch:
        """A batch in the memory of this process, with what follows from its masks."""
        masked = masks.flatten().nonzero().squeeze(1)
        return cls(step, global_, local, gram, distortions, masks, masked, mask_weights(masks), unreadable)

    def parts(self, count: int) -> list[Batch]:
        """The batch in ``count`` parts of consecutive images, sizes within 1, each crop-major too."""
        if count == 1:
            return [self]

        def split(tensor: torch.Tensor) -> list[torch.Tensor]:
            images = len(self.global_) // 2
            if not len(tensor):
                return [tensor] * count
            by_crop = tensor.unflatten(0, (-1, images))
            return [part.flatten(0, 1) for part in by_crop.tensor_split(count, dim=1)]

        pieces = zip(*map(split, (self.global_, self.local, self.gram, self.distortions, self.masks)), strict=True)
        return [Batch.of(self.step, *piece) for piece in pieces]

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``; what is left to be distorted stays known to the host."""
        held = self.pin_memory() if device.type == "cuda" else self
        return held._mapped(lambda tensor: tensor.to(device, non_blocking=True))

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
            masked=change(self.masked),
            mask_weights=change(self.mask_weights),
        )


REPLACEMENTS = 8
"""Images tried in the place of one that cannot be read, before the dataset counts as damaged."""


def sizes_at(recipe: Recipe, step: int) -> CropSizes:
    """The crop sizes of ``step``, the same on every process."""
    sizes = recipe.crops.sizes()
    if len(sizes) == 1:
        return sizes[0]
    edges = np.cumsum([each.probability for each in sizes])
    draw = stream(recipe.seed, Purpose.SIZES, step).random() * edges[-1]
    return sizes[min(int(np.searchsorted(edges, draw, side="right")), len(sizes) - 1)]


class CropDataset(Dataset):
    """The crops of image ``index`` for place ``slot`` of ``step``: a pure function of (seed, step, slot, image).

    An image that cannot be read is replaced by the next one of the dataset, which is as deterministic.
    """

    def __init__(self, shards: Images, recipe: Recipe, scale: int, distorts: bool) -> None:
        self.shards, self.recipe, self.seed = shards, recipe, recipe.seed
        self.multi_crop = MultiCrop(recipe.crops, scale, distorts)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, place: tuple[int, int, int]) -> tuple[int, Any, list[str]]:
        step, slot, index = place
        unreadable: list[str] = []
        for number in range(index, index + REPLACEMENTS):
            number %= len(self.shards)
            try:
                views = self._views(self.shards.read(number), step, slot)
            except UserError as error:
                unreadable.append(f"{self.shards.key(number)}: {error}")
            else:
                return step, views, unreadable
        raise UserError(f"{self.shards.folder}: {REPLACEMENTS} images in a row cannot be read, first {unreadable[0]}")

    def _views(self, data: bytes, step: int, slot: int) -> Views:
        """The crops are chosen before the pixels are decoded, at a smaller scale where all of them allow it."""
        draws, sizes = stream(self.seed, Purpose.CROPS, step, slot), sizes_at(self.recipe, step)
        encoded = open_image(data)
        whole = encoded.height, encoded.width
        areas = self.multi_crop.areas(*whole, draws, sizes)
        return self.multi_crop.views(encoded.pixels(shrinkage(areas)), whole, areas, draws, sizes)


class Collate:
    """Stacks the views of a step and adds its masks. ``stride``: pixels of a patch of the teacher."""

    def __init__(self, recipe: Recipe, slots: range, stride: int) -> None:
        self.recipe, self.slots, self.stride = recipe, slots, stride

    def __call__(self, items: list[tuple[int, Any, list[str]]]) -> Batch:
        """The batch of the (step, views, problems) of this process's slots."""
        step = items[0][0]
        views = [view for _, view, _ in items]

        def crop_major(arrays: list[np.ndarray]) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(np.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])))

        grid = sizes_at(self.recipe, step).global_size // self.stride
        masks = step_masks(self.recipe.masks, self.recipe.batch, self.slots, grid, self.recipe.seed, step)
        return Batch.of(
            step,
            crop_major([view.global_ for view in views]),
            crop_major([view.local for view in views]),
            crop_major([view.gram for view in views]),
            crop_major([view.distortions for view in views]),
            torch.from_numpy(masks),
            tuple(line for _, _, lines in items for line in lines),
        )


def _start_worker(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a loader worker never outlives its trainer
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def step_order(images: Images, recipe: Recipe, kinds: list[np.ndarray] | None = None) -> Steps:
    """Which images each step takes. ``kinds``: of a mixture of datasets, the images of each of its kinds.

    Without a mixture the steps follow ``recipe.mix`` or, where that is not given, the mix of the dataset itself. Raises
    :class:`UserError` where that names a part which the dataset does not have.
    """
    if kinds:
        weights = images.weights
        found = [
            Kind(mixed.share, members, weights[members]) for mixed, members in zip(recipe.mixture, kinds, strict=True)
        ]
    else:
        assert isinstance(images, ShardDataset)
        found = kinds_of(recipe.mix or images.mix, images.parts, images.draws, images.folder)
        if len(found) == 1 and len(found[0].members) == len(images):
            return OneOrder(Order(len(images), recipe.seed, found[0].weights), recipe.batch)
    orders = [
        Order(len(kind.members), recipe.seed + 7919 * number, kind.weights)
        for number, kind in enumerate(found, start=1)
    ]
    shares = [kind.share for kind in found]
    return MixedOrders(orders, [kind.members for kind in found], shares, recipe.batch, recipe.seed)


def colours_by_device(recipe: Recipe, device: torch.device) -> bool:
    """Whether crops reach ``device`` undistorted and it works on their colours."""
    return recipe.distort_on == "device" or (recipe.distort_on == "auto" and device.type == "cuda")


def step_batches(
    images: Images,
    recipe: Recipe,
    steps: Steps,
    slots: range,
    stride: int,
    scale: int,
    start: int,
    workers: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Batches of this process's ``slots`` for steps ``start`` ... ``recipe.steps`` - 1.

    ``stride``: pixels of a patch of the teacher. ``scale``: crops are made this many times larger than the recipe says.
    The number of ``workers`` never changes a batch. ``device``: where the batches will be used.
    """
    loader: DataLoader = DataLoader(
        CropDataset(images, recipe, scale, distorts=not colours_by_device(recipe, device)),
        batch_sampler=StepSampler(steps, slots, start, recipe.steps),
        num_workers=workers,
        collate_fn=Collate(recipe, slots, stride),
        worker_init_fn=_start_worker,
        pin_memory=device.type == "cuda",
        prefetch_factor=2 if workers else None,
    )
    try:
        yield from loader
    except UserError as error:
        # what a worker raises comes back as a text with the worker's traceback; its last line is the error itself
        last = str(error).strip().splitlines()[-1]
        raise UserError(last.partition("Error: ")[2] or last) from None
