"""Small pictures of a page: decoded within limits, encoded small, and together never more than the page may weigh."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Collection, Iterable, Iterator

from components.common.report.html import Picture
from components.curation.pool import Pool, PoolFile
from components.curation.pool.archives import is_archive
from components.curation.pool.files import Member, load
from components.curation.pool.opening import Kind
from foundry.errors import UserError
from foundry.images import DecodeLimits, ImageError, open_image

SIDE = 112
"""Longer side in pixels at most."""
ALLOWANCE = 2_200_000
"""Characters of all pictures of a page."""
ARCHIVE_BYTES = 256 << 20
"""Bytes of local archives and tables that are read to find a few files in them."""
_QUALITY = 60


class Album:
    """Makes thumbnails until the page is full; from then on there are none."""

    def __init__(self, limits: DecodeLimits, allowance: int = ALLOWANCE) -> None:
        self._limits = limits
        self._left = allowance

    def add(self, data: bytes) -> Picture | None:
        """The thumbnail of an encoded image; None where it does not decode within the limits, or the page is full."""
        try:
            picture = _thumbnail(data, self._limits)
        except ImageError:
            return None
        if len(picture.uri) > self._left:
            return None
        self._left -= len(picture.uri)
        return picture


def _thumbnail(data: bytes, limits: DecodeLimits) -> Picture:
    from PIL import Image

    opened = open_image(data, limits)
    longest = max(opened.width, opened.height)
    shrink = next(factor for factor in (8, 4, 2, 1) if factor == 1 or longest >= 2 * SIDE * factor)
    image = Image.fromarray(opened.pixels(shrink))
    scale = min(1.0, SIDE / longest)
    size = (max(1, round(opened.width * scale)), max(1, round(opened.height * scale)))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=_QUALITY, method=4)
    return Picture("data:image/webp;base64," + base64.b64encode(file.getvalue()).decode(), *size)


def find_files(
    pool: Pool, wanted: Iterable[tuple[str, str]], max_bytes: int
) -> Iterator[tuple[tuple[str, str], bytes]]:
    """((path, sha256), bytes) of those ``wanted`` files of ``pool`` that can be had cheaply and are still the same.

    Cheap are files of this machine, and archives and tables on it up to :data:`ARCHIVE_BYTES` in all.
    """
    missing: dict[str, set[str]] = {}
    for path, digest in wanted:
        missing.setdefault(path, set()).add(digest)
    holders = {"/".join(path.split("/")[:parts]) for path in missing for parts in range(path.count("/") + 1)}
    for file in _read(pool, missing, holders, max_bytes):
        if file.data is None or file.path not in missing:
            continue
        digest = hashlib.sha256(file.data).hexdigest()
        if digest in missing[file.path]:
            missing[file.path].discard(digest)
            if not missing[file.path]:
                del missing[file.path]
            yield (file.path, digest), file.data
        if not missing:
            return


def _read(pool: Pool, paths: Collection[str], holders: Collection[str], max_bytes: int) -> Iterator[PoolFile]:
    """Local files of ``pool`` named in ``paths``, and all members of those archives that are named in ``holders``."""
    left = ARCHIVE_BYTES
    for stored in pool.stored():
        if stored.local is None or stored.problem or stored.size is None:
            continue
        if stored.path in paths:
            yield load(Member(stored.path, stored.size, stored.read), max_bytes)
        elif stored.path in holders and os.path.isfile(stored.local) and stored.size <= left:
            left -= stored.size
            kind: Kind = "archive" if is_archive(stored.local) else "parquet"
            try:
                for file in Pool(stored.local, kind).files(0, max_bytes):
                    yield PoolFile(f"{stored.path}/{file.path}" if stored.path else file.path, file.data)
            except (UserError, ValueError, OSError):  # damaged from here on, as it was when it was curated
                continue
