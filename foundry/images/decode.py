"""Encoded bytes to pixels: the one decoder of training, evaluation, registration and serving.

What every kind of image becomes is the table in docs/pixels.md. In short: upright 8-bit sRGB of the first frame,
transparency over white, wider samples scaled to 8 bits, everything else an :class:`ImageError` with a reason.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from foundry.images import structure
from foundry.images.colour import over_background, to_srgb
from foundry.images.depth import join_bytes, scale_integers, scale_range, unpremultiplied
from foundry.images.errors import ImageError
from foundry.images.formats import FORMATS, REFUSED_FORMATS, describe_content, sniff
from foundry.images.limits import DEFAULT_LIMITS, DecodeLimits
from foundry.images.orientation import orientation_of, swaps_sides, upright


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


@dataclass
class _Opened:
    """A Pillow image whose pixels are not loaded yet, and what it came from."""

    name: str
    data: bytes
    image: Any

    def again(self) -> Any:
        return _construct(self.name, self.data)

    @property
    def orientation(self) -> int:
        if self.name == "tiff":
            # Pillow turns a TIFF itself as it loads it
            value = self.image.tag_v2.get(0x0112, 1)
            return value if isinstance(value, int) and 1 <= value <= 8 else 1
        exif = structure.exif_of_png(self.data) if self.name == "png" else self.image.info.get("exif")
        return orientation_of(exif if isinstance(exif, bytes) else None)


def decode_image(data: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Pixels of one encoded image: uint8 (H, W, 3), sRGB, upright, contiguous and writable.

    Raises :class:`ImageError`, and nothing else, for bytes that do not decode within ``limits``. Safe in threads.
    """
    data = bytes(data)
    name = _admit(data, limits)
    with _pillow_speaks_plainly(name, data):
        opened = _open(name, data, limits)
        pixels = _pixels(opened)
        if name != "tiff":
            pixels = upright(pixels, opened.orientation)
        return np.require(pixels, np.uint8, ["C", "O", "W"])


def inspect_image(data: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> ImageHeader:
    """Read the header of an image without decoding its pixels (an icon, which is tiny, is decoded).

    Raises :class:`ImageError` where :func:`decode_image` would refuse at the header.
    """
    data = bytes(data)
    name = _admit(data, limits)
    with _pillow_speaks_plainly(name, data):
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
    structure.check_cost(name, data, limits)
    return name


def _construct(name: str, data: bytes) -> Any:
    plugin = importlib.import_module(f"PIL.{FORMATS[name].plugin}")
    return getattr(plugin, FORMATS[name].reader)(io.BytesIO(data))


def _open(name: str, data: bytes, limits: DecodeLimits) -> _Opened:
    from PIL import Image

    image = _construct(name, data)
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
    return _Opened(name, data, image)


# ---------------------------------------------------------------------------------------------------- samples


def _pixels(opened: _Opened) -> np.ndarray:
    """sRGB pixels as stored (not yet turned upright), uint8 (H, W, 3)."""
    from PIL import Image

    image, alpha = _eight_bits(opened)
    profile = opened.image.info.get("icc_profile")
    pixels = to_srgb(image, profile if isinstance(profile, bytes) else None)
    if isinstance(alpha, Image.Image):
        alpha = np.asarray(alpha)
    return pixels if alpha is None else over_background(pixels, alpha)


def _eight_bits(opened: _Opened) -> tuple[Any, Any]:
    """(image of mode L, RGB, CMYK or LAB; alpha as an uint8 array, a mode L image or None)."""
    from PIL import Image

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


def _wide_grey(opened: _Opened, key: Any) -> tuple[Any, np.ndarray | None]:
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


def _wide_samples(opened: _Opened) -> tuple[Any, np.ndarray | None] | None:
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


def _narrowed(opened: _Opened, values: np.ndarray, premultiplied: bool) -> tuple[Any, np.ndarray | None]:
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


# ---------------------------------------------------------------------------------------------------- failures

_UNSUPPORTED = re.compile(
    r"cannot handle|unsupported|not (yet )?supported|unknown (pixel|tga|data|compression)|not implemented",
    re.IGNORECASE,
)
_TRUNCATED = re.compile(
    r"truncat|unexpected end|end of file|not enough|not large enough|bytes not processed|reached eof", re.IGNORECASE
)


@contextlib.contextmanager
def _pillow_speaks_plainly(name: str, data: bytes) -> Iterator[None]:
    """Turn whatever a decoder raises into an :class:`ImageError`, and keep its warnings to itself."""
    from PIL import Image

    with _quiet:
        try:
            yield
        except ImageError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError("too-many-pixels", str(error)) from error
        except MemoryError as error:
            raise ImageError("too-costly", "not enough memory") from error
        except Exception as error:
            message = f"{name}: {error}" if str(error) else f"{name}: {type(error).__name__}"
            root = error.__cause__ or error
            if _UNSUPPORTED.search(message):
                reason = "unsupported"
            elif (
                _TRUNCATED.search(message)
                or isinstance(root, (EOFError, IndexError, struct.error))
                or structure.is_cut_short(name, data)
            ):
                reason = "truncated"
            else:
                reason = "corrupt"
            raise ImageError(reason, message) from error


class _Quiet:
    """Ignore Pillow's warnings while any thread decodes.

    ``warnings.catch_warnings`` would restore one thread's filters over another's; this adds one filter for the
    first thread that enters and takes that one out again with the last.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filter: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._filter = warnings.filters[0]
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                with contextlib.suppress(ValueError):
                    warnings.filters.remove(self._filter)  # type: ignore[attr-defined]


_quiet = _Quiet()
