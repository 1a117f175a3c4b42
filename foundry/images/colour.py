"""Colours to sRGB: embedded ICC profiles, CMYK, CIELAB; and transparency over the background."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

BACKGROUND = 255
"""Every channel of the colour behind transparent pixels: white."""
MAX_PROFILE_BYTES = 4 * 2**20
"""A larger ICC profile is ignored."""
STRIP_PIXELS = 2**20
"""Pixels worked on at once where an intermediate is wider than the result."""

_PROFILE_SPACE = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
_PROFILE_CLASSES = {"scnr", "mntr", "prtr", "spac"}


def to_srgb(image: Image.Image, profile: bytes | None) -> np.ndarray:
    """sRGB pixels, uint8 (H, W, 3), of a Pillow image of mode L, RGB, CMYK or LAB without transparency.

    A ``profile`` that fits the mode and is not sRGB itself is applied with the perceptual intent; any other is
    ignored. Without one L and RGB are taken as sRGB, CMYK by (255 - ink) * (255 - black) / 255, LAB as CIELAB D50.
    """
    transform = _lab_transform() if image.mode == "LAB" else _profile_transform(profile or b"", image.mode)
    if transform is None and image.mode == "L":
        return np.repeat(np.asarray(image)[:, :, None], 3, axis=2)
    if transform is None:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    if image.mode == "L":
        return _colours_of_levels(transform)[np.asarray(image)]
    return np.asarray(transform.apply(image))


def over_background(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """``pixels`` uint8 (H, W, 3) with straight ``alpha`` uint8 (H, W) over :data:`BACKGROUND`, rounded to nearest."""
    height, width = alpha.shape
    result = np.empty_like(pixels)
    step = max(1, STRIP_PIXELS // width)
    for top in range(0, height, step):
        rows = slice(top, top + step)
        weight = alpha[rows, :, None].astype(np.uint16)
        # at most 255 * 255 + 127, which uint16 holds
        total = pixels[rows] * weight + (255 - weight) * np.uint16(BACKGROUND) + np.uint16(127)
        result[rows] = total // np.uint16(255)
    return result


@functools.lru_cache(maxsize=16)
def _profile_transform(profile: bytes, mode: str) -> Any | None:
    """The transform of an ICC profile to sRGB, or None where it is absent, broken, of another space or sRGB already."""
    from PIL import Image, ImageCms

    space = _PROFILE_SPACE.get(mode)
    if not profile or space is None or len(profile) > MAX_PROFILE_BYTES:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        header = source.profile
        if header.xcolor_space.strip() != space or header.device_class not in _PROFILE_CLASSES:
            return None
        if mode == "CMYK":
            return _transform(source, mode)
        # A profile is sRGB if it leaves a lattice of colours where they are, whatever its name says. The many
        # vintages of the sRGB profile move a colour by one step at most; converting those would only add noise.
        if mode == "RGB":
            transform = _transform(source, mode)
            steps = np.rint(np.linspace(0, 255, 18)).astype(np.uint8)
            lattice = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(18, -1, 3)
            moved = np.asarray(transform.apply(Image.fromarray(lattice))).astype(np.int16) - lattice
        else:
            transform = _transform(source, mode, ImageCms.Flags.NOOPTIMIZE)
            moved = _colours_of_levels(transform).astype(np.int16) - np.arange(256)[:, None]
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, UnicodeError):
        return None
    return transform if np.abs(moved).max() > 1 else None


def _colours_of_levels(transform: Any) -> np.ndarray:
    """uint8 (256, 3): what a transform of grey makes of each level."""
    from PIL import Image

    return np.asarray(transform.apply(Image.fromarray(np.arange(256, dtype=np.uint8)[None])))[0]


@functools.lru_cache(maxsize=1)
def _lab_transform() -> Any:
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB", 5000))
    return _transform(source, "LAB", ImageCms.Flags.NOOPTIMIZE)


def _transform(source: Any, mode: str, flags: Any = 0) -> Any:
    """An lcms transform to sRGB.

    Its optimised tables are right to one level for RGB, but up to 20 levels wrong in the dark for grey curves and
    CIELAB: callers ask for NOOPTIMIZE there.
    """
    from PIL import ImageCms

    target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    # without the cache of the last colour, threads can share a transform
    flags = ImageCms.Flags.NOCACHE | flags
    return ImageCms.ImageCmsTransform(source, target, mode, "RGB", ImageCms.Intent.PERCEPTUAL, flags=flags)
