"""What a person sees of a local run: a heading for each step and the step's own lines. All the rest goes to the log.

``kfp.local`` writes its own messages, its executor's messages and the output of the steps to one stream. A
:class:`Console` stands in for that stream (see :func:`showing_steps`): it keeps every line in the run's log and lets
the lines of the steps through.
"""

from __future__ import annotations

import contextlib
import io
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

from foundry.progress import duration

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OUTER = re.compile(r"\d\d:\d\d:\d\d\.\d{3} - [A-Z]+ - (.*)")
"""A message of kfp.local itself; what a task prints is indented instead."""
_STARTS = re.compile(r"Executing task '([^']+)'")
_EXECUTOR = "[KFP Executor "
_INDENT = "    "


class Console(io.TextIOBase):
    """A text stream that takes what kfp.local prints."""

    def __init__(
        self,
        terminal: TextIO,
        log: TextIO,
        titles: Mapping[str, str],
        is_reported: Callable[[str], bool] = lambda line: False,
    ) -> None:
        """``titles``: task name to heading, in order. ``is_reported(line)``: is an ``error:`` line told elsewhere?"""
        self._terminal, self._log, self._titles = terminal, log, dict(titles)
        self._is_reported = is_reported
        self._rest = ""
        self._streaming = False  # between 'Streamed logs:' and the next message of kfp.local
        self._in_executor_input = False
        self._held: str | None = None  # an error line: shown unless it is told elsewhere
        self._start = time.monotonic()
        self.task = ""
        """Name of the task that started last."""

    def writable(self) -> bool:
        """Always."""
        return True

    def isatty(self) -> bool:
        """Never: no colours, no moving lines."""
        return False

    def flush(self) -> None:
        """Pass on what is complete."""
        self._log.flush()
        self._terminal.flush()

    def write(self, text: str) -> int:
        """Take text; complete lines are sorted at once."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._sort(line)
        if lines:
            self.flush()
        return len(text)

    def close(self) -> None:
        """Pass on what is left; the streams behind stay open."""
        if self._rest:
            self.write("\n")
        self._release()
        self.flush()
        super().close()

    def _sort(self, line: str) -> None:
        plain = _COLOUR.sub("", line)
        self._log.write(plain + "\n")
        if outer := _OUTER.match(plain):
            self._streaming = outer[1].startswith("Streamed logs:")
            self._in_executor_input = False
            if start := _STARTS.match(outer[1]):
                self._heading(start[1])
        elif self._streaming and plain.startswith(_INDENT):
            self._step_line(plain.removeprefix(_INDENT).rstrip())

    def _step_line(self, line: str) -> None:
        if self._in_executor_input:
            self._in_executor_input = line != "}"
            return
        if line.startswith(_EXECUTOR):
            self._in_executor_input = line.endswith("Got executor_input:")
            return
        self._release()
        if line.startswith("error: "):
            self._held = line
        elif line:
            self._show(line)

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None and not self._is_reported(held.removeprefix("error: ")):
            self._show(held)

    def _show(self, line: str) -> None:
        self._terminal.write(f"  {line}\n")

    def _heading(self, task: str) -> None:
        self._release()
        self.task = task
        tasks = list(self._titles)
        if task in self._titles:
            place, elapsed = f"{tasks.index(task) + 1}/{len(tasks)}", duration(time.monotonic() - self._start)
            self._terminal.write(f"[{place}] {self._titles[task]}  (at {elapsed})\n")


@contextlib.contextmanager
def showing_steps(console: Console) -> Iterator[Console]:
    """Everything printed by this process inside goes to ``console``."""
    with contextlib.redirect_stdout(console):
        try:
            yield console
        finally:
            console.close()
