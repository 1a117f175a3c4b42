"""Multi-crop augmentation (Caron et al. 2021, section 3; Oquab et al. 2023, appendix B) on uint8 images.

Every draw comes from the generator that is passed in. Crops are resized by an antialiased bicubic filter, as the
published code does on Pillow's images. Sizes are in pixels, images (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from training.data.distortion import COLUMNS, Distortion
from training.recipe import Crops, CropSizes


@dataclass(frozen=True)
class Views:
    """The crops of one image: ``global_`` (2, G, G, 3), ``local`` (L, l, l, 3), ``gram`` (2 or 0, g, g, 3), uint8.

    ``distortions`` (2 + L, 11): rows of the distortions of global and local crops that are still to be done; (0, 11)
    where they are done.
    """

    global_: np.ndarray
    local: np.ndarray
    gram: np.ndarray
    distortions: np.ndarray


def random_area(
    height: int, width: int, scale: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random area: a share in ``scale`` of the image, aspect ratio in ``aspect``.

    Ten draws; where none fits, the largest centred area of an allowed aspect ratio (torchvision's RandomResizedCrop).
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    ratio = min(max(width / height, aspect[0]), aspect[1])
    w, h = min(width, max(round(height * ratio), 1)), min(height, max(round(width / ratio), 1))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """``image`` (H, W, 3) at (size, size) by an antialiased bicubic filter, Pillow's within one level."""
    if image.shape[:2] == (size, size):
        return image
    # (1, 3, H, W) with channels innermost: torch then works on the uint8 samples where they lie
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1).unsqueeze(0)
    resized = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)
    return resized.squeeze(0).permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class Area:
    """A part of an image to be cut, in pixels of the whole image, and how to mirror it."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool
    upside_down: bool
    size: int
    """Side of the crop that it becomes."""

    def cut(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        """The crop from ``image``, which shows the (height, width) image, perhaps at a smaller scale."""
        down, across = image.shape[0] / height, image.shape[1] / width
        top, left = round(self.top * down), round(self.left * across)
        bottom, right = round((self.top + self.height) * down), round((self.left + self.width) * across)
        crop = resize(image[top : max(bottom, top + 1), left : max(right, left + 1)], self.size)
        if self.mirrored or self.upside_down:
            crop = cv2.flip(crop, 1 if not self.upside_down else -1 if self.mirrored else 0)
        return crop


class MultiCrop:
    """Makes the :class:`Views` of one image. ``scale`` enlarges all crops (for students of a larger stride).

    ``distorts``: whether the crops are distorted here; the draws are the same either way.
    """

    def __init__(self, crops: Crops, scale: int = 1, distorts: bool = True) -> None:
        self.crops, self.scale, self.distorts = crops, scale, distorts

    def __call__(self, image: np.ndarray, rng: np.random.Generator, sizes: CropSizes | None = None) -> Views:
        """``image`` (H, W, 3) uint8; all draws from ``rng``. ``sizes`` of this step, where the recipe mixes several."""
        height, width = image.shape[:2]
        sizes = sizes or self.crops.sizes()[0]
        return self.views(image, (height, width), self.areas(height, width, rng, sizes), rng, sizes)

    def areas(self, height: int, width: int, rng: np.random.Generator, sizes: CropSizes) -> list[Area]:
        """What of a (height, width) image its two global crops and then its local crops show."""
        crops = self.crops
        wide = max(sizes.global_size * self.scale, sizes.gram_size)
        wanted = [(wide, crops.global_scale)] * 2
        wanted += [(sizes.local_size * self.scale, crops.local_scale)] * crops.local_count
        found = []
        for size, scale in wanted:
            area = random_area(height, width, scale, crops.aspect, rng)
            mirrored, upside_down = rng.random(2) < (crops.horizontal_flip, crops.vertical_flip)
            found.append(Area(*area, bool(mirrored), bool(upside_down), size))
        return found

    def views(
        self,
        image: np.ndarray,
        whole: tuple[int, int],
        areas: list[Area],
        rng: np.random.Generator,
        sizes: CropSizes,
    ) -> Views:
        """The crops of ``areas``, distorted. ``image`` shows one of size ``whole``, perhaps at a smaller scale."""
        crops, size, gram_size = self.crops, sizes.global_size * self.scale, sizes.gram_size
        drawn = Distortion.draw_all(crops, rng)
        views, gram = [], []
        for number, (area, distortion) in enumerate(zip(areas, drawn, strict=True)):
            view = area.cut(image, *whole)
            if number < 2:
                if gram_size:
                    gram.append(resize(view, gram_size))
                view = resize(view, size)
            views.append(distortion(view) if self.distorts else view)
        side = sizes.local_size * self.scale
        return Views(
            np.stack(views[:2]),
            np.stack(views[2:]) if views[2:] else np.zeros((0, side, side, 3), np.uint8),
            np.stack(gram) if gram else np.zeros((0, 1, 1, 3), np.uint8),
            np.zeros((0, COLUMNS), np.float32) if self.distorts else np.stack([each.row() for each in drawn]),
        )


def shrinkage(areas: list[Area]) -> int:
    """By how much an image may be shrunk (1, 2, 4 or 8) so that no area is smaller than the crop it becomes."""
    least = min(min(area.height, area.width) / area.size for area in areas)
    return next((factor for factor in (8, 4, 2) if least >= factor), 1)
