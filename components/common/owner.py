"""Who is working on an unfinished result: one owner at a time, and a dead owner's work is taken over."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foundry.lifetime import is_alive, process_identity
from foundry.storage import write_atomically

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 120.0
"""An owner on another machine (or in another container) counts as dead after so long without a heartbeat."""


def this_machine() -> str:
    """Host name and process-id namespace: where a 'pid:start-ticks' has a meaning."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = "pid:[?]"
    return f"{socket.gethostname()} {namespace}"


@dataclass(frozen=True)
class Owner:
    """The content of an owner file."""

    process: str
    """'pid:start-ticks'."""
    machine: str
    """See :func:`this_machine`."""

    def __str__(self) -> str:
        """As shown to people: 'process 123 on host'."""
        return f"process {self.process.partition(':')[0]} on {self.machine.partition(' ')[0]}"


def read_owner(path: Path) -> Owner | None:
    """The owner named in ``path``, or None where there is no (readable) owner file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Owner(process=str(values["process"]), machine=str(values["machine"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def is_working(path: Path) -> bool:
    """Whether the owner named in ``path`` lives: by its process here, by its heartbeat elsewhere."""
    owner = read_owner(path)
    if owner is None:
        return False
    if owner.machine == this_machine():
        return is_alive(owner.process)
    try:
        return time.time() - path.stat().st_mtime < STALE_SECONDS
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _exclusively(folder: Path) -> Iterator[None]:
    """One process at a time; for the moment of reading and writing an owner file only.

    The lasting ownership is the file's content and not this lock, because forked children of a killed owner would
    keep a kernel lock alive.
    """
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Claim:
    """Ownership of one unfinished result; hold it while working, as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._keep_alive, name="owner-heartbeat", daemon=True)

    def _keep_alive(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def __enter__(self) -> Claim:
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._beat.join()
        with contextlib.suppress(OSError), _exclusively(self.path.parent):
            self.path.unlink(missing_ok=True)


def try_claim(path: Path) -> Claim | None:
    """Claim the work named by the owner file ``path``; None while another living owner has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    identity = process_identity(os.getpid())
    assert identity is not None
    with _exclusively(path.parent):
        if is_working(path):
            return None
        write_atomically(path, json.dumps({"process": identity, "machine": this_machine()}) + "\n")
    return Claim(path)
