"""How much work one image may ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields

from foundry.errors import UserError

PILLOW_PIXELS = 178_956_970
"""Pillow's own default bound (twice ``Image.MAX_IMAGE_PIXELS``); a larger limit of ours would not be honoured."""


@dataclass(frozen=True)
class DecodeLimits:
    """Bounds checked before any pixel is decoded. The defaults take every camera and refuse every bomb we know.

    Peak memory of a decode is about 14 bytes a pixel for 8-bit RGB and 28 for 16-bit RGBA, the worst.
    """

    max_bytes: int = 256 * 2**20
    """Encoded size in bytes."""
    max_pixels: int = 2**26
    """Width x height of the first frame (67 million)."""
    max_python_pixels: int = 2**20
    """The same for the codecs that Pillow runs in Python (QOI, PPM that is text or whose maximum is not 255,
    run-length BMP, bit-masked DDS: up to 3 microseconds a pixel)."""
    max_frames: int = 10_000
    """Where :func:`foundry.images.inspect_image` stops counting frames."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"image limit {field.name} = {value!r}: give a whole number above zero")
        if self.max_pixels > PILLOW_PIXELS:
            raise UserError(f"image limit max_pixels = {self.max_pixels}: the decoder takes at most {PILLOW_PIXELS}")


DEFAULT_LIMITS = DecodeLimits()
"""What every part of the line uses unless its settings say otherwise."""
