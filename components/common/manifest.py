"""The manifest of a step's result: what it holds, what it was made from. A result exists when its manifest does."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from foundry.errors import UserError
from foundry.settings import Settings, digest_of
from foundry.storage import files_under, sha256_of_file, write_atomically

MANIFEST = "manifest.json"
SMALL_FILE = 1 << 20
"""Bytes up to which a reader verifies the sha256 of a file, and not only its size."""


class FileRow(Settings):
    """One file of a result."""

    path: str
    """Relative POSIX path."""
    size: int
    """Bytes."""
    sha256: str
    """Hex digest of its content."""


class InputRow(Settings):
    """One input a result was made from."""

    digest: str
    """Digest of its content."""
    url: str
    """As it was given: a path, a URL, ``sample:`` or a plain text."""
    step: str | None = None
    """The step that made it, where it is a result."""
    fingerprint: str | None = None
    """Its fingerprint in the store, where it is a result."""


class Manifest(Settings):
    """Content of ``manifest.json``, written last."""

    schema_version: Literal[1] = 1
    step: str
    fingerprint: str
    digest: str
    """See :func:`content_digest_of`."""
    files: tuple[FileRow, ...]
    records: tuple[str, ...] = ()
    """Patterns of files that are not in the digest (logs, timings)."""
    config: dict[str, Any]
    inputs: dict[str, InputRow]
    code_digest: str
    environment: dict[str, Any]
    metrics: dict[str, Any]
    started: str
    """ISO 8601, UTC."""
    seconds: float
    git: dict[str, str | None]

    def size(self) -> int:
        """Bytes of all files."""
        return sum(row.size for row in self.files)

    def digest_under(self, folder: str) -> str:
        """Digest of the files below the relative ``folder``, as if it were a result of its own."""
        prefix = folder.rstrip("/") + "/"
        rows = [
            FileRow(path=row.path.removeprefix(prefix), size=row.size, sha256=row.sha256)
            for row in self.files
            if row.path.startswith(prefix)
        ]
        return content_digest_of(rows)


def content_digest_of(files: Iterable[FileRow], records: Iterable[str] = ()) -> str:
    """sha256 over the sorted (path, sha256) rows of ``files``, without those that match a pattern of ``records``."""
    patterns = tuple(records)
    rows = [[row.path, row.sha256] for row in files if not any(fnmatch.fnmatchcase(row.path, p) for p in patterns)]
    return digest_of(sorted(rows))


def describe_files(folder: Path) -> tuple[FileRow, ...]:
    """A row for each file below ``folder`` except its manifest. Each is flushed to disk and made read-only.

    A symbolic link becomes the file it points to, so that a result depends on nothing outside itself.
    """
    rows = []
    for path in files_under(folder):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST:
            continue
        if path.is_symlink():
            _replace_link(path)
        path.chmod(0o444)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        rows.append(FileRow(path=name, size=path.stat().st_size, sha256=sha256_of_file(path)))
    return tuple(rows)


def _replace_link(path: Path) -> None:
    import shutil

    temporary = path.with_name(f".{path.name}.copy")
    shutil.copyfile(path, temporary)
    os.replace(temporary, path)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest`` into ``folder``, atomically; the last thing written there."""
    document = manifest.model_dump(mode="json")
    document = {"schema": document.pop("schema_version"), **document}
    write_atomically(folder / MANIFEST, json.dumps(document, indent=1, ensure_ascii=True) + "\n")
    (folder / MANIFEST).chmod(0o444)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in ``folder``, or None where there is none.

    Raises :class:`UserError` for one that cannot be read or has another schema.
    """
    path = folder / MANIFEST
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{path}: not a readable manifest ({error}); make the result again") from None
    if not isinstance(document, Mapping) or document.get("schema") != 1:
        found = document.get("schema") if isinstance(document, Mapping) else None
        raise UserError(f"{path}: manifest schema {found} is not the supported 1; make the result with this version")
    values = {("schema_version" if key == "schema" else key): value for key, value in document.items()}
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: not a valid manifest ({where}: {first['msg']}); make the result again") from None


def find_damage(folder: Path, manifest: Manifest, *, thorough: bool = False) -> str | None:
    """What is wrong with the files of a result, in words, or None.

    Sizes are compared, and the sha256 of files up to :data:`SMALL_FILE` bytes; of every file when ``thorough``.
    """
    for row in manifest.files:
        path = folder / row.path
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return f"{row.path} is missing"
        if size != row.size:
            return f"{row.path} has {size} bytes, its manifest says {row.size}"
        if (thorough or size <= SMALL_FILE) and sha256_of_file(path) != row.sha256:
            return f"{row.path} was changed (its sha256 differs)"
    if content_digest_of(manifest.files, manifest.records) != manifest.digest:
        return "its manifest was changed (the digest does not fit the files)"
    return None
