"""The files that a pool is stored in: listed in one order on any file system, opened late, identified for a digest."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs

from components.curation.pool.files import Problem, printable
from foundry.errors import UserError
from foundry.storage import filesystem, is_local, local_path


@dataclass(frozen=True)
class StoredFile:
    """A file of a disk or an object store.

    ``path`` is relative to the pool (POSIX, printable); ``open`` returns a seekable binary file; ``facts`` identify
    the content of a remote object (etag, checksum, size, time); ``local`` is set for a file of this machine.
    """

    path: str
    size: int | None
    open: Callable[[], BinaryIO]
    facts: tuple[str, ...] = ()
    local: str | None = None
    problem: str = ""

    def read(self, limit: int) -> bytes:
        """At most ``limit`` bytes of the file."""
        if self.problem:
            raise Problem("unreadable", self.problem)
        with self.open() as file:
            return file.read(limit)


@dataclass(frozen=True)
class Location:
    """A URL resolved once: a local path, or a file system and a path in it."""

    url: str
    local: Path | None
    system: Any
    path: str

    @classmethod
    def of(cls, url: str) -> Location:
        """Resolve ``url``. ``dvc://PATH?repo=URL&rev=REV`` reads a DVC repository at a revision."""
        if is_local(url):
            return cls(url, local_path(url), None, "")
        if url.startswith("dvc://"):
            return cls(url, None, *_dvc(url))
        system, path = filesystem(url)
        return cls(url, None, system, path)

    @property
    def threads(self) -> int:
        """Files worth reading at the same time."""
        return 1 if self.local is not None or self.url.startswith("dvc://") else 16

    def kind(self) -> str:
        """``folder``, ``file`` or ``absent``."""
        if self.local is not None:
            return "folder" if self.local.is_dir() else "file" if self.local.exists() else "absent"
        try:
            kind = self.system.info(self.path)["type"]
        except FileNotFoundError:
            return "absent"
        except Exception as error:  # noqa: BLE001 - no network, no permission, no credentials: all the user's to mend
            raise UserError(f"{self.url}: cannot be reached ({_explain(error)})") from None
        return "folder" if kind == "directory" else "file"

    def file(self) -> StoredFile:
        """This location as one stored file, its path empty."""
        if self.local is not None:
            return _local_file("", str(self.local), self.local.stat)
        return _remote_file(self.system, "", self.path, self.system.info(self.path))

    def tree(self) -> Iterator[StoredFile]:
        """Every file below this folder, ordered by path components."""
        if self.local is not None:
            yield from _walk_local(str(self.local), "", ())
        else:
            yield from _walk_remote(self.system, self.path, "")


def _explain(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _dvc(url: str) -> tuple[Any, str]:
    path, _, query = url.removeprefix("dvc://").partition("?")
    options = {name: values[-1] for name, values in parse_qs(query).items()}
    unknown = sorted(set(options) - {"repo", "rev"})
    if unknown:
        raise UserError(f"{url}: unknown option '{unknown[0]}'; a DVC pool is written dvc://PATH?repo=URL&rev=REVISION")
    try:
        from dvc.api import DVCFileSystem
    except ImportError:
        raise UserError(f"{url}: needs the package dvc; install it or give the images' own folder") from None
    try:
        system = DVCFileSystem(options.get("repo"), rev=options.get("rev"))
        system.info("/")
    except Exception as error:  # noqa: BLE001 - DVC and Git raise many kinds: not a repository, no such revision, ...
        raise UserError(f"{url}: cannot be opened ({_explain(error)})") from None
    return system, "/" + path.strip("/")


def _open(path: str) -> BinaryIO:
    return open(path, "rb")


def _local_file(name: str, path: str, look: Callable[[], os.stat_result]) -> StoredFile:
    """The file at ``path``, of which ``look`` gives the state."""
    try:
        status = look()
    except OSError as error:
        return StoredFile(name, None, partial(_open, path), problem=error.strerror or str(error), local=path)
    problem = "" if stat.S_ISREG(status.st_mode) else "neither a file nor a folder"
    return StoredFile(name, status.st_size, partial(_open, path), local=path, problem=problem)


def _walk_local(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[StoredFile]:
    """Files below ``folder``; links to folders are followed, but never into a folder that is being walked.

    Paths stay plain strings: a pool is listed several times, and may have millions of files.
    """
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
    except PermissionError:
        raise UserError(f"{folder}: permission denied; check the owner and mode of the folder") from None
    for entry in entries:
        name = prefix + printable(entry.name)
        if entry.is_dir():
            yield from _walk_local(entry.path, name + "/", (*above, identity))
        else:
            yield _local_file(name, entry.path, entry.stat)


def _walk_remote(system: Any, folder: str, prefix: str) -> Iterator[StoredFile]:
    entries = sorted(system.ls(folder, detail=True), key=lambda entry: entry["name"].rstrip("/"))
    for entry in entries:
        path = entry["name"].rstrip("/")
        base = path.rpartition("/")[2]
        if not base or path.strip("/") == folder.strip("/"):
            continue  # a store's own marker of the folder
        if entry["type"] == "directory":
            yield from _walk_remote(system, path, f"{prefix}{printable(base)}/")
        else:
            yield _remote_file(system, prefix + printable(base), path, entry)


_CHECKSUMS = ("ETag", "etag", "md5", "checksum", "content_md5")
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")


def _remote_file(system: Any, name: str, path: str, info: dict[str, Any]) -> StoredFile:
    size = info.get("size")
    facts = [f"{fact}={info[fact]}" for fact in _CHECKSUMS if info.get(fact)]
    facts = facts or [f"{fact}={info[fact]}" for fact in _TIMES if info.get(fact)]
    return StoredFile(name, size, lambda: system.open(path, "rb"), (f"size={size}", *facts))
