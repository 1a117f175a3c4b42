"""From a URL to its files: which kind of pool it is, reading it in one fixed order, and its digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal

from components.curation.pool import archives, tables
from components.curation.pool.digests import content_digest
from components.curation.pool.files import Member, PoolFile, load_all, one_line
from components.curation.pool.stored import Location, StoredFile
from foundry.errors import UserError
from foundry.storage import is_local, local_path

Kind = Literal["folder", "files", "archive", "parquet", "manifest"]
MAX_BYTES = 64 << 20
"""Bytes of one file that are read at most, where the caller names no limit."""


@dataclass(frozen=True)
class Pool:
    """A pool that exists. Two readings of an unchanged pool give the same files in the same order."""

    url: str
    kind: Kind

    def stored(self) -> Iterator[StoredFile]:
        """The files it is stored in (archives and tables as such), in order."""
        if self.kind == "folder":
            yield from Location.of(self.url).tree()
        elif self.kind == "files":
            for url in expand_braces(self.url):
                found = Location.of(url).file()
                yield StoredFile(
                    url.rpartition("/")[2], found.size, found.open, found.facts, found.local, found.problem
                )
        elif self.kind == "manifest":
            yield from tables.manifest_files(Location.of(self.url).file(), self.url)
        else:
            yield Location.of(self.url).file()

    def files(self, start: int = 0, max_bytes: int = MAX_BYTES) -> Iterator[PoolFile]:
        """Every file of the pool from number ``start`` on, bounded in memory.

        A file that cannot be read, or is larger than ``max_bytes``, comes with a reason instead of data. Raises
        :class:`UserError` where the pool is one archive or table and that is damaged.
        """
        threads = Location.of(expand_braces(self.url)[0]).threads if self.kind != "manifest" else 16
        return load_all(chain.from_iterable(map(self._members, self.stored())), max_bytes, start, threads)

    def count(self) -> int:
        """Number of files, found without reading those that lie beside each other."""
        return sum(1 for _ in chain.from_iterable(map(self._members, self.stored())))

    def contents(self) -> Iterator[tuple[str, str]]:
        """(path, content digest) of the files it is stored in; see :mod:`digests` for remote ones."""
        return content_digest(self.stored())

    def digest(self, contents: Iterable[tuple[str, str]] | None = None) -> str:
        """sha256 over its :meth:`contents`, which may be given."""
        digest = hashlib.sha256(f"pool {self.kind}\n".encode())
        for path, content in self.contents() if contents is None else contents:
            digest.update(f"{path}\0{content}\n".encode())
        if self.kind == "manifest":
            digest.update(next(content_digest([Location.of(self.url).file()]))[1].encode())
        return digest.hexdigest()

    def _members(self, stored: StoredFile) -> Iterator[Member]:
        """A stored file itself, or the files in it where it is an archive or a Parquet table of images."""
        single = self.kind in ("archive", "parquet")
        name = stored.path or self.url
        nested = self.kind != "manifest" and not stored.problem
        try:
            if nested and archives.is_archive(name):
                with stored.open() as file:
                    yield from _within(stored.path, archives.members(name, file))
                return
            if nested and name.lower().endswith(".parquet"):
                with stored.open() as file:
                    columns = _image_columns(name, file, required=single)
                    if columns is not None:
                        yield from _within(stored.path, tables.parquet_members(file, columns))
                        return
        except (*archives.DAMAGE, ValueError) as error:
            if single:
                raise archives.explain(self.url, error) from None
            yield Member(stored.path, None, _broken_archive(one_line(error)))
            return
        yield Member(stored.path, stored.size, stored.read, independent=True)


def _image_columns(name: str, file: BinaryIO, required: bool) -> tuple[str, bool, str | None] | None:
    columns = tables.parquet_columns(file)
    if columns is None and required:
        raise UserError(f"{name}: no column of encoded images; name the binary column 'image' or 'bytes'")
    return columns


def _within(prefix: str, members: Iterable[Member]) -> Iterator[Member]:
    for member in members:
        yield Member(f"{prefix}/{member.path}" if prefix else member.path, member.size, member.read)


def _broken_archive(detail: str):  # type: ignore[no-untyped-def]
    def read(limit: int) -> bytes:
        raise OSError(f"damaged archive, what came before this place was read: {detail}")

    return read


def expand_braces(pattern: str) -> list[str]:
    """The URLs that ``shard-{000..002}.tar`` or ``{train,val}.tar`` stand for, in order; nested braces are not read."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    before, after = pattern[: found.start()], expand_braces(pattern[found.end() :])
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if numbers:
        first, last, width = int(numbers[1]), int(numbers[2]), len(numbers[1])
        choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        choices = found[1].split(",")
    return [before + choice + rest for choice in choices for rest in after]


def open_pool(url: str) -> Pool:
    """Find out what ``url`` is. Raises :class:`UserError` where it is absent, empty or nothing that holds images."""
    if "{" in url and not (is_local(url) and local_path(url).exists()):
        for part in expand_braces(url):
            if Location.of(part).kind() != "file":
                raise UserError(f"{url}: no such file: {part}")
        return Pool(url, "files")
    location = Location.of(url)
    kind = location.kind()
    if kind == "absent":
        raise UserError(f"{url}: no such folder or file{_nearest(location)}")
    if kind == "folder":
        pool = Pool(url, "folder")
        if next(pool.stored(), None) is None:
            raise UserError(f"{url}: the folder is empty; give a folder that holds images")
        return pool
    name = url.partition("?")[0].lower()
    if archives.is_archive(name):
        return Pool(url, "archive")
    if name.endswith(".parquet"):
        return Pool(url, "parquet")
    if name.endswith((".txt", ".csv", ".tsv")):
        pool = Pool(url, "manifest")
        if next(pool.stored(), None) is None:
            raise UserError(f"{url}: lists no image")
        return pool
    raise UserError(
        f"{url}: not a pool of images; give a folder, a .tar, .tar.gz or .zip archive, a .parquet table "
        "or a .txt or .csv list of URLs"
    )


def _nearest(location: Location) -> str:
    """'; ...' naming what exists above an absent local path."""
    if location.local is None:
        return ""
    parent: Path = location.local
    while not parent.exists():
        parent = parent.parent
    return f" ('{parent}' exists)"


def read_pool(url: str, start: int = 0, max_bytes: int = MAX_BYTES) -> Iterator[PoolFile]:
    """Open the pool at ``url`` and read its files; see :meth:`Pool.files`."""
    return open_pool(url).files(start, max_bytes)


def pool_digest(url: str) -> str:
    """Hex digest that changes when the pool at ``url`` does; see :meth:`Pool.digest`."""
    return open_pool(url).digest()
