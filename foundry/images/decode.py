"""Encoded bytes to pixels: the one decoder of training, evaluation, registration and serving.

What every kind of image becomes is the table in docs/pixels.md. In short: upright 8-bit sRGB of the first frame,
transparency over white, wider samples scaled to 8 bits, everything else an :class:`ImageError` with a reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foundry.images import structure
from foundry.images.errors import ImageError
from foundry.images.formats import FORMATS, REFUSED_FORMATS, describe_content, sniff
from foundry.images.guard import only_image_errors
from foundry.images.limits import DEFAULT_LIMITS, DecodeLimits
from foundry.images.orientation import swaps_sides, upright
from foundry.images.samples import Opened, construct, srgb_pixels


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image says. ``width`` and ``height`` are those of the decoded (upright) image."""

    format: str
    width: int
    height: int
    mode: str
    """Pillow's name of the stored samples, for example RGB, P, I;16, CMYK."""
    frames: int
    """Frames or pages in the file, at most ``DecodeLimits.max_frames``."""
    orientation: int
    """EXIF orientation, 1 to 8."""


def decode_image(data: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Pixels of one encoded image: uint8 (H, W, 3), sRGB, upright, contiguous and writable.

    Raises :class:`ImageError`, and nothing else, for bytes that do not decode within ``limits``. Safe in threads.
    """
    data = bytes(data)
    name = _admit(data, limits)
    with only_image_errors(name, data):
        opened = _open(name, data, limits)
        pixels = srgb_pixels(opened)
        if name != "tiff":
            pixels = upright(pixels, opened.orientation)
        return np.require(pixels, np.uint8, ["C", "O", "W"])


def inspect_image(data: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> ImageHeader:
    """Read the header of an image without decoding its pixels (an icon, which is tiny, is decoded).

    Raises :class:`ImageError` where :func:`decode_image` would refuse at the header.
    """
    data = bytes(data)
    name = _admit(data, limits)
    with only_image_errors(name, data):
        opened = _open(name, data, limits)
        width, height = opened.image.size
        orientation = opened.orientation
        if swaps_sides(orientation) and name != "tiff":
            width, height = height, width
        if name in ("gif", "tiff"):
            frames = structure.count_frames(name, data, limits.max_frames)
        elif name in ("png", "webp", "avif"):
            frames = min(int(opened.image.n_frames), limits.max_frames)
        else:
            frames = 1
        return ImageHeader(name, width, height, opened.image.mode, frames, orientation)


def _admit(data: bytes, limits: DecodeLimits) -> str:
    """The format of bytes that may be handed to a decoder."""
    if not data:
        raise ImageError("empty")
    if len(data) > limits.max_bytes:
        raise ImageError("too-many-bytes", f"{len(data)} bytes, the limit is {limits.max_bytes}")
    name = sniff(data)
    if name is None:
        raise ImageError("not-an-image", describe_content(data))
    if name not in FORMATS:
        raise ImageError("unsupported", REFUSED_FORMATS[name])
    return name


def _open(name: str, data: bytes, limits: DecodeLimits) -> Opened:
    from PIL import Image

    structure.check_cost(name, data, limits)
    image = construct(name, data)
    width, height = image.size
    pixels = width * height
    if pixels > limits.max_pixels:
        raise ImageError("too-many-pixels", f"{width} x {height}, the limit is {limits.max_pixels} pixels")
    in_python = any(tile.codec_name in Image.DECODERS for tile in image.tile)
    if in_python and pixels > limits.max_python_pixels:
        raise ImageError(
            "too-costly", f"{width} x {height} by a slow codec, the limit there is {limits.max_python_pixels} pixels"
        )
    if name == "jpeg":
        structure.check_scans(data, pixels)
    return Opened(name, data, image)
