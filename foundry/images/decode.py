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

try:
    import simplejpeg as _turbo
except ImportError:  # not in the environment of the server
    _turbo = None


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
    return open_image(data, limits).pixels()


def open_image(data: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> EncodedImage:
    """An encoded image whose header has been read. Raises :class:`ImageError` where that alone shows a reason."""
    data = bytes(data)
    name = _admit(data, limits)
    with only_image_errors(name, data):
        return EncodedImage(_open(name, data, limits))


class EncodedImage:
    """An image of which the header is known and the pixels are not yet decoded."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._turn = 1 if opened.name == "tiff" else opened.orientation  # Pillow turns a TIFF itself
        width, height = opened.image.size
        self.height, self.width = (width, height) if swaps_sides(self._turn) else (height, width)
        image = opened.image
        self._plain_jpeg = opened.name == "jpeg" and image.mode == "RGB" and "icc_profile" not in image.info

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """uint8 (H, W, 3) as :func:`decode_image` gives them.

        ``shrink`` 2, 4 or 8 asks for sides divided by it and rounded up, averaged as JPEG files can be while they are
        decoded, which costs a fraction; a file that cannot be read so comes back whole.
        """
        opened = self._opened
        with only_image_errors(opened.name, opened.data):
            pixels = self._jpeg(shrink) if self._plain_jpeg else None
            if pixels is None:
                pixels = srgb_pixels(opened)
            return np.require(upright(pixels, self._turn), np.uint8, ["C", "O", "W"])

    def _jpeg(self, shrink: int) -> np.ndarray | None:
        """By libjpeg-turbo itself: Pillow's own pixels in less time; None where only Pillow can tell."""
        if _turbo is None:
            return None
        width, height = self._opened.image.size
        try:
            return _turbo.decode_jpeg(
                self._opened.data, min_height=-(-height // shrink), min_width=-(-width // shrink), min_factor=shrink
            )
        except ValueError:  # also for what Pillow only warns of
            return None


def inspect_image(data: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> ImageHeader:
    """Read the header of an image without decoding its pixels (an icon, which is tiny, is decoded).

    Raises :class:`ImageError` where :func:`decode_image` would refuse at the header.
    """
    data = bytes(data)
    name = _admit(data, limits)
    with only_image_errors(name, data):
        opened = _open(name, data, limits)
        encoded = EncodedImage(opened)
        if name in ("gif", "tiff"):
            frames = structure.count_frames(name, data, limits.max_frames)
        elif name in ("png", "webp", "avif"):
            frames = min(int(opened.image.n_frames), limits.max_frames)
        else:
            frames = 1
        return ImageHeader(name, encoded.width, encoded.height, opened.image.mode, frames, opened.orientation)


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
