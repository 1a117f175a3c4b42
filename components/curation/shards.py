"""WebDataset tar shards: original encoded bytes, laid out before they are written, so that one pass over the pool in
whatever order fills them and the same samples give the same bytes."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.curation.pool import PoolFile
from foundry.errors import UserError
from foundry.progress import Progress
from foundry.settings import canonical_json

if TYPE_CHECKING:
    from components.curation.scan import Scan

TAR_BLOCK = tarfile.BLOCKSIZE
TAR_RECORD = tarfile.RECORDSIZE
OPEN_SHARDS = 64
"""Shards held open while the pool goes by."""
KEY_DIGITS = 24
"""Hex digits of the sha256 that make a key: 96 bits, so that a billion images do not collide."""


@dataclass(frozen=True)
class Sample:
    """An image of the dataset and where it comes from. ``row`` is its number in the pool."""

    row: int
    key: str
    extension: str
    sha256: str
    length: int
    width: int
    height: int
    source: str

    @classmethod
    def of(cls, scan: Scan, row: int) -> Sample:
        """The file ``row`` of a pool."""
        return cls(
            row=row,
            key=key_of(scan.sha256[row]),
            extension=scan.extension[row],
            sha256=scan.sha256[row],
            length=int(scan.size[row]),
            width=int(scan.width[row]),
            height=int(scan.height[row]),
            source=scan.path[row],
        )

    def sidecar(self) -> bytes:
        """Content of ``<key>.json``."""
        facts = {"height": self.height, "key": self.key, "sha256": self.sha256, "source": self.source}
        return canonical_json({**facts, "width": self.width}).encode()


@dataclass(frozen=True)
class Place:
    """Where a sample lies in its shard file: its tar header, and the ``offset`` of the image's first byte."""

    shard: int
    header: int
    offset: int


def key_of(sha256: str) -> str:
    """The key of an image with this digest."""
    return sha256[:KEY_DIGITS]


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:06d}.tar"


def shard_number(name: str) -> int:
    """The number of the shard of this file name."""
    return int(name.removeprefix("shard-").removesuffix(".tar"))


def _padded(length: int) -> int:
    return -(-length // TAR_BLOCK) * TAR_BLOCK


def lay_out(samples: Sequence[Sample], shard_bytes: int) -> tuple[list[Place], list[int]]:
    """Places of ``samples`` in the given order, and the size of each shard in bytes.

    A shard is as full as ``shard_bytes`` allows; a sample that is larger has a shard to itself.
    """
    places: list[Place] = []
    sizes: list[int] = []
    position, ending = 0, 2 * TAR_BLOCK
    for sample in samples:
        size = 2 * TAR_BLOCK + _padded(sample.length) + _padded(len(sample.sidecar()))
        if not places or (position and position + size + ending > shard_bytes):
            if places:
                sizes.append(position)
            position = 0
        places.append(Place(len(sizes), position, position + TAR_BLOCK))
        position += size
    if places:
        sizes.append(position)
    return places, [-(-(size + ending) // TAR_RECORD) * TAR_RECORD for size in sizes]


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.USTAR_FORMAT)


class _Files:
    """The shard files open for writing, the least recently used ones closed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: OrderedDict[int, int] = OrderedDict()

    def __getitem__(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            if len(self._open) >= OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self._folder / shard_name(shard), os.O_WRONLY)
        return self._open[shard]

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def write_shards(
    folder: Path,
    samples: Sequence[Sample],
    places: Sequence[Place],
    sizes: Sequence[int],
    files: Iterable[PoolFile],
    pool: str,
) -> None:
    """Write the shards of ``samples`` into ``folder`` from one pass over ``files`` (the pool called ``pool``).

    Raises :class:`UserError` where a file is no longer what it was when it was measured.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes):
        with (folder / shard_name(number)).open("wb") as shard:
            shard.truncate(size)
    wanted = {sample.row: place for place, sample in enumerate(samples)}
    open_files = _Files(folder)
    try:
        with Progress("write shards", len(samples)) as progress:
            for row, file in enumerate(files):
                if row not in wanted:
                    continue
                number = wanted.pop(row)
                sample, place = samples[number], places[number]
                if file.data is None or hashlib.sha256(file.data).hexdigest() != sample.sha256:
                    raise _changed(pool, sample.source)
                sidecar = sample.sidecar()
                image = _header(f"{sample.key}.{sample.extension}", sample.length) + file.data
                entry = image.ljust(TAR_BLOCK + _padded(sample.length), b"\0") + _header(
                    f"{sample.key}.json", len(sidecar)
                )
                _write_at(open_files[place.shard], entry + sidecar, place.header)
                progress.advance()
                if not wanted:
                    break
    finally:
        open_files.close()
    if wanted:
        raise _changed(pool, samples[next(iter(wanted.values()))].source)
    for number in range(len(sizes)):
        with (folder / shard_name(number)).open("rb") as written:
            os.fsync(written.fileno())


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def _changed(pool: str, source: str) -> UserError:
    return UserError(f"{pool}: '{source}' changed while the pool was read; curate again when nothing writes to it")
