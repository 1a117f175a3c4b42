"""What a stored file holds, as a digest: sha256 of local files (remembered), etag or size and time of remote ones."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from components.curation.pool.stored import StoredFile
from foundry.home import home
from foundry.progress import Progress
from foundry.storage import sha256_of_file

SETTLED_NS = 2_000_000_000
"""A file changed less than this before it was read is not remembered: a second change could leave the same time."""
FLUSH = 1000
"""New digests that are remembered at once."""
QUIET_SECONDS = 2.0
"""Work shorter than this shows no progress."""


class _Memory:
    """sha256 of local files by (path, size, mtime) in ``<home>/cache``; a cache that cannot be used is left out."""

    def __init__(self) -> None:
        self._database: sqlite3.Connection | None = None
        self._fresh: list[tuple[bytes, int, int, str]] = []
        with contextlib.suppress(sqlite3.Error, OSError):
            folder = home() / "cache"
            folder.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(folder / "file-digests.sqlite", timeout=10, check_same_thread=False)
            database.execute(
                "create table if not exists digests (path blob primary key, size integer, mtime integer, sha256 text)"
            )
            self._database = database

    def sha256(self, path: str) -> str:
        status = os.stat(path)
        name = os.fsencode(os.path.abspath(path))  # any bytes may stand in a name
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                query = "select sha256 from digests where path = ? and size = ? and mtime = ?"
                row = self._database.execute(query, (name, status.st_size, status.st_mtime_ns)).fetchone()
                if row is not None:
                    return str(row[0])
        digest = sha256_of_file(Path(path))
        if time.time_ns() - status.st_mtime_ns > SETTLED_NS:
            self._fresh.append((name, status.st_size, status.st_mtime_ns, digest))
            if len(self._fresh) >= FLUSH:
                self.flush()
        return digest

    def flush(self) -> None:
        if self._database is not None and self._fresh:
            with contextlib.suppress(sqlite3.Error), self._database:
                self._database.executemany("insert or replace into digests values (?, ?, ?, ?)", self._fresh)
        self._fresh.clear()

    def close(self) -> None:
        self.flush()
        if self._database is not None:
            self._database.close()


def content_digest(files: Iterable[StoredFile]) -> Iterator[tuple[str, str]]:
    """(path, digest of the content) of each file; a file that cannot be read counts as such, not as an error."""
    memory = _Memory()
    begun = time.monotonic()
    progress: Progress | None = None
    with contextlib.ExitStack() as stack:
        stack.callback(memory.close)
        for number, file in enumerate(files):
            yield file.path, _digest(memory, file)
            if progress is not None:
                progress.advance()
            elif time.monotonic() - begun > QUIET_SECONDS:
                progress = stack.enter_context(Progress("digest of the pool", None, "files", done=number + 1))


def _digest(memory: _Memory, file: StoredFile) -> str:
    if file.problem:
        return f"unreadable: {file.problem}"
    if file.local is None:
        return " ".join(file.facts)
    try:
        return memory.sha256(file.local)
    except OSError as error:
        return f"unreadable: {error.strerror}"
