"""Rows of a long run kept beside its output as they come, so that a killed run goes on where it was."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.errors import UserError
from foundry.storage import write_atomically

if TYPE_CHECKING:
    import numpy as np
    from pyarrow import Table

DESCRIPTION = "run.json"
SUFFIX = ".parts"
ROWS, BYTES, SECONDS = 1024, 32 << 20, 10.0
"""A part is written when it has as many rows or bytes, or when its first row is as old."""


@dataclass(frozen=True)
class Row:
    """What became of one image: an answer, or why there is none."""

    path: str
    embedding: np.ndarray | None = None
    """float32 (D,)."""
    patch_features: np.ndarray | None = None
    """float32 (N, D), where they were asked for."""
    version: int | None = None
    digest: str | None = None
    error: str | None = None


def folder_of(output: Path) -> Path:
    """Where the parts of ``output`` lie until it is whole."""
    return output.with_name(output.name + SUFFIX)


class Parts:
    """The rows of a run in their order: a folder of Parquet files, each written whole and named by its first row.

    ``description`` says what the run is (JSON values); one that was begun with another description is refused with
    :class:`UserError`, as is one that another process writes. ``anew`` forgets what is there. Use as a context manager:
    rows that are not written yet are written at its end, also when it ends in an error.
    """

    def __init__(self, folder: Path, description: dict[str, Any], *, anew: bool = False) -> None:
        self.folder, self._description, self._anew = folder, description, anew
        self._parts: list[tuple[Path, int]] = []
        self._pending: list[Row] = []
        self._pending_bytes = 0
        self._since = 0.0
        self.first_error: Row | None = None
        self.errors = 0
        self.versions: dict[tuple[int, str], int] = {}
        """Rows of each (version, digest) that answered, in the order in which they came."""

    def __enter__(self) -> Parts:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UserError(f"{self.folder}: another process writes there; wait for it or stop it") from None
        try:
            self._open()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            self._lock.close()

    @property
    def done(self) -> int:
        """Rows that are there, written or not."""
        return sum(count for _, count in self._parts) + len(self._pending)

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows; a part is written when it is full or old."""
        if not self._pending:
            self._since = time.monotonic()
        self._pending += rows
        for row in rows:
            self._count(row.path, row.version, row.digest, row.error)
            self._pending_bytes += sum(
                array.nbytes for array in (row.embedding, row.patch_features) if array is not None
            )
        old = time.monotonic() - self._since >= SECONDS
        if old or len(self._pending) >= ROWS or self._pending_bytes >= BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait."""
        if not self._pending:
            return
        from pyarrow import BufferOutputStream, parquet

        first = self.done - len(self._pending)
        sink = BufferOutputStream()
        parquet.write_table(_table(self._pending), sink, compression="none", use_dictionary=["version", "digest"])
        path = self.folder / f"part-{first:012d}.parquet"
        write_atomically(path, sink.getvalue().to_pybytes())
        self._parts.append((path, len(self._pending)))
        self._pending, self._pending_bytes = [], 0

    def tables(self) -> Iterator[Table]:
        """The parts in order, one in memory at a time; columns as :class:`Row`, patch features as one list a row."""
        from pyarrow import parquet

        self.flush()
        for path, _ in self._parts:
            yield parquet.read_table(path)

    def discard(self) -> None:
        """Delete everything; the output is whole."""
        self._parts, self._pending = [], []
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> None:
        path = self.folder / DESCRIPTION
        found: dict[str, Any] | None = None
        if not self._anew:
            with contextlib.suppress(FileNotFoundError, ValueError):
                found = json.loads(path.read_text(encoding="utf-8"))
        if found is None:
            for leftover in self.folder.iterdir():
                if leftover.name != ".lock":
                    leftover.unlink()
            write_atomically(path, json.dumps(self._description, indent=2) + "\n")
            return
        for key, value in self._description.items():
            if found.get(key) != value:
                raise UserError(
                    f"{self.folder}: holds an unfinished run with another '{key}' ({found.get(key)}, now {value}); "
                    "repeat its command to finish it, or begin anew with --anew"
                )
        self._take_up()

    def _take_up(self) -> None:
        from pyarrow import ArrowInvalid, parquet

        expected = 0
        for path in sorted(self.folder.glob("part-*.parquet")):
            try:
                table = parquet.read_table(path, columns=["path", "version", "digest", "error"])
            except (ArrowInvalid, OSError):  # a disk that lost what it had promised to keep
                break
            if path.name != f"part-{expected:012d}.parquet":
                break
            for row in table.to_pylist():
                self._count(row["path"], row["version"], row["digest"], row["error"])
            self._parts.append((path, table.num_rows))
            expected += table.num_rows
        kept = {path for path, _ in self._parts}
        for path in self.folder.iterdir():
            if path not in kept and path.name not in (DESCRIPTION, ".lock"):
                path.unlink()

    def _count(self, path: str, version: int | None, digest: str | None, error: str | None) -> None:
        if error is not None:
            self.errors += 1
            self.first_error = self.first_error or Row(path, error=error)
        elif version is not None and digest is not None:
            self.versions[version, digest] = self.versions.get((version, digest), 0) + 1


def _table(rows: Sequence[Row]) -> Table:
    import pyarrow as arrow

    vectors = arrow.list_(arrow.float32())
    # A path need not be text; Parquet's strings are.
    paths = [os.fsencode(row.path).decode("utf-8", "backslashreplace") for row in rows]
    patches = [None if row.patch_features is None else row.patch_features.reshape(-1) for row in rows]
    return arrow.table(
        {
            "path": arrow.array(paths, arrow.string()),
            "embedding": arrow.array([row.embedding for row in rows], vectors),
            "patch_features": arrow.array(patches, vectors),
            "version": arrow.array([row.version for row in rows], arrow.int64()),
            "digest": arrow.array([row.digest for row in rows], arrow.string()),
            "error": arrow.array([row.error for row in rows], arrow.string()),
        }
    )
