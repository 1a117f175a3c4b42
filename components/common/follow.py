"""Follow a growing file of JSON lines, as training writes its metrics."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

INTERVAL_SECONDS = 1.0


class RowReader:
    """Reads the complete lines added to a file since the last look; a file that was replaced or cut is read anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._inode: int | None = None

    def new_rows(self) -> list[dict[str, Any]]:
        """Rows that are JSON objects, in order; other lines are passed over."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset = status.st_ino, 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        rows = []
        for line in complete.splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
        return rows


@contextlib.contextmanager
def follow_rows(path: Path, receive: Callable[[Sequence[dict[str, Any]]], None]) -> Iterator[None]:
    """Hand the rows of ``path``, from its beginning, to ``receive`` while the context is open; the rest at its end."""
    reader, stop = RowReader(path), threading.Event()

    def follow() -> None:
        while True:
            last = stop.wait(INTERVAL_SECONDS)
            if rows := reader.new_rows():
                receive(rows)
            if last:
                return

    thread = threading.Thread(target=follow, name=f"follow {path.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
