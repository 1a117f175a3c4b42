"""Digest of what an input holds, wherever it lies. Local files are hashed once and remembered."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from foundry.errors import UserError
from foundry.home import home
from foundry.progress import Progress
from foundry.settings import digest_of
from foundry.storage import files_under, filesystem, is_local, local_path, sha256_of_file, write_atomically


def content_digest(url: str) -> str:
    """sha256 naming the content of a file or folder.

    Local: over the sorted (relative name, sha256) rows of its files; hashes are remembered by (path, size, time of
    change). Remote: over the (name, checksum) rows that the file system gives (fsspec ``checksum``: an object's ETag
    or version), so nothing is downloaded. Raises :class:`UserError` where nothing is there.
    """
    if is_local(url):
        return _local_digest(local_path(url))
    return _remote_digest(url)


def _local_digest(path: Path) -> str:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_file():
        files = [(path.name, path)]
    else:
        files = [(file.relative_to(path).as_posix(), file) for file in files_under(path)]
        if not files:
            raise UserError(f"{path}: the folder is empty")
    key = digest_of(str(path.resolve()))[:24]
    remembered = _Remembered(home() / "cache" / "content" / f"{key}.json")
    rows = []
    with contextlib.ExitStack() as stack:
        unknown = sum(remembered.get(file) is None for _, file in files)
        progress = stack.enter_context(Progress(f"reading {path}", unknown, "files")) if unknown > 2000 else None
        for name, file in files:
            digest = remembered.get(file)
            if digest is None:
                digest = remembered.put(file, sha256_of_file(file))
                if progress:
                    progress.advance()
            rows.append([name, digest])
    remembered.save()
    return digest_of(sorted(rows))


def _remote_digest(url: str) -> str:
    files, path = filesystem(url)
    try:
        found = files.find(path, detail=True)
        rows = [[name[len(path) :] if name.startswith(path) else name, _stamp(files, name)] for name in found]
    except FileNotFoundError:
        found, rows = {}, []
    except (OSError, ValueError) as error:
        raise UserError(f"{url}: cannot be read ({type(error).__name__}: {error})") from None
    if not rows:
        raise UserError(f"{url}: nothing is there")
    return digest_of(sorted(rows))


def _stamp(files: object, name: str) -> str:
    for method in ("ukey", "checksum"):
        with contextlib.suppress(NotImplementedError, AttributeError):
            return str(getattr(files, method)(name))
    raise UserError(f"{name}: its file system gives no checksum; copy the data to a local folder or an object store")


class _Remembered:
    """sha256 of files by (path, size, time of change), kept between runs in one file for each input."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fresh: dict[str, list[str | int]] = {}
        try:
            self.known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}

    def get(self, file: Path) -> str | None:
        status = file.stat()
        row = self.known.get(str(file))
        if row is not None and row[:3] == [status.st_size, status.st_mtime_ns, status.st_ino]:
            self.fresh[str(file)] = row
            return str(row[3])
        return None

    def put(self, file: Path, digest: str) -> str:
        status = file.stat()
        self.fresh[str(file)] = [status.st_size, status.st_mtime_ns, status.st_ino, digest]
        return digest

    def save(self) -> None:
        if self.fresh == self.known:
            return
        with contextlib.suppress(OSError):  # a memory only: a full or read-only disk does not hurt it
            os.makedirs(self.path.parent, exist_ok=True)
            write_atomically(self.path, json.dumps(self.fresh))
