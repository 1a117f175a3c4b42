"""One pass of a network over each list of images at each size, shared by all protocols that look at them.

A protocol says which lists it wants to see and how (:class:`Request`); the pass over a list gives all that any protocol
wants of it, and is forgotten when the last of them is done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from foundry.images import Preprocessing
from training.probes.baselines import BASELINES, patch_baseline
from training.probes.features import Features, Pixels, extract, squash


@dataclass(frozen=True)
class View:
    """How an image is shown.

    ``crop``: as the network's own preprocessing says. ``whole``: all of it, as a square of ``side`` pixels, or of
    ``grid`` patches where that is given; with neither, of the side that the network takes. ``native``: all of it with
    its proportions, the shorter side ``grid`` patches.
    """

    kind: Literal["crop", "whole", "native"] = "crop"
    side: int = 0
    grid: int = 0

    def square(self, crop: int, patch: int) -> int:
        """Side in pixels of a whole image, for a network that takes ``crop`` pixels in patches of ``patch``."""
        return self.side or self.grid * patch or crop


CROP = View()


@dataclass(frozen=True)
class Request:
    """What a protocol wants of a list of images."""

    images: str
    view: View = CROP
    patches: bool = False
    layers: int = 1
    """How many of the last layers' embeddings (:attr:`Features.layers`)."""


@dataclass(frozen=True)
class ImageList:
    """Images that networks are shown: ``load(i)`` gives the i-th as (H, W, 3) uint8."""

    count: int
    load: Callable[[int], np.ndarray]

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.load, range(self.count))


Lists = Mapping[str, ImageList]
"""Name of a list -> its images."""


class Passes(ABC):
    """Where a protocol gets features from. ``requests`` are those of every protocol that will ask."""

    def __init__(self, lists: Lists, requests: Iterable[Request]) -> None:
        self.lists = lists
        requests = list(requests)
        self._left = Counter((request.images, request.view) for request in requests)
        self._wanted: dict[tuple[str, View], Request] = {}
        for request in requests:
            key = request.images, request.view
            known = self._wanted.get(key, request)
            patches, layers = request.patches or known.patches, max(request.layers, known.layers)
            self._wanted[key] = Request(*key, patches, layers)
        self._kept: dict[tuple[str, View], Features] = {}

    def features(self, images: str, view: View = CROP) -> Features:
        """What a network says of the images of a list that was asked for."""
        key = images, view
        if key not in self._kept:
            self._kept[key] = self._pass(self._wanted[key])
        return self._kept[key]

    def done(self, requests: Iterable[Request]) -> None:
        """Say that the protocol with these requests is done; what nobody else wants is forgotten."""
        for request in requests:
            key = request.images, request.view
            self._left[key] -= 1
            if self._left[key] <= 0:
                self._kept.pop(key, None)

    @abstractmethod
    def _pass(self, request: Request) -> Features: ...

    @abstractmethod
    def maps(self, images: str, view: View) -> Iterator[np.ndarray]:
        """(h, w, D) float32 patch features of each image of a list in turn, shown natively; nothing is kept.

        Raises :class:`LookupError` where there are none (:attr:`dense`).
        """

    @property
    @abstractmethod
    def dense(self) -> bool:
        """Whether images can be shown natively."""


class PixelStore:
    """Prepared pixels of lists of images, kept from one network to the next that sees the same, within ``memory``
    bytes for all lists together."""

    def __init__(self, lists: Lists, memory: int = 512 << 20) -> None:
        self.lists, self._memory = lists, memory
        self._sight: Any = None
        self._pixels: dict[tuple[str, View], Pixels] = {}

    def of(self, images: str, view: View, preprocessing: Preprocessing, patch: int) -> Pixels:
        """The pixels of a list for a network with this preprocessing and patch size."""
        if self._sight != (preprocessing, patch):
            self._sight, self._pixels = (preprocessing, patch), {}
        key = images, view
        if key not in self._pixels:
            chosen = self.lists[images]
            left = self._memory - sum(pixels.nbytes for pixels in self._pixels.values())
            shape = shown_as(view, preprocessing, patch)
            self._pixels[key] = Pixels(chosen.count, chosen.load, preprocessing, left, shape)
        return self._pixels[key]


