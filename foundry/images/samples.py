"""Stored samples to sRGB pixels: what each of Pillow's modes becomes (the table of docs/pixels.md)."""

from __future__ import annotations

import importlib
import io
import re
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from foundry.images import structure
from foundry.images.colour import over_background, to_srgb
from foundry.images.depth import join_bytes, scale_integers, scale_range, unpremultiplied
from foundry.images.errors import ImageError
from foundry.images.formats import FORMATS
from foundry.images.orientation import orientation_of


def construct(name: str, data: bytes) -> Any:
    """Open ``data`` with the one Pillow class that reads the format ``name``; raises whatever that class raises."""
    plugin = importlib.import_module(f"PIL.{FORMATS[name].plugin}")
    return getattr(plugin, FORMATS[name].reader)(io.BytesIO(data))


@dataclass
class Opened:
    """A Pillow image whose pixels are not loaded yet, and what it came from."""

    name: str
    data: bytes
    image: Any

    def again(self) -> Any:
        """The same image opened a second time."""
        return construct(self.name, self.data)

    @property
    def orientation(self) -> int:
        """EXIF orientation, 1 to 8."""
        if self.name == "tiff":
            # Pillow turns a TIFF itself as it loads it
            value = self.image.tag_v2.get(0x0112, 1)
            return value if isinstance(value, int) and 1 <= value <= 8 else 1
        exif = structure.exif_of_png(self.data) if self.name == "png" else self.image.info.get("exif")
        return orientation_of(exif if isinstance(exif, bytes) else None)


def srgb_pixels(opened: Opened) -> np.ndarray:
    """sRGB pixels as stored (not yet turned upright), uint8 (H, W, 3)."""
    from PIL import Image

    image, alpha = _eight_bits(opened)
    profile = opened.image.info.get("icc_profile")
    pixels = to_srgb(image, profile if isinstance(profile, bytes) else None)
    if isinstance(alpha, Image.Image):
        alpha = np.asarray(alpha)
    return pixels if alpha is None else over_background(pixels, alpha)


def _eight_bits(opened: Opened) -> tuple[Any, Any]:
    """(image of mode L, RGB, CMYK or LAB; alpha as an uint8 array, a mode L image or None)."""
    image = opened.image
    wide = _wide_samples(opened)
    if wide is not None:
        return wide
    grey_levels = {"L;2": 85, "L;4": 17}.get(_raw_mode(image), 1)
    extents = image.tile[0].extents if opened.name == "gif" and image.tile else None
    if opened.name == "tiff" and image.mode == "YCbCr":
        stored = image.tag_v2.get(279, 0)
        if sum(stored if isinstance(stored, tuple) else (stored,)) < 3 * image.width * image.height:
            raise ImageError("unsupported", "uncompressed TIFF with subsampled YCbCr")  # Pillow would misread it
    if opened.name == "jp2" and image.mode != "I;16" and structure.bits_of_jp2(opened.data) > 8:
        # Pillow 13 rounds such samples to 8 bits without a bound: white overflows to black, opaque to transparent
        raise ImageError("unsupported", "JPEG 2000 in colour with more than 8 bits a sample")
    image.load()
    mode, key = image.mode, image.info.get("transparency")
    if mode.startswith("I") or mode == "F":
        return _wide_grey(opened, key)
    if mode == "1":
        image = image.convert("L")
    elif mode == "P" and image.has_transparency_data:
        image = image.convert("RGBA")
    elif mode == "P":
        image = image.convert("RGB")
    elif mode == "PA" or mode == "RGBa":
        image = image.convert("RGBA")
    elif mode == "La":
        image = image.convert("LA")
    elif mode in ("RGBX", "YCbCr", "HSV"):
        image = image.convert("RGB")
    alpha = None
    if image.mode in ("RGBA", "LA"):
        alpha = image.getchannel("A")
        image = image.convert(image.mode[:-1])
    elif mode in ("1", "L") and isinstance(key, int):
        alpha = np.where(np.asarray(image) == key * grey_levels, 0, 255).astype(np.uint8)
    elif mode == "RGB" and isinstance(key, tuple):
        alpha = np.where((np.asarray(image) == key).all(axis=2), 0, 255).astype(np.uint8)
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        raise ImageError("unsupported", f"samples of mode {mode}")
    if opened.name == "jpeg" and mode == "CMYK" and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG as inverted; only Adobe's, which carry its marker, are
        image = image.point(lambda ink: 255 - ink)
    if opened.name == "tiff" and mode == "L" and _tiff_tag(opened.image, 339, 1) == 2:
        image = image.point(lambda level: level ^ 128)  # signed samples: -128..127 to 0..255
    if extents is not None and extents != (0, 0, *image.size):
        alpha = _outside_is_clear(alpha, extents, image.size)
    return image, alpha


