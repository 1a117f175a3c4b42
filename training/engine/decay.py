"""The rise and decay of dense features along a training, found in a curve of their quality.

Dense features peak early in a long training and decay while image-level ones still improve (Siméoni et al. 2025,
section 4). The rule, on the values of a curve so far:

1. Smooth by a running median of three. The peak is the largest smoothed value, the first where several are equal.
2. The noise is the standard deviation of the values about a line through their neighbours, by the median of the
   absolute second differences (which are sqrt(6) times as wide, and Gaussian ones 0.6745 of a deviation in the median).
3. The bound is the peak less the larger of ``share`` of its height above ``chance`` and ``NOISE`` times the noise.
4. Decay is established where the newest ``patience`` smoothed values or more, after the peak, are all below the bound;
   it was so from the step of the ``patience``-th of them on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NOISE = 3.5
"""Noise deviations that a decay must be deep, at least: a curve that only wavers has none."""


@dataclass(frozen=True)
class Decay:
    """What a curve shows so far.

    ``peak_step``, ``peak``: where it is highest, and how high (smoothed). ``bound``: below it values count as decayed.
    ``established``: the step from which decay was established, None where it is not. ``last``: newest smoothed value.
    """

    peak_step: int
    peak: float
    bound: float
    established: int | None
    last: float


def find_decay(
    steps: Sequence[int], values: Sequence[float], *, chance: float = 0.0, share: float = 0.03, patience: int = 3
) -> Decay:
    """The peak of the curve ``values`` at rising ``steps``, and whether its decay is established (see the module).

    ``chance``: value of features that say nothing. Raises :class:`ValueError` for an empty curve.
    """
    raw = np.asarray(values, np.float64)
    if not len(raw) or len(raw) != len(steps):
        raise ValueError(f"a curve of {len(steps)} steps and {len(raw)} values")
    padded = np.pad(raw, 1, mode="edge")
    smooth = np.median([padded[:-2], padded[1:-1], padded[2:]], axis=0)
    top = int(smooth.argmax())
    bound = float(smooth[top] - max(share * (smooth[top] - chance), NOISE * _noise(raw)))
    low = smooth[top + 1 :] < bound
    tail = len(low) if low.all() else int(low[::-1].argmin())
    established = steps[len(raw) - tail + patience - 1] if tail >= patience else None
    return Decay(steps[top], float(smooth[top]), bound, established, float(smooth[-1]))


def _noise(values: np.ndarray) -> float:
    if len(values) < 3:
        return 0.0
    return float(np.median(np.abs(np.diff(values, 2))) / (0.6745 * 6**0.5))
