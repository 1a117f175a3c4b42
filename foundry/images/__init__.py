"""Images: encoded bytes to pixels, and pixels to model input. The table of what becomes what is docs/pixels.md."""

from foundry.images.decode import EncodedImage, ImageHeader, decode_image, inspect_image, open_image
from foundry.images.errors import REASONS, ImageError
from foundry.images.formats import FORMATS, Format, sniff
from foundry.images.limits import DEFAULT_LIMITS, DecodeLimits
from foundry.images.preprocess import Preprocessing

__all__ = [
    "DEFAULT_LIMITS",
    "FORMATS",
    "REASONS",
    "DecodeLimits",
    "EncodedImage",
    "Format",
    "ImageError",
    "ImageHeader",
    "Preprocessing",
    "decode_image",
    "inspect_image",
    "open_image",
    "sniff",
]
