"""The mix of a dataset: which of its parts fill which steps, as kinds of steps with images and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from foundry.errors import UserError
from training.recipe import Mix

BALANCED = "balanced"
"""The part drawn evenly over concepts, the only one in which an image may count more than once."""


@dataclass(frozen=True)
class Kind:
    """One kind of step: ``share`` of the steps, images ``members`` (m,) int64, their ``weights`` (m,) float64 > 0."""

    share: float
    members: np.ndarray
    weights: np.ndarray


def part_weights(parts: Mapping[str, np.ndarray], draws: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """How often each of n images is seen, relative to the others: (n,) float64.

    ``parts``: the images of each part; ``draws`` (n,): how often the balanced part counts an image, other parts count
    each once. Of the images seen, each part gives its share of ``weights``; without any, every part by its size. What
    is in several parts is seen for each of them.
    """
    seen = np.zeros(len(draws))
    for name in weights or parts:
        members = parts[name]
        own = draws[members] if name == BALANCED else np.ones(len(members))
        seen[members] += own * (weights[name] / own.sum()) if weights else own
    return seen


def kinds_of(mix: Mix, parts: Mapping[str, np.ndarray], draws: np.ndarray, source: str) -> list[Kind]:
    """The kinds of steps that ``mix`` makes of a dataset called ``source``; see :func:`part_weights`.

    Siméoni et al. 2025, section 3.5: one step in ten holds images of one clean part only. Raises :class:`UserError`
    for a part that is not there and where no part is left for the other steps.
    """
    for name in (*mix.weights, *mix.homogeneous):
        if name not in parts:
            raise UserError(f"{source}: the mix names a part '{name}'; there are: {', '.join(sorted(parts))}")
    kinds = [
        (share, part_weights({name: parts[name]}, draws, {})) for name, share in mix.homogeneous.items() if share > 0
    ]
    rest = 1 - sum(mix.homogeneous.values())
    if rest > 1e-9:
        others = {name: members for name, members in parts.items() if mix.weights or name not in mix.homogeneous}
        if not others:
            raise UserError(f"{source}: no part is left for the steps that are not homogeneous; give the mix weights")
        kinds.append((rest, part_weights(others, draws, mix.weights)))
    found = []
    for share, seen in kinds:
        members = np.flatnonzero(seen)
        found.append(Kind(share, members, seen[members]))
    return found
