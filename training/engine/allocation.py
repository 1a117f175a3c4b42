"""Memory of the processor that large tensors leave is kept for the next step, not given back and cleared again.

glibc maps every block above a threshold anew and unmaps it when it is freed. A training step frees and takes the same
tensors over and over: the kernel then clears hundreds of thousands of pages a step.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3)."""
_LARGEST = 2**31 - 1


def keep_freed_memory(top_pad: int = 64 << 20) -> bool:
    """Make malloc serve large blocks from memory that it keeps; grows by at least ``top_pad`` bytes at a time.

    Returns whether that was done: not where the C library has no ``mallopt``. For the whole process, and not undone.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, top_pad))
    return all([mallopt(name, value) for name, value in settings])
