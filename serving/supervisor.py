"""The process above a Triton server: ends it with whoever it serves, and leaves nothing of it behind.

Triton is a foreign program with children of its own (one stub for each model instance) and regions in /dev/shm. The
supervisor is their parent of last resort. It ends them when it is told to (SIGTERM lets requests in flight finish,
SIGQUIT does not), when the process it follows is gone, and when the server ends by itself. SIGUSR1 makes it stop
following: the server stays up (``up``, ``keep``).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from foundry.lifetime import is_alive

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
INTERVAL = 0.2
"""Seconds between two looks at the followed process and at the server."""
GRACE = 15.0
"""Seconds a server has to end after SIGTERM."""


@dataclass(frozen=True)
class Charge:
    """What a supervisor is given on its standard input, as JSON."""

    command: list[str]
    environment: dict[str, str]
    folder: str
    """Working folder of the server."""
    log: str
    """File that its output is appended to."""
    state: str
    """State file to delete at the end."""
    shared_memory_prefix: str
    """Beginning of the names of its regions in /dev/shm."""
    follow: str | None
    """'pid:start-ticks' of the process whose end is the server's end."""

    def to_json(self) -> str:
        """For the standard input of a new supervisor."""
        return json.dumps(asdict(self))


def remove_shared_memory(prefix: str) -> None:
    """Delete the regions in /dev/shm that begin with ``prefix``."""
    assert len(prefix) > 8, "too short to be ours alone"
    for path in Path("/dev/shm").glob(prefix + "*"):
        path.unlink(missing_ok=True)


class Supervisor:
    """Starts the server of a :class:`Charge` and stays until it is gone."""

    def __init__(self, charge: Charge) -> None:
        self.charge, self.follow = charge, charge.follow
        self._wake = threading.Event()
        self._stopping = self._at_once = False

    def run(self) -> int:
        """Supervise until the end; returns the server's exit status."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGQUIT, self._on_stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, self._on_release)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        with open(self.charge.log, "ab") as log:
            server = subprocess.Popen(
                self.charge.command,
                env=self.charge.environment,
                cwd=self.charge.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0),
            )
        print(server.pid, flush=True)
        sys.stdout.close()
        while server.poll() is None and not self._stopping:
            self._wake.wait(INTERVAL)
            if self.follow is not None and not is_alive(self.follow):
                self._stopping = self._at_once = True
        if not self._at_once and server.poll() is None:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(GRACE)
            except subprocess.TimeoutExpired:
                pass
        self._end(server)
        return server.returncode

    def _end(self, server: subprocess.Popen[bytes]) -> None:
        """Kill what is left of the server's process group, collect it, and delete its traces."""
        try:
            os.killpg(server.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        server.wait()
        while True:  # orphaned stubs have become our children
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        remove_shared_memory(self.charge.shared_memory_prefix)
        Path(self.charge.state).unlink(missing_ok=True)

    def _on_stop(self, number: int, _: object) -> None:
        self._stopping, self._at_once = True, number == signal.SIGQUIT
        self._wake.set()

    def _on_release(self, *_: object) -> None:
        self.follow = None


if __name__ == "__main__":
    sys.exit(Supervisor(Charge(**json.loads(sys.stdin.read()))).run())
