"""Members of tar and zip archives, streamed. Tars of WebDataset form lose their sidecars here and only here."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from typing import BinaryIO

from components.curation.pool.files import Member, Problem, printable
from foundry.errors import UserError

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
SIDECARS = frozenset(
    {"json", "txt", "text", "caption", "cls", "cls2", "id", "index", "url", "csv", "tsv", "xml", "yaml", "yml"}
)
"""Extensions that belong to the image of the same key beside them in a WebDataset shard."""
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, zlib.error, LZMAError)
"""What a damaged archive raises."""


def is_archive(path: str) -> bool:
    """Whether ``path`` is named as an archive that :func:`members` opens."""
    return path.lower().endswith((*TARS, ".zip"))


def members(name: str, file: BinaryIO) -> Iterator[Member]:
    """The regular files of the archive ``name`` in stored order. Raises one of ``DAMAGE`` where it is broken."""
    yield from _zip(file) if name.lower().endswith(".zip") else _webdataset(_tar(file))


def explain(url: str, error: Exception) -> UserError:
    """The error of a pool whose archive is damaged."""
    return UserError(
        f"{url}: unreadable archive ({' '.join(str(error).split()) or type(error).__name__}); "
        "it may be incomplete: copy or download it again"
    )


def _zip(file: BinaryIO) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.is_dir():
                continue

            def read(limit: int, entry: zipfile.ZipInfo = entry) -> bytes:
                if entry.flag_bits & 1:
                    raise Problem("unreadable", "encrypted in the archive")
                with archive.open(entry) as content:
                    return content.read(limit)

            yield Member(printable(entry.filename), entry.file_size, read)


def _tar(file: BinaryIO) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        while (entry := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # tarfile remembers every member it has passed
            if entry.isdir():
                continue

            def read(limit: int, entry: tarfile.TarInfo = entry) -> bytes:
                if not entry.isfile():
                    raise Problem("unreadable", "a link or device in the archive, not a file")
                content = archive.extractfile(entry)
                assert content is not None
                return content.read(limit)

            yield Member(printable(entry.name).removeprefix("./"), entry.size, read)


def _split(path: str) -> tuple[str, str]:
    """(key, lower-case extension) as WebDataset reads them: the extension begins at the first dot of the base name."""
    folder, slash, base = path.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _webdataset(stream: Iterator[Member]) -> Iterator[Member]:
    """Leave out sidecars: members with a sidecar's extension beside (in an unbroken run) another of the same key."""
    key, with_image = "", False
    waiting: list[Member] = []
    for member in stream:
        member_key, extension = _split(member.path)
        if member_key != key:
            yield from waiting
            key, waiting, with_image = member_key, [], False
        if extension not in SIDECARS:
            waiting, with_image = [], True
            yield member
        elif not with_image:
            waiting.append(_kept(member))
    yield from waiting


def _kept(member: Member) -> Member:
    """``member`` with its (small) content read now, for a stream that moves on before it is asked for."""
    limit = 1 << 20
    if member.size is not None and member.size > limit:
        return Member(member.path, member.size, _too_large)
    try:
        data = member.read(limit)
    except Problem as problem:
        return Member(member.path, None, _raiser(problem))
    return Member(member.path, len(data), lambda count: data[:count])


def _too_large(limit: int) -> bytes:
    raise Problem("too-many-bytes", "larger than any text file beside images")


def _raiser(problem: Problem):  # type: ignore[no-untyped-def]
    def read(limit: int) -> bytes:
        raise problem

    return read
