"""What a protocol found out, image by image, so that two networks can be compared on the same images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Items:
    """The parts that a measure is made of: one row a test image (or query, or sequence).

    The measure is the mean over groups of a ratio of sums: an accuracy has one group, 1 or 0 over 1; mIoU has a group a
    class, intersection over union; an error is the root of squared errors over pixels. Resampling the rows resamples
    the measure.
    """

    values: np.ndarray
    """(N, G, 2) float64: numerator and denominator of each row in each group."""
    root: bool = False
    """Whether the measure is the square root of that mean."""

    @classmethod
    def of_mean(cls, values: np.ndarray) -> Items:
        """Of a measure that is the plain mean of ``values`` (N,)."""
        values = np.asarray(values, np.float64)
        return cls(np.stack([values, np.ones_like(values)], axis=-1)[:, None, :])

    def __len__(self) -> int:
        return len(self.values)

    def measure(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(B,) the measure where row i counts ``weights`` (B, N) times; (1,) for all rows once.

        A group without any denominator does not count; where no group has one, the measure is not a number.
        """
        flat = self.values.reshape(len(self.values), -1)
        rows = np.ones((1, len(flat))) if weights is None else np.asarray(weights, np.float64)
        sums = (rows @ flat).reshape(len(rows), *self.values.shape[1:])
        counted = sums[..., 1] > 0
        ratios = np.where(counted, sums[..., 0] / np.where(counted, sums[..., 1], 1.0), 0.0)
        groups = counted.sum(1)
        found = np.where(groups > 0, ratios.sum(1) / np.maximum(groups, 1), np.nan)
        return np.sqrt(found) if self.root else found


@dataclass
class Outcome:
    """What one protocol found out about one network."""

    measures: dict[str, float] = field(default_factory=dict)
    """Name of a measure -> value."""
    items: dict[str, Items] = field(default_factory=dict)
    """The parts of those measures that have some, image by image."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further figures, for metrics.json."""
    shown: dict[str, Any] = field(default_factory=dict)
    """Predictions for pictures."""
