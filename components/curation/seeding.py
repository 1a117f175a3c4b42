"""Where the centroids of k-means begin: greedy k-means++ on a sample of the points."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from components.curation.blocks import spans_of
from components.curation.compute import Compute, Run
from components.curation.rows import Rows

SAMPLE, FEWEST, LARGEST_SHARE, SMALLEST_SAMPLE = 16, 4, 16, 2048
"""The sample has so many points for each cluster; where that is more than one of ``LARGEST_SHARE`` points fewer, but
not less than ``FEWEST`` for each cluster and ``SMALLEST_SAMPLE`` in all. Seeding then costs less than one iteration of
Lloyd, or a few where there are less than 64 points a cluster; a larger sample was not seen to give better clusters."""
DRAWS, HELD = 128, 1 << 23
"""Points drawn at a time, and how many distances of drawn points from the sample are held, at most."""
TILE_ROWS = 2048
"""Points of the sample whose distances one thread computes at a time."""
ROUNDING = 2.0**-20
"""Share of the sum of square lengths below which a squared distance is rounding and counts as 0."""


def sample_rows(count: int, clusters: int, generator: np.random.Generator) -> np.ndarray:
    """The sorted numbers of the rows that seeds are chosen from, out of ``count``."""
    size = max(min(SAMPLE * clusters, count // LARGEST_SHARE), FEWEST * clusters, SMALLEST_SAMPLE)
    if size >= count:
        return np.arange(count)
    return np.sort(generator.choice(count, size, replace=False))


def seeds(points: Rows, clusters: int, generator: np.random.Generator, compute: Compute, run: Run) -> Tensor:
    """(clusters, d) float32 of the points: greedy k-means++ on :func:`sample_rows`.

    Each next centre is the best (lowest potential) of 2 + floor(ln k) draws in proportion to the squared distance
    (Arthur and Vassilvitskii 2007, section 5). Every process reads the sampled rows of its own share; the sample is
    held by all, and all choose the same of it.
    """
    rows = sample_rows(len(points), clusters, generator)
    share = compute.own_rows(len(points))
    own = slice(*np.searchsorted(rows, [share.start, share.stop]))
    sample = torch.zeros(len(rows), points.dimensions)
    sample[own] = points.read(rows[own]).cpu()
    sample = compute.sum(sample).to(compute.device)
    return sample[torch.from_numpy(chosen_rows(sample, clusters, generator, run)).to(sample.device)]


def chosen_rows(sample: Tensor, clusters: int, generator: np.random.Generator, run: Run) -> np.ndarray:
    """The numbers of the rows of ``sample`` (n, d) that greedy k-means++ chooses, in the order of choice.

    Distances are computed for many draws at once: a row drawn by its distance at that time is accepted with the share
    of it that centres chosen since have left, which makes it a draw by the present distance.
    """
    trials = 2 + int(np.log(clusters))
    batch = max(trials, min(DRAWS, HELD // len(sample)))
    squared = sample.square().sum(dim=1)
    chosen = [int(generator.integers(len(sample)))]
    closest = _distances(sample, squared, np.array(chosen), run)[0]
    while len(chosen) < clusters:
        drawn_by = closest
        cumulative = np.cumsum(drawn_by, dtype=np.float64)
        if cumulative[-1] <= 0:  # fewer distinct points than clusters: any other rows serve, their clusters stay empty
            rest = np.setdiff1d(np.arange(len(sample)), chosen)[: clusters - len(chosen)]
            return np.concatenate([chosen, rest])
        draws = np.searchsorted(cumulative, generator.random(batch) * cumulative[-1], side="right")
        draws = np.minimum(draws, len(sample) - 1)
        chances = generator.random(batch) * drawn_by[draws]
        distances = _distances(sample, squared, draws, run)
        accepted: list[int] = []
        for place, (row, chance) in enumerate(zip(draws.tolist(), chances.tolist(), strict=True)):
            if chance < closest[row]:
                accepted.append(place)
            if len(accepted) == trials and len(chosen) < clusters:
                potentials = np.minimum(distances[accepted], closest)
                best = int(potentials.sum(axis=1, dtype=np.float64).argmin())
                chosen.append(int(draws[accepted[best]]))
                closest, accepted = potentials[best], []
    return np.array(chosen)


def _distances(sample: Tensor, squared: Tensor, rows: np.ndarray, run: Run) -> np.ndarray:
    """Squared distances of ``rows`` of the ``sample`` from all of it: (rows, n) float32."""
    numbers = torch.from_numpy(rows).to(sample.device)
    centres, sizes = sample[numbers], squared[numbers][:, None]
    found = torch.empty(len(rows), len(sample), device=sample.device)

    def work(span: slice) -> None:
        both = sizes + squared[span]
        distance = torch.addmm(both, centres, sample[span].T, alpha=-2)
        found[:, span] = torch.where(distance > ROUNDING * both, distance, 0)

    for _ in run(work, spans_of(len(sample), TILE_ROWS)):
        pass
    return found.cpu().numpy()
