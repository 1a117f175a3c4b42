"""Files anywhere that fsspec reaches: small helpers over URLs and local paths."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

from foundry.errors import UserError


def is_local(url: str) -> bool:
    """Whether ``url`` names a path of this machine (a plain path or ``file://``)."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The path of a local ``url``."""
    return Path(url.removeprefix("file://")).expanduser()


_URL = re.compile(r"(dvc)?://[^\s<>\"']+")


def without_credentials(text: str) -> str:
    """``text`` with no user, password or query in any URL of it: as pages and logs may show it.

    Of the query of a ``dvc://`` URL ``repo`` and ``rev`` stay.
    """
    return _URL.sub(_bare, text)


def shown_url(url: str) -> str:
    """``url`` as a page shows it: no credentials, and of a local path the last part, so that equal inputs give equal
    pages anywhere."""
    return local_path(url).name if is_local(url) else without_credentials(url)


def _bare(url: re.Match[str]) -> str:
    address, _, query = url[0].partition("?")
    address = re.sub(r"://[^/]*@", "://", address)
    if not address.startswith("dvc://"):
        return address
    known = [(name, without_credentials(value)) for name, value in parse_qsl(query) if name in ("repo", "rev")]
    return "?".join(filter(None, [address, "&".join(f"{name}={value}" for name, value in known)]))


def filesystem(url: str) -> tuple[Any, str]:
    """(fsspec file system, path inside it) of ``url``. Raises :class:`UserError` for an unknown protocol."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url}: cannot be opened ({error})") from None


def sha256_of(file: BinaryIO, chunk: int = 1 << 20) -> str:
    """sha256 hex digest of what is left to read in ``file``."""
    digest = hashlib.sha256()
    while block := file.read(chunk):
        digest.update(block)
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    """sha256 hex digest of a local file."""
    with path.open("rb") as file:
        return sha256_of(file)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a local file so that a reader sees the old content or the new, never a part (fsynced, then renamed)."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def files_under(folder: Path) -> Iterator[Path]:
    """Every regular file below ``folder``, sorted by relative POSIX path."""
    yield from sorted(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.relative_to(folder).as_posix()
    )
