"""Where the files of an evaluation set are read from: a folder with or without tars in it, a tar, a zip, any fsspec
URL of these."""

from __future__ import annotations

import gzip
import posixpath
import shutil
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Collection, Iterable, Mapping
from typing import Any, BinaryIO, Protocol

from foundry.errors import UserError
from foundry.storage import filesystem

_TARS = (".tar", ".tar.gz", ".tgz")


class Source(Protocol):
    """Files by name. A name has forward slashes and no leading one."""

    def __contains__(self, name: str) -> bool: ...

    def names(self) -> Iterable[str]:
        """Every file, those inside tars of a folder under the names of the members."""
        ...

    def read(self, name: str) -> bytes:
        """Content of a file."""
        ...


class Tar:
    """A tar file with an index of its members. A gzipped one is unpacked to a temporary file, once."""

    def __init__(self, opened: BinaryIO, label: str) -> None:
        try:
            magic = opened.read(2)
            opened.seek(0)
            if magic == b"\x1f\x8b":
                plain = tempfile.TemporaryFile()
                with gzip.GzipFile(fileobj=opened) as stream:
                    shutil.copyfileobj(stream, plain, 1 << 20)
                plain.seek(0)
                opened = plain
            self._file = opened
            with tarfile.open(fileobj=opened, mode="r:") as archive:
                self._members = {
                    posixpath.normpath(member.name): (member.offset_data, member.size)
                    for member in archive
                    if member.isreg()
                }
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, OSError) as error:
            raise UserError(f"{label}: not a readable tar file ({error})") from None
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def names(self) -> Iterable[str]:
        """The regular files among the members."""
        return self._members

    def read(self, name: str) -> bytes:
        """Content of a member."""
        offset, size = self._members[name]
        with self._lock:
            self._file.seek(offset)
            return self._file.read(size)


class Zip:
    """A zip file."""

    def __init__(self, opened: BinaryIO, label: str) -> None:
        try:
            self._archive = zipfile.ZipFile(opened)
        except zipfile.BadZipFile as error:
            raise UserError(f"{label}: not a readable zip file ({error})") from None
        self._names = {
            posixpath.normpath(info.filename): info.filename for info in self._archive.infolist() if not info.is_dir()
        }
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def names(self) -> Iterable[str]:
        """The files among the members."""
        return self._names

    def read(self, name: str) -> bytes:
        """Content of a member."""
        with self._lock:
            return self._archive.read(self._names[name])


class Folder:
    """Loose files of a folder and, behind them, the members of its tar files (opened when first needed).

    A member is called by its own name, or by that of its tar and its own: ``shards/train-0.tar/7.jpg``.
    """

    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._root = root.rstrip("/")
        found = fs.find(self._root)
        start = len(self._root) + 1
        self._files = {path[start:].replace("\\", "/"): path for path in found}
        self._tars: dict[str, Tar] | None = None
        self._members: dict[str, Tar] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._files or self._member(name) is not None

    def names(self) -> Iterable[str]:
        """Loose files, then members of the tars that no loose file hides."""
        self.tars()
        return {**self._files, **self._members}

    def read(self, name: str) -> bytes:
        """Content of a loose file or of a member."""
        if name in self._files:
            return self._fs.cat_file(self._files[name])
        found = self._member(name)
        if found is None:
            raise KeyError(name)
        tar, member = found
        return tar.read(member)

    def tars(self) -> Mapping[str, Tar]:
        """The tar files by their names below the folder."""
        if self._tars is None:
            names = sorted(name for name in self._files if name.lower().endswith(_TARS))
            self._tars = {name: Tar(self._fs.open(self._files[name], "rb"), self._files[name]) for name in names}
            for tar in self._tars.values():
                for member in tar.names():
                    self._members.setdefault(member, tar)
        return self._tars

    def _member(self, name: str) -> tuple[Tar, str] | None:
        tars = self.tars()
        if name in self._members:
            return self._members[name], name
        parts = name.split("/")
        for end in range(1, len(parts)):
            tar, member = tars.get("/".join(parts[:end])), "/".join(parts[end:])
            if tar is not None and member in tar:
                return tar, member
        return None


class Below:
    """The part of a source below one of its folders."""

    def __init__(self, source: Source, prefix: str) -> None:
        self._source, self._prefix = source, prefix

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._source

    def names(self) -> Iterable[str]:
        """The files below that folder, without its name."""
        start = len(self._prefix)
        return [name[start:] for name in self._source.names() if name.startswith(self._prefix)]

    def read(self, name: str) -> bytes:
        """Content of a file."""
        return self._source.read(self._prefix + name)


def open_source(url: str, tables: Collection[str]) -> Source:
    """The source at ``url``: an archive from the folder on that holds one of ``tables``, if any does.

    Raises :class:`UserError` where nothing is there, or a file of another kind.
    """
    fs, root = filesystem(url)
    if not fs.exists(root):
        raise UserError(
            f"{url}: no such evaluation set; give a folder, tar or zip with labels.csv, masks.csv or another table"
        )
    if fs.isdir(root):
        return Folder(fs, root)
    archive: Tar | Zip
    if root.lower().endswith(".zip"):
        archive = Zip(fs.open(root, "rb"), url)
    elif root.lower().endswith(_TARS):
        archive = Tar(fs.open(root, "rb"), url)
    else:
        raise UserError(f"{url}: an evaluation set is a folder, .tar, .tar.gz or .zip, this is another file")
    found = [name for name in archive.names() if posixpath.basename(name).removesuffix(".gz") in tables]
    if not found:
        return archive
    prefix = posixpath.dirname(min(found, key=lambda name: (name.count("/"), name)))
    return Below(archive, f"{prefix}/") if prefix else archive