def _outside_is_clear(alpha: Any, extents: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """Alpha of a GIF whose first frame covers a part of the canvas: the rest is transparent."""
    left, top, right, bottom = extents
    inside = np.zeros((size[1], size[0]), np.uint8)
    inside[top:bottom, left:right] = 255 if alpha is None else np.asarray(alpha)[top:bottom, left:right]
    return inside


def _wide_grey(opened: Opened, key: Any) -> tuple[Any, np.ndarray | None]:
    """One channel of 12, 16 or 32 bits (modes I;16, I, F), scaled to mode L."""
    from PIL import Image

    image = opened.image
    values = np.asarray(image)
    signed = opened.name == "tiff" and _tiff_tag(image, 339, 1) == 2
    bits = _tiff_tag(image, 258, 1) if opened.name == "tiff" else 16
    if image.mode == "F" or bits == 32:
        if image.mode == "I" and not signed:
            values = values.view(np.uint32)
        grey = scale_range(values)
    else:
        if signed:
            values = values.astype(np.int32) + 32768
        grey = scale_integers(values, 4095 if bits == 12 else 65535)
    if opened.name == "tiff" and bits >= 16 and _tiff_tag(image, 262, 1) == 0:
        grey = 255 - grey  # WhiteIsZero, which Pillow honours up to 8 bits only
    alpha = np.where(values == key, 0, 255).astype(np.uint8) if isinstance(key, int) else None
    return Image.fromarray(grey), alpha


def _wide_samples(opened: Opened) -> tuple[Any, np.ndarray | None] | None:
    """16-bit colour, or grey with alpha, scaled to 8 bits; None for anything else.

    Pillow holds such images with 8 bits a sample and keeps the high byte. Decoding a second time as if the bytes
    came in the other order keeps the low byte, so that both are known and the value can be rounded.
    """
    from PIL import Image

    image = opened.image
    raw_mode = _raw_mode(image)
    if opened.name == "png" and raw_mode == "LA;16B":
        # the same four bytes a pixel, read as they are: grey high, grey low, alpha high, alpha low
        parts = _load_as(image, "RGBA")
        grey, alpha = (scale_integers(join_bytes(parts[..., i], parts[..., i + 1]), 65535) for i in (0, 2))
        return Image.fromarray(grey), alpha
    if opened.name == "tiff" and _is_planar(image) and _tiff_tag(image, 258, 1) == 16 and image.mode != "I;16":
        if image._compression == "raw":
            # Pillow would read the planes as 8-bit samples
            order = "L" if image.tag_v2.prefix == b"II" else "B"
            swapped = "B" if order == "L" else "L"
            high = _load_as(image, lambda raw: f"{raw};16{order}")
            low = _load_as(opened.again(), lambda raw: f"{raw};16{swapped}")
        else:
            # its reader of compressed planes gives the high byte only; taken twice, value * 257 scales back to it
            high = low = _load_as(image, lambda raw: raw)
        return _narrowed(opened, join_bytes(high, low), premultiplied=False)
    match = re.fullmatch(r"(RGB|RGBA|RGBa|RGBX|CMYK);16([LBN])", raw_mode)
    if match is None:
        return None
    bands, order = match.groups()
    premultiplied = bands == "RGBa"
    order = {"N": "L" if sys.byteorder == "little" else "B"}.get(order, order)
    bands = bands.replace("a", "A")
    high = _load_as(image, f"{bands};16{order}")
    low = _load_as(opened.again(), f"{bands};16{'B' if order == 'L' else 'L'}")
    return _narrowed(opened, join_bytes(high, low), premultiplied)


def _narrowed(opened: Opened, values: np.ndarray, premultiplied: bool) -> tuple[Any, np.ndarray | None]:
    """8-bit colour and alpha of uint16 ``values`` (H, W, 3 or 4)."""
    from PIL import Image

    mode, key = opened.image.mode, opened.image.info.get("transparency")
    alpha = None
    if mode == "RGBA":
        colour, alpha = values[..., :3], values[..., 3]
        if premultiplied:
            colour = unpremultiplied(colour, alpha)
        alpha = scale_integers(alpha, 65535)
    else:
        colour = values
        if isinstance(key, tuple):
            alpha = np.where((values == key).all(axis=2), 0, 255).astype(np.uint8)
    return Image.fromarray(scale_integers(colour, 65535), mode if mode == "CMYK" else None), alpha


def _load_as(image: Any, raw_mode: Any) -> np.ndarray:
    """Load ``image`` with its stored samples read as ``raw_mode`` (a name, or a function of the present one)."""
    tiles = []
    for tile in image.tile:
        present = tile.args if isinstance(tile.args, str) else tile.args[0]
        wanted = raw_mode(present) if callable(raw_mode) else raw_mode
        tiles.append(tile._replace(args=wanted if isinstance(tile.args, str) else (wanted, *tile.args[1:])))
    image.tile = tiles
    image.load()
    return np.asarray(image)


def _raw_mode(image: Any) -> str:
    """Pillow's name of the sample layout in the file, such as RGB;16B, or an empty string."""
    if not image.tile:
        return ""
    args = image.tile[0].args
    if isinstance(args, tuple):
        args = args[0] if args else ""
    return args if isinstance(args, str) else ""


def _tiff_tag(image: Any, tag: int, default: int) -> int:
    """First value of a whole-number tag."""
    value = image.tag_v2.get(tag, default)
    value = value[0] if isinstance(value, tuple) and value else value
    return int(value) if isinstance(value, (int, float)) else default


def _is_planar(image: Any) -> bool:
    return _tiff_tag(image, 284, 1) == 2
