"""Random numbers as a pure function of named integers: the same for any number of processes and after any restart."""

from __future__ import annotations

import enum

import numpy as np


class Purpose(enum.IntEnum):
    """What a stream of random numbers is for; two purposes never share one."""

    ORDER = 1
    CROPS = 2
    MASK_SHARES = 3
    MASK_BLOCKS = 4
    ROPE = 5
    SIZES = 6
    MIXTURE = 7


def stream(seed: int, purpose: Purpose, step: int = 0, index: int = 0) -> np.random.Generator:
    """The generator named by (seed, purpose, step, index). Counter-based, so it costs nothing to jump to any step."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, int(purpose)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, step, index]))
