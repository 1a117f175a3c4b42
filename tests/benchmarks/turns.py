"""The clock of trainings in other processes. For benchmarks; runs in any environment with torch.

What it tells begins a line of its own, also after a progress bar that has not ended its line.
"""

from __future__ import annotations

import os
import sys
import time


def _after_each_step(call: object) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(call)  # type: ignore[arg-type]


class Turns:
    """Makes the training in this process stop after every ``steps`` optimiser steps, tell how long they took, and wait.

    It goes on with the next line of stdin and ends the process with stdin. The first turn is for warming up.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self._done, self._begun = steps, 0, time.perf_counter()
        _after_each_step(self._stepped)

    def _stepped(self, *_: object) -> None:
        self._done += 1
        if self._done % self.steps:
            return
        sys.__stdout__.write(f"\nTURN {time.perf_counter() - self._begun}\n")
        sys.__stdout__.flush()
        if not sys.stdin.readline():
            os._exit(0)
        self._begun = time.perf_counter()


def report_steps(limit: int = 0) -> None:
    """Write ``STEP n seconds`` to stdout after every optimiser step, by the machine's monotonic clock.

    ``limit``: end the process after so many steps (0: never).
    """
    done = 0

    def stepped(*_: object) -> None:
        nonlocal done
        done += 1
        sys.__stdout__.write(f"\nSTEP {done} {time.monotonic()}\n")
        sys.__stdout__.flush()
        if done == limit:
            os._exit(0)

    _after_each_step(stepped)
