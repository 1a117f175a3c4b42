"""Cheap walks over the container of an image, made before a decoder sees it.

They bound what a hostile file can cost (a decoder loops over whatever a file announces), find what decoders do not
report (EXIF behind the pixels, the number of frames) and tell a cut file from a damaged one. Nothing here raises
for damage: that is the decoder's finding. Only a cost above a bound is refused, with reason ``too-costly``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from foundry.images.errors import ImageError
from foundry.images.limits import DecodeLimits

MAX_SEGMENTS = 2**16
"""JPEG segments, PNG chunks, GIF sub-blocks or icon entries that may come before or around the pixels."""
MAX_JUNK = 2**20
"""Bytes between two JPEG markers that belong to neither."""
MAX_TIFF_ENTRIES = 2**12
"""Entries of one TIFF directory."""
MAX_TIFF_BLOCKS = 2**18
"""Strips or tiles of one TIFF image."""
MAX_SCAN_PIXELS = 2**33
"""JPEG scans x pixels: a scan of a few bytes makes the decoder visit every pixel (about 0.1 ns each)."""


def check_cost(name: str, data: bytes, limits: DecodeLimits) -> None:
    """Raise :class:`ImageError` (``too-costly``, ``too-many-pixels``) for a container no decoder should walk."""
    if name == "jpeg":
        _check_jpeg_header(data)
    elif name == "png":
        for count, _ in enumerate(_png_chunks(data)):
            _bound(count, MAX_SEGMENTS, "PNG chunks")
    elif name == "gif":
        next(_gif_images(data, MAX_SEGMENTS), None)
    elif name == "tiff":
        _check_tiff(data, limits)
    elif name == "ico":
        _check_ico(data, limits)
    elif name == "ppm":
        _check_ppm(data)
    elif name == "psd":
        _check_psd(data)


def check_scans(data: bytes, pixels: int) -> None:
    """Raise :class:`ImageError` for a JPEG of ``pixels`` whose number of scans makes it a time bomb."""
    if len(data) // 2 * pixels > MAX_SCAN_PIXELS:  # otherwise there is no room for so many
        _bound(data.count(b"\xff\xda") * pixels, MAX_SCAN_PIXELS, "JPEG scans x pixels")


def exif_of_png(data: bytes) -> bytes | None:
    """Content of the eXIf chunk, wherever it stands (Pillow alone sees the ones before the pixels)."""
    return next((data[start : start + size] for kind, start, size in _png_chunks(data) if kind == b"eXIf"), None)


def count_frames(name: str, data: bytes, limit: int) -> int:
    """Frames of a GIF or pages of a TIFF, at least 1, counted up to ``limit`` without decoding."""
    walk = _gif_images(data, None) if name == "gif" else _tiff_directories(data)
    count = 0
    for count, _ in enumerate(walk, start=1):  # noqa: B007 (the count is the result)
        if count >= limit:
            break
    return max(count, 1)


def bits_of_jp2(data: bytes) -> int:
    """Largest number of bits a sample in a JPEG 2000 codestream (its SIZ segment), or 0 where there is none."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 42:
        return 0
    (components,) = struct.unpack_from(">H", data, start + 40)
    return max(((depth & 0x7F) + 1 for depth in data[start + 42 : start + 42 + 3 * components : 3]), default=0)


def is_cut_short(name: str, data: bytes) -> bool:
    """Whether the end that this format announces is missing. Asked only for files that did not decode."""
    if name == "jpeg":
        scan = data.rfind(b"\xff\xda")
        return scan < 0 or data.rfind(b"\xff\xd9") < scan
    if name == "png":
        return b"IEND" not in data
    if name == "gif":
        return b";" not in data[-16:]
    if name == "webp":
        return len(data) < 12 or struct.unpack_from("<I", data, 4)[0] + 8 > len(data)
    if name == "bmp":
        return struct.unpack_from("<I", data, 2)[0] > len(data)
    if name == "jp2":
        return b"\xff\xd9" not in data[-64:]
    if name == "tiff":
        return _tiff_is_cut(data)
    if name == "avif":
        return _ends_inside_box(data)
    return False


def _bound(value: int, limit: int, what: str) -> None:
    if value > limit:
        raise ImageError("too-costly", f"{value} {what}, the limit is {limit}")


