"""How certain a measure, or the difference of two networks in it, is: the paired bootstrap over test images.

Images are drawn again with replacement, the same ones for both networks, and the measure is computed anew (Efron and
Tibshirani 1993, chapter 13). The bounds are percentiles of what comes out, at levels moved outwards for small samples:
the normal quantile becomes ``sqrt(n / (n - 1))`` times Student's with n - 1 degrees of freedom, since the sample itself
varies less than what it was drawn from (Hesterberg 2015, "What teachers should know about the bootstrap", section 3.2).

Why these: of samples drawn from known truths, a one-sided 95 % bound misses in 4 to 6 % for accuracies, 6 to 7 % for
root mean squares (30 images and more) and 5 to 8 % for mIoU with rare classes; plain percentiles miss a little more
often where images are few. Basic and bias-corrected accelerated (BCa) bounds missed in up to 17 and 15 % for mIoU of 60
images, where a class comes and goes with a few of them. Studentised bounds need the variance of every drawn sample,
which is zero in many where two networks differ on a handful of images; they missed in 10 % where it is 4 of 400.
tests/benchmarks/gates.py counts the misses of the bounds used here again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from training.probes.outcome import Items

POWER = 0.8
"""Chance with which :attr:`Comparison.detectable` would be seen."""
_CELLS = 1 << 22
"""Weights held in memory at once (32 MiB)."""
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """A measure of one network."""

    value: float
    low: float
    high: float
    """Bounds of the two-sided interval."""
    certainty: float
    images: int


@dataclass(frozen=True)
class Comparison:
    """A challenger against a champion in one measure; every difference is positive where the challenger is better."""

    difference: float
    """Challenger less champion, or champion less challenger for a measure that is better when smaller."""
    low: float
    """With the certainty, the difference is not below this (one-sided)."""
    interval: tuple[float, float]
    """Two-sided, at the same certainty."""
    certainty: float
    images: int
    detectable: float
    """The true gain that would be told from none (``low`` above 0) with a chance of :data:`POWER`, for as many images
    that differ as much."""
    equal: bool
    """Whether both networks did the same on every image: the difference and its bounds are then exactly 0."""


def compare(
    challenger: Items,
    champion: Items,
    *,
    larger_is_better: bool = True,
    resamples: int = 2000,
    certainty: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """The difference of two networks that were measured on the same images, row by row.

    Equal seeds give equal figures. Values are in the unit of the measure. Where the measure is not a number for one of
    the networks, so are the difference and its bounds.

    Raises:
        ValueError: the items are not of the same measure on the same number of images, or there are none.
    """
    if challenger.values.shape != champion.values.shape or challenger.root != champion.root:
        raise ValueError(
            f"items of {challenger.values.shape} and {champion.values.shape} are not of one measure on the same images"
        )
    if np.array_equal(challenger.values, champion.values):
        value = float(challenger.measure()[0])
        zero = 0.0 if math.isfinite(value) else math.nan
        return Comparison(zero, zero, (zero, zero), certainty, len(challenger), zero, zero == 0.0)
    better, worse = (challenger, champion) if larger_is_better else (champion, challenger)
    sample = _Resampled((better, worse), resamples, seed)
    low = sample.bound(1 - certainty)
    interval = (sample.bound((1 - certainty) / 2), sample.bound((1 + certainty) / 2))
    quantiles = _NORMAL.inv_cdf(certainty) + _NORMAL.inv_cdf(POWER)
    detectable = quantiles * sample.error
    return Comparison(sample.value, low, interval, certainty, len(challenger), detectable, False)


def interval(items: Items, *, resamples: int = 2000, certainty: float = 0.95, seed: int = 0) -> Interval:
    """The two-sided interval of one network's measure, on images like these. Raises ValueError where there are none."""
    sample = _Resampled((items,), resamples, seed)
    low, high = sample.bound((1 - certainty) / 2), sample.bound((1 + certainty) / 2)
    return Interval(sample.value, low, high, certainty, len(items))


class _Resampled:
    """A measure of one network, or the first less the second of two, on the images drawn again and again."""

    def __init__(self, networks: tuple[Items, ...], resamples: int, seed: int) -> None:
        self.images = len(networks[0])
        if not self.images:
            raise ValueError("no images to draw from")
        self.value = float(_difference(networks, None)[0])
        # Images on which everything is alike are interchangeable: they are drawn as one kind, which for right and
        # wrong answers leaves four kinds whatever the number of images.
        rows = np.concatenate([each.values.reshape(self.images, -1) for each in networks], axis=1)
        _, first, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
        kinds = tuple(Items(each.values[first], each.root) for each in networks)
        shares = counts / self.images
        generator = np.random.default_rng(seed)
        block = max(1, _CELLS // len(counts))
        drawn = np.concatenate(
            [
                _difference(kinds, generator.multinomial(self.images, shares, size=min(block, resamples - start)))
                for start in range(0, resamples, block)
            ]
        )
        self.drawn = drawn[np.isfinite(drawn)]  # a sample of images that show no class measures nothing
        self.error = float(self.drawn.std()) if len(self.drawn) else math.nan

    def bound(self, level: float) -> float:
        """The value below which the true one lies with the chance ``level``."""
        if not len(self.drawn) or not math.isfinite(self.value):
            return math.nan
        from scipy.special import stdtrit

        freedom = max(1, self.images - 1)
        quantile = float(stdtrit(freedom, level)) * math.sqrt(self.images / freedom)
        return float(np.quantile(self.drawn, _NORMAL.cdf(quantile), method="weibull"))


def _difference(networks: tuple[Items, ...], weights: np.ndarray | None) -> np.ndarray:
    found = networks[0].measure(weights)
    return found if len(networks) == 1 else found - networks[1].measure(weights)
