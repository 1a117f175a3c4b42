"""Scenes with an object at a known place: a piece of one image, planted into another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE = 224
"""Shorter side of a scene in pixels."""


def planted_scenes(images: Sequence[np.ndarray], seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(scenes, boxes): a scene (H, W, 3) uint8 of each (H, W, 3) uint8 image, and the object's box (1, 4) float64:
    top, left, bottom, right in pixels.

    The background is the image, its shorter side :data:`SIDE` pixels. The object is an ellipse out of the middle of
    another image, 35 to 60 % of the scene's sides wide and high, anywhere. Scene i depends on ``seed``, i and the
    images. Raises :class:`ValueError` for fewer than two images.
    """
    if len(images) < 2:
        raise ValueError("planting needs two images at least")
    scenes, boxes = [], []
    for index, image in enumerate(images):
        rng = np.random.default_rng([seed, index])
        scene = _at_side(image)
        height, width = scene.shape[:2]
        tall, wide = (round(size * rng.uniform(0.35, 0.6)) for size in (height, width))
        top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
        other = (index + 1 + int(rng.integers(len(images) - 1))) % len(images)
        piece = _middle(images[other], tall, wide)
        y, x = np.mgrid[0:tall, 0:wide]
        inside = ((y + 0.5) / tall - 0.5) ** 2 + ((x + 0.5) / wide - 0.5) ** 2 <= 0.25
        scene[top : top + tall, left : left + wide][inside] = piece[inside]
        scenes.append(scene)
        boxes.append(np.array([[top, left, top + tall, left + wide]], np.float64))
    return scenes, boxes


def _at_side(image: np.ndarray) -> np.ndarray:
    """A copy with a shorter side of :data:`SIDE` and a longer one of twice that at most."""
    height, width = image.shape[:2]
    scale = SIDE / min(height, width)
    size = min(round(width * scale), 2 * SIDE), min(round(height * scale), 2 * SIDE)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _middle(image: np.ndarray, tall: int, wide: int) -> np.ndarray:
    """The largest middle part of these proportions, at this size."""
    height, width = image.shape[:2]
    scale = min(height / tall, width / wide)
    h, w = min(tall * scale, height), min(wide * scale, width)
    box = ((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2)
    return np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BICUBIC, box))
