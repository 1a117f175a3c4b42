"""What interleaved rounds say of two things: the median ratio and how sure it is."""

from __future__ import annotations

import numpy as np


def ratio_of_rounds(ours: np.ndarray, theirs: np.ndarray, digits: int = 2) -> dict[str, object]:
    """``ratio``: the median of ours / theirs; ``interval``: holds 95 of 100 medians of resampled rounds."""
    middle, edges = _median_and_edges(ours / theirs)
    return {"ratio": round(middle, digits), "interval": [round(edge, digits) for edge in edges]}


def median_of_rounds(values: np.ndarray, digits: int = 4) -> dict[str, object]:
    """``median`` of one thing and its ``interval``, as above, with ``digits`` significant digits."""
    middle, edges = _median_and_edges(values)
    return {"median": significant(middle, digits), "interval": [significant(edge, digits) for edge in edges]}


def significant(value: float, digits: int = 4) -> float:
    """``value`` rounded to ``digits`` significant digits."""
    return float(f"{value:.{digits}g}")


def _median_and_edges(values: np.ndarray) -> tuple[float, list[float]]:
    resampled = np.median(np.random.default_rng(0).choice(values, (2000, len(values))), axis=1)
    return float(np.median(values)), [float(edge) for edge in np.quantile(resampled, (0.025, 0.975))]
