"""Notices that a process of the run is gone or cut off, whatever this one is doing at the moment."""

from __future__ import annotations

import datetime
import os
import sys
import threading
from collections.abc import Callable

import torch
import torch.distributed as dist

LOST = 1
"""Exit status of a process that has lost another one."""
_BEAT_SECONDS = 1.0
_GRACE_SECONDS = 2.0
"""The process that failed first shall also be seen to end first: torchrun reports that one's error."""


def _leave() -> None:
    print("another process of this run is gone or cut off; this one ends, to start again without it", file=sys.stderr)
    sys.stderr.flush()
    os._exit(LOST)


class Pulse:
    """A thread that meets those of all other processes every second, and ends this process when they stay away.

    Work that only one process does (exports, evaluation, a slow read) may then take as long as it takes, while a lost
    host is noticed within ``seconds``; the timeout of collectives alone could not tell the two apart. Every process
    starts and stops it.
    """

    def __init__(self, seconds: float, lost: Callable[[], None] = _leave) -> None:
        self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=seconds))
        self._lost, self._done = lost, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        everyone = dist.get_world_size()
        finished = 0
        try:
            while finished < everyone:  # all leave in the same round
                self._done.wait(_BEAT_SECONDS)
                said = torch.tensor([int(self._done.is_set())])
                dist.all_reduce(said, group=self._group)
                finished = int(said)
        except RuntimeError:
            self._done.wait(_GRACE_SECONDS)
            self._lost()

    def stop(self) -> None:
        """Return when every process has said that it is done."""
        self._done.set()
        self._thread.join()
