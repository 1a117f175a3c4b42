"""The photometric part of augmentation: what is drawn for a crop, and its work on uint8 images, in OpenCV or in torch.

Values are rounded to uint8 after each operation, as the published code does on Pillow's images. Both ways agree within
a few levels: OpenCV multiplies integers where torch multiplies floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.recipe import Crops

REACH = 4
"""Pixels of a blur to each side: 9 taps."""
_GREY = (0.299, 0.587, 0.114)
_SOLARISED = np.where(np.arange(256) >= 128, 255 - np.arange(256), np.arange(256)).astype(np.uint8)


@dataclass(frozen=True)
class Distortion:
    """What one crop goes through, in this order: jitter, greyscale, blur, solarisation."""

    first: int = -1
    """The operations of the jitter (0 brightness, 1 contrast, 2 saturation, 3 hue) in their order; -1: no jitter."""
    second: int = -1
    third: int = -1
    fourth: int = -1
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    """Share of the circle."""
    grey: bool = False
    sigma: float = 0.0
    """Of the blur in pixels; 0: none."""
    solarised: bool = False

    @classmethod
    def draw(cls, crops: Crops, blur: float, solarise: float, rng: np.random.Generator) -> Distortion:
        """One with the probabilities of ``crops``, those of blur and solarisation as given."""
        drawn: dict[str, float] = {}
        if rng.random() < crops.colour_jitter:
            drawn |= draw_jitter(rng, crops.jitter_strength)
        if rng.random() < crops.greyscale:
            drawn["grey"] = True
        if rng.random() < blur:
            drawn["sigma"] = rng.uniform(*crops.blur_sigma)
        if rng.random() < solarise:
            drawn["solarised"] = True
        return cls(**drawn)  # type: ignore[arg-type]

    @classmethod
    def draw_all(cls, crops: Crops, rng: np.random.Generator) -> list[Distortion]:
        """Those of an image's two global and then its local crops."""
        views = range(2 + crops.local_count)
        return [cls.draw(crops, crops.blur[min(n, 2)], crops.solarise if n == 1 else 0.0, rng) for n in views]

    @property
    def order(self) -> tuple[int, ...]:
        """Operations of the jitter."""
        return tuple(each for each in (self.first, self.second, self.third, self.fourth) if each >= 0)

    def row(self) -> np.ndarray:
        """As (11,) float32, for :func:`distort_batch`."""
        return np.array(astuple(self), dtype=np.float32)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """``image`` (H, W, 3) uint8 RGB distorted; same shape and type."""
        image = np.ascontiguousarray(image)
        for operation in self.order:
            if operation == 0:
                image = cv2.convertScaleAbs(image, alpha=self.brightness)
            elif operation == 1:
                mean = round(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0])
                image = cv2.addWeighted(image, self.contrast, image, 0.0, (1 - self.contrast) * mean)
            elif operation == 2:
                image = cv2.transform(image, _saturation_matrix(self.saturation))
            else:
                hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
                turn = np.zeros((hsv.shape[1], 3), np.uint8)
                turn[:, 0] = round(256 * self.hue) % 256
                hsv = hsv.reshape(len(hsv), -1) + turn.ravel()  # a circle: 255 is followed by 0
                image = cv2.cvtColor(hsv.reshape(image.shape), cv2.COLOR_HSV2RGB_FULL)
        if self.grey:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if self.sigma:
            taps = cv2.getGaussianKernel(2 * _reach(self.sigma) + 1, self.sigma)
            image = cv2.sepFilter2D(image, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101)
        return cv2.LUT(image, _SOLARISED) if self.solarised else image


COLUMNS = len(astuple(Distortion()))
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _IS_GREY, _SIGMA, _IS_SOLARISED = range(4, COLUMNS)


def draw_jitter(rng: np.random.Generator, strength: tuple[float, float, float, float]) -> dict[str, float]:
    """Factors and order of a jitter of ``strength`` (brightness, contrast, saturation, hue)."""
    brightness, contrast, saturation = (float(rng.uniform(1 - s, 1 + s)) for s in strength[:3])
    drawn = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    drawn["hue"] = float(rng.uniform(-strength[3], strength[3]))
    return drawn | dict(zip(("first", "second", "third", "fourth"), map(int, rng.permutation(4)), strict=True))


def _saturation_matrix(saturation: float) -> np.ndarray:
    return (saturation * np.eye(3) + (1 - saturation) * np.array(_GREY, dtype=np.float32)).astype(np.float32)


def _reach(sigma: float) -> int:
    """Taps to each side; those that would not change a rounded value are left out."""
    return min(REACH, math.ceil(4 * sigma))


