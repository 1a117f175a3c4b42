"""From a batch of uint8 crops to what networks see: normalised float crops at each network's scale."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.distortion import distort_batch
from training.data.loader import Batch
from training.recipe import Crops


class Views:
    """The crops of a batch, normalised, at any scale up to the one that the loader made them at.

    A network of scale s sees crops s times as large as the recipe says: a ConvNeXt of stride 32 beside a teacher of
    patch 16 has scale 2, so that both make the same grid of patches.
    """

    def __init__(self, batch: Batch, crops: Crops, scale: int) -> None:
        self.batch, self.scale = batch, scale
        self._mean, self._factor = _statistics(crops.mean, crops.std, batch.global_.device)
        self._made: dict[tuple[str, int], Tensor] = {}

    def global_crops(self, scale: int = 1) -> Tensor:
        """(2B, 3, S, S), crop-major, with S = ``scale`` times the recipe's global size."""
        return self._at("global", scale)

    def local_crops(self, scale: int = 1) -> Tensor:
        """(L*B, 3, s, s), crop-major; L may be 0."""
        return self._at("local", scale)

    def gram_crops(self) -> Tensor:
        """(2B, 3, g, g) undistorted global crops for the Gram teacher."""
        return self._normalised(self.batch.gram)

    def _at(self, kind: str, scale: int) -> Tensor:
        if (kind, scale) not in self._made:
            pixels = self._normalised(self._distorted(kind))
            if scale != self.scale:
                pixels = F.avg_pool2d(pixels, self.scale // scale)
            self._made[kind, scale] = pixels
        return self._made[kind, scale]

    def _distorted(self, kind: str) -> Tensor:
        batch = self.batch
        crops = batch.global_ if kind == "global" else batch.local
        if not len(batch.distortions):  # done by the loader
            return crops
        count = len(batch.global_)
        return distort_batch(crops, batch.distortions[:count] if kind == "global" else batch.distortions[count:])

    def _normalised(self, crops: Tensor) -> Tensor:
        return (crops.permute(0, 3, 1, 2).float() - self._mean) * self._factor


@functools.lru_cache
def _statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(mean, 1 / standard deviation) of levels 0 ... 255, (1, 3, 1, 1) each; copied to a device once."""
    shape = (1, len(mean), 1, 1)
    return torch.tensor(mean, device=device).view(shape) * 255, 1 / (torch.tensor(std, device=device).view(shape) * 255)
