"""No process of ours outlives the one that needs it: watches on a parent, and free ports."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable

WATCH_VARIABLE = "FOUNDRY_WATCH_PROCESS"
"""Environment variable 'pid:start-ticks' of the process whose death must end the reader too."""
LOST_VARIABLE = "FOUNDRY_LOST_SECONDS"
"""Environment variable: after how many seconds of silence training counts a process of another host as lost."""


def process_identity(pid: int) -> str | None:
    """'pid:start-ticks' of a running process, or None when it is gone (or a zombie). Linux only."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else f"{pid}:{fields[19]}"


def is_alive(identity: str) -> bool:
    """Whether the process named by 'pid:start-ticks' still runs (a reused pid does not count)."""
    return process_identity(int(identity.partition(":")[0])) == identity


def watch_environment() -> dict[str, str]:
    """What a launcher adds to a child's environment so that :func:`die_with_launcher` there follows it.

    Empty where the system has no /proc.
    """
    identity = process_identity(os.getpid())
    return {WATCH_VARIABLE: identity} if identity else {}


def die_with(identity: str, before_exit: Callable[[], None] | None = None, interval: float = 0.5) -> None:
    """Start a daemon thread that ends this process soon after the process ``identity`` is gone.

    ``before_exit`` runs first (to end others that nobody watches, for instance).
    """

    def watch() -> None:
        while is_alive(identity):
            time.sleep(interval)
        try:
            if before_exit is not None:
                before_exit()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="lifetime-watch", daemon=True).start()


def die_with_launcher(before_exit: Callable[[], None] | None = None, interval: float = 0.5) -> None:
    """:func:`die_with` the launcher named in the environment; nothing where none is named.

    TorchX starts its replicas in sessions of their own, so a signal to the launcher's group never reaches them.
    """
    identity = os.environ.get(WATCH_VARIABLE)
    if identity:
        die_with(identity, before_exit, interval)


def follow_parents() -> None:
    """End with the torchrun agent, which starts processes in their own sessions, and with the launcher (agent too)."""
    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    agent = os.getppid()
    if under_torchrun:
        identity = process_identity(agent)
        die_with(identity or f"{agent}:gone")
    die_with_launcher(before_exit=lambda: os.kill(agent, signal.SIGKILL) if under_torchrun else None)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])