def distort_batch(crops: Tensor, rows: Tensor) -> Tensor:
    """``crops`` (N, H, W, 3) uint8 on any device, each with the distortion of its row of ``rows`` (N, 11).

    ``rows`` stay in the memory of the host, so that it never waits for the device. Returns whole numbers as float32
    (N, H, W, 3).
    """
    images = crops.float()

    def change(chosen: Tensor, operation: Callable[[Tensor, Tensor], Tensor], settings: Tensor) -> None:
        """Let ``operation`` work on the images where ``chosen`` (N,) bool, given their ``settings`` (N, ...)."""
        where = chosen.nonzero().squeeze(1)
        if len(where):
            own = settings[where].to(images.device, non_blocking=True)
            where = where.to(images.device, non_blocking=True)
            images[where] = operation(images[where], own)

    jitter = ((_brightened, _BRIGHTNESS), (_contrasted, _CONTRAST), (_saturated, _SATURATION), (_turned, _HUE))
    for place in range(len(jitter)):
        for number, (operation, column) in enumerate(jitter):
            change(rows[:, place] == number, operation, rows[:, column, None, None, None])
    change(rows[:, _IS_GREY] > 0, lambda images, _: _luminance(images).expand_as(images), rows)
    change(rows[:, _SIGMA] > 0, _blurred, _taps(rows[:, _SIGMA]))
    change(rows[:, _IS_SOLARISED] > 0, lambda images, _: torch.where(images < 128, images, 255 - images), rows)
    return images


def _rounded(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255)


def _luminance(images: Tensor) -> Tensor:
    """(N, H, W, 1), rounded as OpenCV does: weights in 1 / 32768, halves upwards."""
    weights = images.new_tensor((9798.0, 19235.0, 3735.0))
    return ((images * weights).sum(dim=-1, keepdim=True) / 32768 + 0.5).floor()


def _brightened(images: Tensor, factor: Tensor) -> Tensor:
    return _rounded(images * factor)


def _contrasted(images: Tensor, factor: Tensor) -> Tensor:
    mean = _luminance(images).mean(dim=(1, 2, 3), keepdim=True).round()
    return _rounded(images * factor + (1 - factor) * mean)


def _saturated(images: Tensor, factor: Tensor) -> Tensor:
    grey = (images * images.new_tensor(_GREY)).sum(dim=-1, keepdim=True)
    return _rounded(images * factor + (1 - factor) * grey)


def _turned(images: Tensor, turn: Tensor) -> Tensor:
    """Hue turned by a share of the circle, as OpenCV's uint8 HSV does it: 256 hues on the way there, 255 back."""
    value, largest = images.max(dim=-1)
    red, green, blue = images.unbind(dim=-1)
    spread = value - images.amin(dim=-1)
    safe = spread.clamp(min=1)
    sixth = torch.where(
        largest == 0,
        (green - blue) / safe,
        torch.where(largest == 1, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = (sixth * (256 / 6) + 0.5).floor() + (256 * turn.squeeze(-1)).round()
    saturation = (255 * spread / value.clamp(min=1) + 0.5).floor() / 255
    sixth = hue.remainder(256).unsqueeze(-1) * (6 / 255)
    share = (sixth + images.new_tensor((5.0, 3.0, 1.0))).remainder(6)  # of red, green and blue
    share = torch.minimum(share, 4 - share).clamp(0, 1)
    return _rounded(value.unsqueeze(-1) * (1 - saturation.unsqueeze(-1) * share))


def _taps(sigmas: Tensor) -> Tensor:
    """(N, 9) weights of Gaussians, cut at the reach of each; of sigma 0, one tap."""
    taps = torch.zeros(len(sigmas), 2 * REACH + 1)
    for tap, sigma in zip(taps, sigmas.tolist(), strict=True):
        reach = _reach(sigma) if sigma else 0
        weights = cv2.getGaussianKernel(2 * reach + 1, sigma or 1.0)[:, 0]
        tap[REACH - reach : REACH + reach + 1] = torch.from_numpy(weights)
    return taps


def _blurred(images: Tensor, taps: Tensor) -> Tensor:
    count, height, width, channels = images.shape
    flat = images.permute(0, 3, 1, 2).reshape(1, count * channels, height, width)
    weights = taps.repeat_interleave(channels, dim=0)[:, None]
    flat = F.pad(flat, (REACH, REACH, REACH, REACH), mode="reflect")
    flat = F.conv2d(flat, weights[:, :, None, :], groups=count * channels)
    flat = F.conv2d(flat, weights[:, :, :, None], groups=count * channels)
    return _rounded(flat).reshape(count, channels, height, width).permute(0, 2, 3, 1)