def shown_as(view: View, preprocessing: Preprocessing, patch: int) -> Callable[[np.ndarray], np.ndarray]:
    """(H, W, 3) uint8 -> the square of pixels, uint8, that a network sees of an image by ``view``."""
    if view.kind == "crop":
        return preprocessing.crop_pixels
    return squash(view.square(preprocessing.crop, patch))


def patch_size(model: Any) -> int:
    """Side in pixels of the patches of a network: of ours, or of one that says ``patch_size``."""
    config = getattr(model, "config", None)
    for owner, name in ((model, "patch_size"), (config, "patch_size"), (config, "stride")):
        value = getattr(owner, name, None)
        if isinstance(value, int):
            return value
    raise TypeError(f"{type(model).__name__} does not say the size of its patches")


class NetworkPasses(Passes):
    """Passes of one network. ``forwards`` counts the images that went through it, by list and view."""

    def __init__(
        self,
        model: Any,
        preprocessing: Preprocessing,
        lists: Lists,
        requests: Iterable[Request],
        *,
        pixels: PixelStore | None = None,
        batch: int = 64,
        device: str | torch.device = "cpu",
        workers: int = 1,
    ) -> None:
        super().__init__(lists, requests)
        self._model, self._preprocessing = model, preprocessing
        self._pixels = pixels or PixelStore(lists)
        self._batch, self._device, self._workers = batch, device, workers
        self.patch = patch_size(model)
        self.forwards: Counter[tuple[str, View]] = Counter()

    @property
    def dense(self) -> bool:
        """True."""
        return True

    def _pass(self, request: Request) -> Features:
        pixels = self._pixels.of(request.images, request.view, self._preprocessing, self.patch)
        self.forwards[request.images, request.view] += len(pixels)
        return extract(
            self._model,
            pixels,
            patches=request.patches,
            layers=request.layers,
            batch=self._batch,
            device=self._device,
            workers=self._workers,
        )

    def maps(self, images: str, view: View) -> Iterator[np.ndarray]:
        """See :meth:`Passes.maps`; one image at a time, since they differ in size."""
        for image in self.lists[images]:
            height, width = native_size(image.shape[0], image.shape[1], view.grid, self.patch)
            resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
            shown = self._preprocessing.normalise(resized)
            self.forwards[images, view] += 1
            with torch.inference_mode():
                patches = self._model(torch.from_numpy(shown[None]).to(self._device))["patches"]
            yield patches[0].float().cpu().numpy().reshape(height // self.patch, width // self.patch, -1)


def native_size(height: int, width: int, grid: int, patch: int) -> tuple[int, int]:
    """(height, width) in pixels at which an image is shown natively: the shorter side ``grid`` patches, the longer one
    in proportion, to the nearest whole patch."""
    longer = max(round(grid * max(height, width) / min(height, width)), grid)
    return (grid * patch, longer * patch) if height <= width else (longer * patch, grid * patch)


class BaselinePasses(Passes):
    """Raw pixels or colours in place of a network; dense ones in cells of a square grid.

    ``crop`` and ``patch`` are those of a network beside which it stands: whole images have as many cells as that has
    patches.
    """

    def __init__(self, name: str, lists: Lists, requests: Sequence[Request], *, crop: int, patch: int) -> None:
        super().__init__(lists, requests)
        self._name, self._crop, self._patch = name, crop, patch

    @property
    def dense(self) -> bool:
        """False."""
        return False

    def _pass(self, request: Request) -> Features:
        images = self.lists[request.images]
        cls = np.stack([BASELINES[self._name](image) for image in images])
        dense = None
        if request.patches:
            grid = request.view.square(self._crop, self._patch) // self._patch
            dense = np.stack([patch_baseline(self._name, image, grid) for image in images])
        mean = dense.mean(1) if dense is not None else cls[:, :0]
        return Features(cls, mean, dense, (cls,) * request.layers)

    def maps(self, images: str, view: View) -> Iterator[np.ndarray]:
        """Raises :class:`LookupError`."""
        raise LookupError(f"{self._name} has no features of natively shown images")
