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
    layers: tuple[np.ndarray, ...] = ()
    """(N, D) float32 image embeddings of the last layers, the last one (``cls``) last, where they were asked for."""

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


def squash(side: int) -> Callable[[np.ndarray], np.ndarray]:
    """The whole image, (H, W, 3) uint8, resized to ``side`` x ``side`` whatever its proportions, nothing cropped.

    For dense protocols, in which every pixel is scored.
    """
    from PIL import Image

    def show(image: np.ndarray) -> np.ndarray:
        if image.shape[:2] == (side, side):
            return image
        return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))

    return show


class Pixels:
    """The images of a list as a network sees them, batch by batch; kept in memory after the first pass where they fit.

    ``load(i)`` gives image ``i`` as (H, W, 3) uint8, ``show`` the (S, S, 3) uint8 of it that the network sees: the
    central crop of the ``preprocessing`` where nothing else is said.
    """

    def __init__(
        self,
        count: int,
        load: Callable[[int], np.ndarray],
        preprocessing: Preprocessing,
        memory: int = MEMORY,
        show: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self._count, self._load, self._memory = count, load, memory
        self._show, self._normalise = show or preprocessing.crop_pixels, preprocessing.normalise
        self._kept: np.ndarray | None = None

    @classmethod
    def of_files(
        cls,
        names: Sequence[str],
        read: Callable[[str], bytes],
        preprocessing: Preprocessing,
        show: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Pixels:
        """Of encoded images: ``read(name)`` gives the content of a file."""
        return cls(len(names), lambda index: decode_image(read(names[index])), preprocessing, show=show)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return 0 if self._kept is None else self._kept.nbytes

    def batches(self, size: int) -> Iterator[Tensor]:
        """Float32 tensors (B, 3, S, S) with B <= ``size``, in order."""
        pending: np.ndarray | None = None
        for start in range(0, self._count, size):
            stop = min(start + size, self._count)
            if self._kept is not None:
                yield torch.from_numpy(self._normalise(self._kept[start:stop]))
                continue
            batch = np.stack([self._show(self._load(index)) for index in range(start, stop)])
            if start == 0 and batch[0].nbytes * self._count <= self._memory:
                pending = np.empty((self._count, *batch.shape[1:]), np.uint8)
            if pending is not None:
                pending[start:stop] = batch
                if stop == self._count:
                    self._kept = pending
            yield torch.from_numpy(self._normalise(batch))


def extract(
    model: Backbone,
    pixels: Pixels,
    *,
    patches: bool = False,
    layers: int = 1,
    batch: int = 64,
    device: str | torch.device = "cpu",
    workers: int = 1,
) -> Features:
    """Features of every image of ``pixels`` in float32, in order. ``model`` should be in evaluation mode.

    With ``layers`` above 1 the embeddings of so many last layers are kept too: of a network with
    ``intermediate_layers``, and at most as many as it has. ``workers`` batches are computed at once, in threads; the
    result does not depend on their number. Raises :class:`ValueError` for an empty list.
    """
    if not len(pixels):
        raise ValueError("no images to extract features from")
    deep = getattr(model, "intermediate_layers", None) if layers > 1 else None
    count = min(layers, depth_of(model)) if deep is not None else 1

    def forward(pixel_batch: Tensor) -> tuple[list[np.ndarray], np.ndarray, np.ndarray | None]:
        with torch.inference_mode():  # a property of the thread
            shown = pixel_batch.to(device, torch.float32)
            outputs = deep(shown, count) if deep is not None else [model(shown)]
            dense = outputs[-1]["patches"].float()
            embedded = [out["cls"].float().cpu().numpy() for out in outputs]
            mean = dense.mean(dim=1).cpu().numpy()
            return embedded, mean, dense.cpu().numpy() if patches else None

    done: list[tuple[list[np.ndarray], np.ndarray, np.ndarray | None]] = []
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[tuple[list[np.ndarray], np.ndarray, np.ndarray | None]]] = deque()
        for pixel_batch in pixels.batches(batch):
            waiting.append(pool.submit(forward, pixel_batch))
            if len(waiting) > workers:
                done.append(waiting.popleft().result())
        done += [future.result() for future in waiting]
    dense = [part for _, _, part in done if part is not None]
    embedded = tuple(np.concatenate([parts[layer] for parts, _, _ in done]) for layer in range(count))
    return Features(
        embedded[-1],
        np.concatenate([part for _, part, _ in done]),
        np.concatenate(dense) if patches else None,
        embedded,
    )


def depth_of(model: object) -> int:
    """How many layers :func:`extract` may take of a network: its blocks, or the stages of a convolutional one."""
    for name in ("blocks", "stages", "layers"):
        found = getattr(model, name, None)
        if found is not None:
            return len(found) if not isinstance(found, int) else found
    return 1


def normalise_rows(features: np.ndarray) -> np.ndarray:
    """``features`` with rows of unit L2 norm over the last axis, float32; a zero row stays zero."""
    features = np.asarray(features, np.float32)
    norm = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.maximum(norm, 1e-12)
