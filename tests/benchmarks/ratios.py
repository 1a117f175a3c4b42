"""What interleaved rounds say of two things: the median ratio and how sure it is."""

from __future__ import annotations

import numpy as np


def ratio_of_rounds(ours: np.ndarray, theirs: np.ndarray, digits: int = 2) -> dict[str, object]:
    """``ratio``: the median of ours / theirs; ``interval``: holds 95 of 100 medians of resampled rounds."""
    ratios = ours / theirs
    resampled = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    edges = np.quantile(resampled, (0.025, 0.975))
    return {"ratio": round(float(np.median(ratios)), digits), "interval": [round(float(e), digits) for e in edges]}
