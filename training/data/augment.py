"""Multi-crop augmentation (Caron et al. 2021, section 3; Oquab et al. 2023, appendix B) on uint8 images.

Every draw comes from the generator that is passed in. Resizing a crop down averages areas, up is bicubic; colours are
worked in float32 and rounded once at the end. Sizes are in pixels, images (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from training.recipe import Crops, CropSizes

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Views:
    """The crops of one image: ``global_`` (2, G, G, 3), ``local`` (L, l, l, 3), ``gram`` (2 or 0, g, g, 3), uint8."""

    global_: np.ndarray
    local: np.ndarray
    gram: np.ndarray


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
    """``image`` (H, W, 3) at (size, size): area averaging where it shrinks, bicubic where it grows."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    if height >= size and width >= size:
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    if height < size and width < size:
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
    wide = cv2.resize(image, (size, height), interpolation=cv2.INTER_AREA if width > size else cv2.INTER_CUBIC)
    return cv2.resize(wide, (size, size), interpolation=cv2.INTER_AREA if height > size else cv2.INTER_CUBIC)


def colour_jitter(
    image: np.ndarray, rng: np.random.Generator, strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
) -> np.ndarray:
    """Brightness, contrast, saturation and hue jitter of ``strength`` in random order; float32 in [0, 255]."""
    brightness, contrast, saturation = (rng.uniform(1 - s, 1 + s) for s in strength[:3])
    hue = rng.uniform(-strength[3], strength[3])
    for operation in rng.permutation(4):
        if operation == 0:
            image = image * np.float32(brightness)
        elif operation == 1:
            mean = float((image @ _GREY).mean())
            image = image * np.float32(contrast) + np.float32((1 - contrast) * mean)
        elif operation == 2:
            image = image * np.float32(saturation) + np.float32(1 - saturation) * (image @ _GREY)[..., None]
        else:
            hsv = cv2.cvtColor(np.ascontiguousarray(image) * np.float32(1 / 255), cv2.COLOR_RGB2HSV)
            hsv[..., 0] = (hsv[..., 0] + np.float32(360 * hue)) % 360
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * np.float32(255)
        image = np.clip(image, 0, 255)
    return image


def distort(image: np.ndarray, crops: Crops, blur: float, solarise: float, rng: np.random.Generator) -> np.ndarray:
    """The photometric part: jitter, greyscale, blur, solarisation; uint8 in and out, same shape."""
    result = image.astype(np.float32)
    if rng.random() < crops.colour_jitter:
        result = colour_jitter(result, rng, crops.jitter_strength)
    if rng.random() < crops.greyscale:
        result = np.repeat((result @ _GREY)[..., None], 3, axis=2)
    if rng.random() < blur:
        result = cv2.GaussianBlur(result, (9, 9), rng.uniform(*crops.blur_sigma), borderType=cv2.BORDER_REFLECT_101)
    result = np.rint(result).clip(0, 255).astype(np.uint8)
    if rng.random() < solarise:
        result = np.where(result >= 128, 255 - result, result)
    return result


class MultiCrop:
    """Makes the :class:`Views` of one image. ``scale`` enlarges all crops (for students of a larger stride)."""

    def __init__(self, crops: Crops, scale: int = 1) -> None:
        self.crops, self.scale = crops, scale

    def __call__(self, image: np.ndarray, rng: np.random.Generator, sizes: CropSizes | None = None) -> Views:
        """``image`` (H, W, 3) uint8; all draws from ``rng``. ``sizes`` of this step, where the recipe mixes several."""
        crops, sizes = self.crops, sizes or self.crops.sizes()[0]
        size, gram_size = sizes.global_size * self.scale, sizes.gram_size
        views, gram = [], []
        for number in range(2):
            base = self._crop(image, max(size, gram_size), crops.global_scale, rng)
            if gram_size:
                gram.append(resize(base, gram_size))
            solarise = crops.solarise if number == 1 else 0.0
            views.append(distort(resize(base, size), crops, crops.blur[number], solarise, rng))
        local_size = sizes.local_size * self.scale
        local = [
            distort(self._crop(image, local_size, crops.local_scale, rng), crops, crops.blur[2], 0.0, rng)
            for _ in range(crops.local_count)
        ]
        return Views(
            np.stack(views),
            np.stack(local) if local else np.zeros((0, local_size, local_size, 3), np.uint8),
            np.stack(gram) if gram else np.zeros((0, 1, 1, 3), np.uint8),
        )

    def _crop(self, image: np.ndarray, size: int, scale: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
        top, left, h, w = random_area(image.shape[0], image.shape[1], scale, self.crops.aspect, rng)
        view = resize(image[top : top + h, left : left + w], size)
        view = view[:, ::-1] if rng.random() < self.crops.horizontal_flip else view
        return view[::-1] if self.crops.vertical_flip and rng.random() < self.crops.vertical_flip else view
