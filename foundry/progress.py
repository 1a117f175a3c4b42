"""Progress of long work: one moving line on a terminal, plain lines in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")


def duration(seconds: float) -> str:
    """``seconds`` as people read them: '4.2 s', '3 min 05 s', '2 h 10 min'."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Counts ``total`` units of ``unit`` under ``label`` and shows rate and remaining time.

    A terminal gets a line that moves (five times a second at most); anything else gets a plain line every
    ``log_every`` seconds. ``total=None`` shows count and rate only. Use as a context manager.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str = "images",
        *,
        done: int = 0,
        log_every: float = 10.0,
        stream: TextIO | None = None,
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self._start_count = done
        self._stream = stream or sys.stderr
        self._moving = self._stream.isatty()
        self._interval = 0.2 if self._moving else log_every
        self._start = self._last = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add ``count`` finished units; ``note`` is shown behind the numbers (a loss, a file)."""
        self.done += count
        now = time.monotonic()
        if now - self._last >= self._interval:
            self._last = now
            self._show(self._line(now, note))

    def _line(self, now: float, note: str) -> str:
        elapsed = max(now - self._start, 1e-9)
        rate = (self.done - self._start_count) / elapsed
        parts = [f"{self.done}/{self.total} {self.unit}" if self.total else f"{self.done} {self.unit}"]
        parts.append(f"{rate:.1f}/s" if rate >= 0.1 else f"{60 * rate:.1f}/min")
        if self.total and rate > 0:
            parts.append(f"{duration(max(self.total - self.done, 0) / rate)} left")
        if note:
            parts.append(note)
        return f"{self.label}: {', '.join(parts)}"

    def _show(self, line: str) -> None:
        if self._moving:
            # a line that wraps could not be taken back
            self._stream.write(f"\r\x1b[2K{line[: self._columns() - 1]}")
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        elapsed = time.monotonic() - self._start
        state = "" if exception_type is None else " (stopped)"
        self._show(f"{self.label}: {self.done} {self.unit} in {duration(elapsed)}{state}")
        if self._moving:
            self._stream.write("\n")


def track(items: Iterable[T], label: str, total: int | None, unit: str = "images") -> Iterator[T]:
    """Yield ``items`` while showing :class:`Progress`."""
    with Progress(label, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()
