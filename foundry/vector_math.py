"""Elementwise functions of torch on the CPU give the same result from their first call on."""

from __future__ import annotations

from typing import Any

FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "cosh", "erf", "erfc", "erfinv", "exp", "expm1", "log", "log10", "log1p", "log2"),
    *("sin", "sinh", "sqrt", "tan", "tanh"),
)
"""What torch hands to Intel's vector library."""


_settled = False


def settle_vector_math(torch: Any) -> None:
    """Call each of them once on one number, in this thread alone. Call it before a network computes on the CPU.

    ``torch`` is the module: the ground floor does not import it.

    The vector library in torch's wheels chooses a function's kernel on its first call. When that call runs on several
    threads, one of them may get a kernel of low accuracy for that call (pytorch/pytorch#188792): rotary positions were
    off by 1e-4 in one of ten first passes here.
    """
    global _settled
    if _settled:
        return
    _settled = True
    for dtype in (torch.float32, torch.float64):
        number = torch.full((1,), 0.5, dtype=dtype)
        for name in FUNCTIONS:
            getattr(torch, name)(number)
