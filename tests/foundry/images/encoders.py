"""Writers of image files from known samples, independent of the decoder under test (and of Pillow where it matters)."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image


def chunk(kind: bytes, content: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    samples: np.ndarray, depth: int, colour_type: int, before: Sequence[bytes] = (), after: Sequence[bytes] = ()
) -> bytes:
    """A PNG of integer ``samples`` (H, W) or (H, W, C); rows use the five filters in turn."""
    samples = samples.reshape(*samples.shape[:2], -1)
    height, width, channels = samples.shape
    if depth == 16:
        rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        bits = (samples.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
        rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    step = max(1, channels * depth // 8)
    packed, previous = [], np.zeros(rows.shape[1], np.int64)
    for index, row in enumerate(rows.astype(np.int64)):
        left = np.concatenate([np.zeros(step, np.int64), row])[: len(row)]
        corner = np.concatenate([np.zeros(step, np.int64), previous])[: len(row)]
        kind = index % 5
        paeth = left + previous - corner
        near = np.argmin([abs(paeth - left), abs(paeth - previous), abs(paeth - corner)], axis=0)
        guess = [
            np.zeros_like(row),
            left,
            previous,
            (left + previous) // 2,
            np.choose(near, [left, previous, corner]),
        ][kind]
        packed.append(bytes([kind]) + ((row - guess) % 256).astype(np.uint8).tobytes())
        previous = row
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"".join(packed)))
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *before, body, *after, chunk(b"IEND", b"")])


def tiff(tags: dict[int, int | Sequence[int]], strip: bytes, order: str = "II") -> bytes:
    """A classic TIFF of one uncompressed strip; whole-number ``tags`` become LONGs (SHORTs where several)."""
    end = "<" if order == "II" else ">"
    tags = {259: 1, 277: 1, 279: len(strip), **tags}
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    outside = b""
    rows = []
    places = start + sum(2 * len(v) for v in tags.values() if isinstance(v, (tuple, list)) and len(v) > 2)
    tags[273] = places
    for tag in sorted(tags):
        value = tags[tag]
        if isinstance(value, int):
            rows.append(struct.pack(end + "HHII", tag, 4, 1, value))
        else:
            packed = struct.pack(f"{end}{len(value)}H", *value)
            if len(packed) > 4:
                rows.append(struct.pack(end + "HHII", tag, 3, len(value), start + len(outside)))
                outside += packed
            else:
                rows.append(struct.pack(end + "HHI", tag, 3, len(value)) + packed.ljust(4, b"\0"))
    head = order.encode() + struct.pack(end + "HI", 42, 8) + struct.pack(end + "H", len(rows))
    return head + b"".join(rows) + struct.pack(end + "I", 0) + outside + strip


def gif(
    indexes: np.ndarray,
    palette: np.ndarray,
    canvas: tuple[int, int] | None = None,
    offset: tuple[int, int] = (0, 0),
    transparent: int | None = None,
    more: Sequence[np.ndarray] = (),
) -> bytes:
    """A GIF89a of 8-bit ``indexes`` frames at ``offset`` (x, y) on a ``canvas`` (width, height)."""
    height, width = indexes.shape
    canvas = canvas or (width, height)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    result = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0xF7, 0, 0) + colours.tobytes()
    for frame in (indexes, *more):
        if transparent is not None:
            result += b"\x21\xf9\x04" + struct.pack("<BHB", 1, 10, transparent) + b"\0"
        result += b"," + struct.pack("<HHHHB", *offset, frame.shape[1], frame.shape[0], 0) + b"\x08"
        codes = []
        for start in range(0, frame.size, 250):  # a clear code before the codes would need ten bits
            codes += [256, *frame.ravel()[start : start + 250].tolist()]
        bits = sum(code << (9 * place) for place, code in enumerate([*codes, 257]))
        data = bits.to_bytes((9 * (len(codes) + 1) + 7) // 8, "little")
        result += b"".join(bytes([len(part)]) + part for part in (data[i : i + 255] for i in range(0, len(data), 255)))
        result += b"\0"
    return result + b";"


def exif(orientation: int, order: str = "II", kind: int = 3) -> bytes:
    """An EXIF block (without prefix) of one tag."""
    end = "<" if order == "II" else ">"
    value = struct.pack(end + ("HH" if kind == 3 else "I"), *((orientation, 0) if kind == 3 else (orientation,)))
    return order.encode() + struct.pack(end + "HIHHHI", 42, 8, 1, 0x0112, kind, 1) + value + bytes(4)


def saved(image: Image.Image | np.ndarray, format: str, **options: Any) -> bytes:
    """What Pillow writes."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format, **options)
    return file.getvalue()


def icc(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    """An ICC version 2 profile."""
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    tags = {b"desc": text, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": xyz(0.9642, 1.0, 0.8249), **tags}
    table, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", start + len(body), b"test", 0x02100000, kind, space, pcs)
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(4 * 7)
    header += struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz(*values: float) -> bytes:
    """An ICC XYZ value."""
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))


def gamma(value: float) -> bytes:
    """An ICC curve v ** ``value``."""
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256)) + bytes(2)
