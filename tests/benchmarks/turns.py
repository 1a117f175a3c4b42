"""Two trainings in turns: each works only while the other waits. For benchmarks; runs in any environment with torch."""

from __future__ import annotations

import sys
import time


class Turns:
    """Makes the training in this process stop after every ``steps`` optimiser steps, tell how long they took, and wait.

    It goes on with the next line of stdin and ends the process with stdin. The first turn is for warming up.
    """

    def __init__(self, steps: int) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.steps, self._done, self._begun = steps, 0, time.perf_counter()
        register_optimizer_step_post_hook(self._stepped)

    def _stepped(self, *_: object) -> None:
        self._done += 1
        if self._done % self.steps:
            return
        sys.__stdout__.write(f"TURN {time.perf_counter() - self._begun}\n")
        sys.__stdout__.flush()
        if not sys.stdin.readline():
            import os

            os._exit(0)
        self._begun = time.perf_counter()
