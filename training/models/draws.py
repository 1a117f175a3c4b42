"""Random draws inside a forward pass, as pure functions of explicit integers.

Stochastic depth and position jitter read no global random state: each draw is a hash of (seed, step, what is drawn,
layer, crop group, global sample index). Any number of processes, a restart or a recomputed activation see the same
draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hashed_words(key: str, indices: np.ndarray) -> np.ndarray:
    """One uniform 64-bit word per index of the stream named ``key`` (blake2b, then the SplitMix64 finaliser)."""
    base = np.uint64(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little"))
    with np.errstate(over="ignore"):
        word = base + (indices.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@dataclass(frozen=True)
class CropGroup:
    """Which crops of the whole batch one element of a crop list holds: ``indices`` (n,) of 0 ... ``total`` - 1."""

    indices: np.ndarray
    total: int


@dataclass(frozen=True)
class StepDraws:
    """The draws of one optimiser step. ``groups[g]`` describes element g of the crop list given to the backbone."""

    seed: int
    step: int
    groups: tuple[CropGroup, ...]

    @classmethod
    def for_images(cls, seed: int, step: int, images: Sequence[int], batch: int, crops: Sequence[int]) -> StepDraws:
        """Draws for groups of ``crops[g]`` crops of each image, crop-major: all first crops, then all second.

        ``images`` are the positions (0 ... ``batch`` - 1) that this process's images have in the whole batch.
        """
        positions = np.asarray(images, dtype=np.int64)
        return cls(
            seed,
            step,
            tuple(
                CropGroup((np.arange(count)[:, None] * batch + positions[None, :]).reshape(-1), count * batch)
                for count in crops
            ),
        )

    def kept(self, rate: float, layer: int, branch: str, group: int) -> tuple[Tensor, float]:
        """Batch-subset stochastic depth: the rows of this process that keep a residual branch, and the branch's factor.

        Of the b = ``groups[group].total`` crops exactly m = max(int(b (1 - rate)), 1) are kept, those with the smallest
        hashes; the branch is multiplied by b / m so that its expectation is preserved. Returns int64 row numbers
        (ascending, perhaps none on this process) and b / m. Source: Oquab et al. 2023, section 5, "efficient stochastic
        depth".
        """
        members = self.groups[group]
        count = max(int(members.total * (1.0 - rate)), 1)
        words = hashed_words(f"keep/{self.seed}/{self.step}/{layer}/{branch}/{group}", np.arange(members.total))
        keeps = np.zeros(members.total, dtype=bool)
        keeps[np.argpartition(words, count - 1)[:count]] = True
        return torch.from_numpy(np.flatnonzero(keeps[members.indices])), members.total / count

    def uniform(self, what: str, layer: int, group: int, count: int) -> list[float]:
        """``count`` numbers uniform in [0, 1) for the draw named ``what``, the same on every process."""
        words = hashed_words(f"{what}/{self.seed}/{self.step}/{layer}/{group}", np.arange(count))
        return [float(word >> np.uint64(11)) / 2**53 for word in words]