def _check_jpeg_header(data: bytes) -> None:
    """Walk the segments before the first scan."""
    position, segments = 2, 0
    while True:
        marker = data.find(b"\xff", position)
        if marker < 0 or marker + 4 > len(data):
            marker = len(data)
        _bound(marker - position, MAX_JUNK, "bytes of junk between JPEG markers")
        if marker == len(data):
            return
        code = data[marker + 1]
        if code == 0xDA:
            return
        if code == 0xFF:
            position = marker + 1
        elif code == 0 or 0xD0 <= code <= 0xD9:
            position = marker + 2
        else:
            position = marker + 2 + max(2, int.from_bytes(data[marker + 2 : marker + 4], "big"))
        segments += 1
        _bound(segments, MAX_SEGMENTS, "JPEG segments")


def _png_chunks(data: bytes, start: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """(type, start of content, length) of each chunk of the PNG at ``start`` that lies within the file."""
    position = start + 8
    while position + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        if position + 12 + size > len(data):
            return
        yield kind, position + 8, size
        if kind == b"IEND":
            return
        position += 12 + size


def _gif_images(data: bytes, block_limit: int | None) -> Iterator[int]:
    """Position of each image descriptor. ``block_limit`` bounds the sub-blocks in front of the first one."""
    if len(data) < 13:
        return
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    blocks, seen = 0, False
    while position < len(data):
        introducer = data[position]
        if introducer == 0x2C:
            if position + 10 > len(data):
                return
            yield position
            seen = True
            flags = data[position + 9]
            position += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        elif introducer == 0x21:
            position += 2
        elif introducer == 0x3B:
            return
        else:
            position += 1
            continue
        while position < len(data) and data[position]:
            position += 1 + data[position]
            blocks += 1
            if block_limit is not None and not seen:
                _bound(blocks, block_limit, "GIF blocks before the first image")
            if blocks > 2**20:
                return
        position += 1


_TIFF_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by its type, where it is not 1."""


class _Tiff:
    """Reads directories of a classic or big TIFF. Values outside the file read as missing."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.order = "<" if data[:2] == b"II" else ">"
        self.big = len(data) > 3 and 43 in (data[2], data[3])
        self.first = self._number(8, "Q") if self.big else self._number(4, "I")

    def _number(self, position: int, kind: str) -> int:
        size = struct.calcsize(self.order + kind)
        if position < 0 or position + size > len(self.data):
            return 0
        return int(struct.unpack_from(self.order + kind, self.data, position)[0])

    def directory(self, offset: int) -> tuple[int, dict[int, tuple[int, int, int]], int]:
        """(number of entries, {tag: (type, count, where the values stand)}, offset of the next directory)."""
        head, entry, word, inline = (8, 20, "Q", 8) if self.big else (2, 12, "I", 4)
        entries = self._number(offset, "Q" if self.big else "H")
        tags: dict[int, tuple[int, int, int]] = {}
        for index in range(min(entries, MAX_TIFF_ENTRIES)):
            position = offset + head + index * entry
            if position + entry > len(self.data):
                break
            tag, kind = self._number(position, "H"), self._number(position + 2, "H")
            count, place = self._number(position + 4, word), position + entry - inline
            if count * _TIFF_SIZES.get(kind, 1) > inline:
                place = self._number(place, word)
            tags.setdefault(tag, (kind, count, place))
        return entries, tags, self._number(offset + head + entries * entry, word)

    def numbers(self, entry: tuple[int, int, int] | None) -> tuple[int, ...]:
        """The whole numbers of an entry, at most :data:`MAX_TIFF_BLOCKS` and as far as they lie in the file."""
        kind, count, place = entry or (0, 0, 0)
        letter, size = {1: "B", 3: "H", 16: "Q"}.get(kind, "I"), _TIFF_SIZES.get(kind, 1)
        if kind not in (1, 3, 4, 13, 16) or place > len(self.data):
            return ()
        count = min(count, MAX_TIFF_BLOCKS, (len(self.data) - place) // size)
        return struct.unpack_from(f"{self.order}{count}{letter}", self.data, place)

    def number(self, entry: tuple[int, int, int] | None) -> int:
        """The first of them, 0 where there is none."""
        return next(iter(self.numbers(entry and (entry[0], min(entry[1], 1), entry[2]))), 0)


def _tiff_directories(data: bytes) -> Iterator[int]:
    tiff, seen = _Tiff(data), set()
    offset = tiff.first
    while offset and offset not in seen and offset < len(data):
        seen.add(offset)
        yield offset
        offset = tiff.directory(offset)[2]


def _check_tiff(data: bytes, limits: DecodeLimits) -> None:
    tiff = _Tiff(data)
    entries, tags, _ = tiff.directory(tiff.first)
    _bound(entries, MAX_TIFF_ENTRIES, "TIFF directory entries")
    for tag in (34665, 34853, 40965):  # the EXIF, GPS and interoperability directories, which Pillow reads too
        if tag in tags:
            inner = tiff.directory(tiff.number(tags[tag]))
            _bound(inner[0], MAX_TIFF_ENTRIES, "TIFF directory entries")
    for tag in (273, 279, 324, 325):
        _bound(tags[tag][1] if tag in tags else 0, MAX_TIFF_BLOCKS, "TIFF strips or tiles")
    tile = tiff.number(tags.get(322)) * tiff.number(tags.get(323))
    if tile > limits.max_pixels:
        raise ImageError("too-many-pixels", f"tiles of {tile} pixels, the limit is {limits.max_pixels}")


def _tiff_is_cut(data: bytes) -> bool:
    """Whether a part of the directory, a strip or a tile lies behind the end of the file."""
    tiff = _Tiff(data)
    entries, tags, _ = tiff.directory(tiff.first)
    if tiff.first >= len(data) or len(tags) < min(entries, 1):
        return True
    if any(place + count * _TIFF_SIZES.get(kind, 1) > len(data) for kind, count, place in tags.values()):
        return True
    return any(
        start + size > len(data)
        for starts, sizes in ((273, 279), (324, 325))
        for start, size in zip(tiff.numbers(tags.get(starts)), tiff.numbers(tags.get(sizes)), strict=False)
    )


def _check_ico(data: bytes, limits: DecodeLimits) -> None:
    """Pillow decodes the picture in an icon as it opens it, so the sizes inside are read here."""
    entries, chunks = int.from_bytes(data[4:6], "little"), 0
    for index in range(entries):
        offset = int.from_bytes(data[6 + 16 * index + 12 : 6 + 16 * index + 16], "little")
        inner = data[offset : offset + 26]
        if inner.startswith(b"\x89PNG\r\n\x1a\n") and len(inner) >= 24:
            width, height = struct.unpack_from(">II", inner, 16)
            for _ in _png_chunks(data, offset):
                chunks += 1
                _bound(chunks, MAX_SEGMENTS, "PNG chunks")
        elif len(inner) >= 12:
            width, height = (abs(side) for side in struct.unpack_from("<ii", inner, 4))
        else:
            continue
        if width * height > limits.max_pixels:
            raise ImageError("too-many-pixels", f"{width} x {height}, the limit is {limits.max_pixels} pixels")


def _check_ppm(data: bytes) -> None:
    """Pillow reads comments byte by byte in the header, and copies the text after each one in a plain file."""
    head = re.sub(rb"#[^\r\n]*", b"", data[:MAX_SEGMENTS])
    numbers = 2 if data[1] in b"14" else 3
    if len(data) > MAX_SEGMENTS and re.match(rb"\S+(?:\s+[-+.\w]+){%d}\s" % numbers, head) is None:
        raise ImageError("too-costly", f"more than {MAX_SEGMENTS} bytes of comments in the header")
    if data[1] in b"123":
        _bound(data.count(b"#"), 2**12, "comments")


def _check_psd(data: bytes) -> None:
    start = 30 + int.from_bytes(data[26:30], "big")
    size = int.from_bytes(data[start : start + 4], "big")
    _bound(data.count(b"8BIM", start, start + 4 + size), MAX_SEGMENTS, "Photoshop resources")


def _ends_inside_box(data: bytes) -> bool:
    """Whether a top-level box of an ISO media file reaches past the end of the file."""
    position = 0
    while position < len(data):
        if position + 16 > len(data):
            return True
        size, wide = struct.unpack_from(">I", data, position)[0], struct.unpack_from(">Q", data, position + 8)[0]
        size = wide if size == 1 else size
        if size < 8:  # 0 means "to the end of the file", less is damage
            return False
        position += size
    return position > len(data)
