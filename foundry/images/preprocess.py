"""Pixels to model input: shortest edge to a size, centre crop, normalisation. One implementation for all parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from foundry.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_SIDE = 8192
"""Largest ``resize``."""
MAX_RESIZED_PIXELS = 2**24
"""Largest whole resized image; with ``resize`` 256, proportions of 256 to 1."""

_BICUBIC = 3
"""The number of bicubic interpolation in Pillow, and in ``preprocessor_config.json``."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of one model.

    The shorter edge is resized to ``resize`` pixels and the longer one in proportion, rounded down (bicubic with
    antialiasing, Pillow's; smaller images are enlarged); the central ``crop`` x ``crop`` square is cut out; then
    (value / 255 - ``mean``) / ``std`` for each of the three channels.

    Raises :class:`UserError` for values that make no model input.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
                raise UserError(f"preprocessing: {name} = {value!r}: give a whole number from 1 to {MAX_SIDE}")
        if self.crop > self.resize:
            raise UserError(f"preprocessing: crop = {self.crop} is larger than resize = {self.resize}")
        for name in ("mean", "std"):
            value = tuple(float(x) for x in getattr(self, name))
            if len(value) != 3 or not all(math.isfinite(x) for x in value) or (name == "std" and min(value) <= 0):
                raise UserError(f"preprocessing: {name} = {getattr(self, name)!r}: give three numbers (std above zero)")
            object.__setattr__(self, name, value)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Read the mapping of a Hugging Face ``preprocessor_config.json``.

        Raises :class:`UserError` for one that asks for anything this class does not do.
        """

        def need(condition: bool, what: str) -> None:
            if not condition:
                raise UserError(f"preprocessor_config.json: {what}")

        def side(name: str, *keys: str) -> int:
            sizes = config.get(name)
            need(
                isinstance(sizes, Mapping) and set(sizes) == set(keys) and len(set(sizes.values())) == 1,
                f"{name} = {sizes!r}: expected " + ", ".join(f"'{key}'" for key in keys) + " (a square)",
            )
            assert isinstance(sizes, Mapping)
            value = sizes[keys[0]]
            need(isinstance(value, (int, float)) and value == int(value), f"{name} = {sizes!r}: not a whole number")
            return int(value)

        for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
            need(config.get(name) is True, f"{name} = {config.get(name)!r}: only true is supported")
        resample = config.get("resample")
        need(resample == _BICUBIC, f"resample = {resample!r}: only {_BICUBIC} (bicubic) is supported")
        factor = config.get("rescale_factor")
        need(
            isinstance(factor, (int, float)) and math.isclose(factor, 1 / 255, rel_tol=1e-6),
            f"rescale_factor = {factor!r}: only 1/255 is supported",
        )
        for name in ("image_mean", "image_std"):
            values = config.get(name)
            need(
                isinstance(values, (list, tuple)) and all(isinstance(x, (int, float)) for x in values),
                f"{name} = {values!r}: expected three numbers",
            )
        return cls(
            resize=side("size", "shortest_edge"),
            crop=side("crop_size", "height", "width"),
            mean=tuple(config["image_mean"]),
            std=tuple(config["image_std"]),
        )

    def to_config(self) -> dict[str, Any]:
        """The mapping of a ``preprocessor_config.json`` that Hugging Face's processors and :meth:`from_config` read."""
        return {
            "do_resize": True,
            "size": {"shortest_edge": self.resize},
            "do_center_crop": True,
            "crop_size": {"height": self.crop, "width": self.crop},
            "resample": _BICUBIC,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "image_processor_type": "DINOv3ViTImageProcessorFast",
        }

    def crop_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """The resized central square, uint8 (crop, crop, 3), of ``pixels`` uint8 (H, W, 3).

        The whole image is resized and then cut, as Hugging Face's processors on Pillow do. Where the resized image
        would have more than :data:`MAX_RESIZED_PIXELS` (a strip of extreme proportions), only the part that the
        square shows is computed: the same filter at the same places, so that memory stays bounded.
        """
        from PIL import Image

        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise ValueError(f"expected uint8 pixels of shape (height, width, 3), got {pixels.dtype} {pixels.shape}")
        height, width = pixels.shape[:2]
        shorter = min(height, width)
        new_height, new_width = self.resize * height // shorter, self.resize * width // shorter
        top, left = (new_height - self.crop) // 2, (new_width - self.crop) // 2
        image = Image.fromarray(np.ascontiguousarray(pixels))
        bicubic = Image.Resampling.BICUBIC
        if new_height * new_width <= MAX_RESIZED_PIXELS:
            resized = image.resize((new_width, new_height), bicubic)
            return np.array(resized.crop((left, top, left + self.crop, top + self.crop)))
        across, down = width / new_width, height / new_height
        right, bottom = min((left + self.crop) * across, width), min((top + self.crop) * down, height)
        return np.array(image.resize((self.crop, self.crop), bicubic, (left * across, top * down, right, bottom)))

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """float32 (..., 3, H, W) of uint8 ``pixels`` (..., H, W, 3)."""
        channels = [self._table[channel][pixels[..., channel]] for channel in range(3)]
        return np.stack(channels, axis=-3)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Model input, float32 (3, crop, crop), of ``pixels`` uint8 (H, W, 3)."""
        return self.normalise(self.crop_pixels(pixels))

    @cached_property
    def _table(self) -> np.ndarray:
        """(3, 256) float32: the normalised value of each channel and level, rounded once from float64."""
        levels = np.arange(256) / 255
        return ((levels - np.array(self.mean)[:, None]) / np.array(self.std)[:, None]).astype(np.float32)
