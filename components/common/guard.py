"""Run a command that cannot outlive its launcher: ``python -m components.common.guard COMMAND ...``.

TorchX starts every replica in a session of its own, so a kill of the launcher's process group does not reach it. This
small process stands between the two. It adopts every orphan below it (Linux child subreaper) and kills its whole
process tree once the launcher named by ``FOUNDRY_WATCH_PROCESS`` is gone, or when the command has ended and left
something behind. Should the guard itself be killed, its command gets SIGKILL (parent-death signal).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

from components.common.processes import kill_descendants
from foundry.lifetime import WATCH_VARIABLE, is_alive, process_identity

POLL_SECONDS = 0.2
GRACE_SECONDS = 20.0
"""How long the command may take to end by itself after SIGTERM."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(argv: list[str]) -> int:
    """Run the command ``argv`` and return its exit status (128 + signal where a signal ended it)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    launcher = os.environ.get(WATCH_VARIABLE) or process_identity(os.getppid())
    stop_at: float | None = None

    def stop(signum: int, frame: object) -> None:
        nonlocal stop_at
        stop_at = stop_at or time.monotonic() + GRACE_SECONDS

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    child = subprocess.Popen(argv, preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    told = False
    while child.poll() is None:
        if launcher is None or not is_alive(launcher):
            break
        if stop_at is not None and not told:
            child.terminate()
            told = True
        if stop_at is not None and time.monotonic() > stop_at:
            break
        try:
            child.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    kill_descendants()
    status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
