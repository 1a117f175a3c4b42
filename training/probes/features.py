"""Frozen features: images through a backbone, in batches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foundry.images import Preprocessing, decode_image

Backbone = Callable[[Tensor], Mapping[str, Tensor]]
"""``model(pixels (B, 3, H, W) float32) -> {"cls": (B, D), "patches": (B, N, D)}``."""

MEMORY = 256 << 20
"""Bytes of preprocessed pixels that are kept between two passes over the same images."""


@dataclass(frozen=True)
class Features:
    """What a backbone says about N images."""

    cls: np.ndarray
    """(N, D) float32 image embeddings."""
    mean_patch: np.ndarray
    """(N, D) float32 mean of the patch features."""
    patches: np.ndarray | None = None
    """(N, P, D) float32 patch features, row by row of a square grid, where they were asked for."""

    @property
    def grid(self) -> int:
        """Side of the patch grid."""
        assert self.patches is not None
        return grid_side(self.patches.shape[1])


def grid_side(patches: int) -> int:
    """Side of the square grid of ``patches`` patches. Raises :class:`ValueError` where it is not a square."""
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"{patches} patches are not a square grid")
    return side


def squash(preprocessing: Preprocessing, side: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Preprocessing that shows the whole image: resized to ``side`` x ``side`` whatever its aspect, nothing cropped.

    For dense protocols, in which every pixel is scored. ``side`` defaults to the model's own crop size.
    """
    from PIL import Image

    size = (side or preprocessing.crop,) * 2

    def prepare(image: np.ndarray) -> np.ndarray:
        if image.shape[:2] != size:
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        return preprocessing.normalise(image)

    return prepare


class Pixels:
    """The preprocessed images of a list, batch by batch; kept in memory after the first pass where they fit.

    ``load(i)`` gives image ``i`` as (H, W, 3) uint8, ``prepare`` makes (3, S, S) float32 of it.
    """

    def __init__(
        self,
        count: int,
        load: Callable[[int], np.ndarray],
        prepare: Callable[[np.ndarray], np.ndarray],
        memory: int = MEMORY,
    ) -> None:
        self._count, self._load, self._prepare, self._memory = count, load, prepare, memory
        self._kept: np.ndarray | None = None

    @classmethod
    def of_files(
        cls,
        names: Sequence[str],
        read: Callable[[str], bytes],
        prepare: Callable[[np.ndarray], np.ndarray],
        memory: int = MEMORY,
    ) -> Pixels:
        """Of encoded images: ``read(name)`` gives the content of a file."""
        return cls(len(names), lambda index: decode_image(read(names[index])), prepare, memory)

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int) -> Iterator[Tensor]:
        """Float32 tensors (B, 3, S, S) with B <= ``size``, in order."""
        pending: np.ndarray | None = None
        for start in range(0, self._count, size):
            stop = min(start + size, self._count)
            if self._kept is not None:
                yield torch.from_numpy(self._kept[start:stop])
                continue
            batch = np.stack([self._prepare(self._load(index)) for index in range(start, stop)])
            if start == 0 and batch[0].nbytes * self._count <= self._memory:
                pending = np.empty((self._count, *batch.shape[1:]), np.float32)
            if pending is not None:
                pending[start:stop] = batch
                if stop == self._count:
                    self._kept = pending
            yield torch.from_numpy(batch)


def extract(
    model: Backbone,
    pixels: Pixels,
    *,
    patches: bool = False,
    batch: int = 64,
    device: str | torch.device = "cpu",
    workers: int = 1,
) -> Features:
    """Features of every image of ``pixels`` in float32, in order. ``model`` should be in evaluation mode.

    ``workers`` batches are computed at once, in threads; the result does not depend on their number. Raises
    :class:`ValueError` for an empty list.
    """
    if not len(pixels):
        raise ValueError("no images to extract features from")

    def forward(pixel_batch: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        with torch.inference_mode():  # a property of the thread
            out = model(pixel_batch.to(device, torch.float32))
            dense = out["patches"].float()
            parts = out["cls"].float().cpu().numpy(), dense.mean(dim=1).cpu().numpy()
            return *parts, dense.cpu().numpy() if patches else None

    done: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[tuple[np.ndarray, np.ndarray, np.ndarray | None]]] = deque()
        for pixel_batch in pixels.batches(batch):
            waiting.append(pool.submit(forward, pixel_batch))
            if len(waiting) > workers:
                done.append(waiting.popleft().result())
        done += [future.result() for future in waiting]
    dense = [part for _, _, part in done if part is not None]
    return Features(
        np.concatenate([part for part, _, _ in done]),
        np.concatenate([part for _, part, _ in done]),
        np.concatenate(dense) if patches else None,
    )


def normalise_rows(features: np.ndarray) -> np.ndarray:
    """``features`` with rows of unit L2 norm over the last axis, float32; a zero row stays zero."""
    features = np.asarray(features, np.float32)
    norm = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.maximum(norm, 1e-12)
