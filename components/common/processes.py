"""Find and end processes: those below this one, and those of one job by a mark that all of its processes inherit."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

MARK_VARIABLE = "FOUNDRY_JOB"
"""Environment variable of every process of a job; its value names the job (the absolute run folder)."""


def marked_processes(mark: str) -> list[int]:
    """Pids of the processes of this user, other than this one, that carry ``mark``."""
    wanted = f"{MARK_VARIABLE}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            found.append(int(entry.name))
    return found


def end_processes(mark: str) -> None:
    """SIGKILL every process that carries ``mark``, until none is left."""
    kill_all(lambda: marked_processes(mark))


def kill_descendants() -> None:
    """SIGKILL every process below this one, until none is left."""
    kill_all(lambda: descendants(os.getpid()))


def kill_all(find: Callable[[], list[int]]) -> None:
    """SIGKILL every process that ``find`` names, until it names none."""
    while found := find():
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def descendants(pid: int) -> list[int]:
    """Pids of the running processes below ``pid`` (zombies do not count)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in ("Z", "X"):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found
