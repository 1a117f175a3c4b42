"""Block masks of the iBOT objective, stratified over the global batch (Bao et al. 2022; Zhou et al. 2022)."""

from __future__ import annotations

import math

import numpy as np

from training.data.randomness import Purpose, stream
from training.recipe import Masks


def masked_counts(settings: Masks, crops: int, patches: int, seed: int, step: int) -> np.ndarray:
    """How many of ``patches`` are masked in each of the step's ``crops`` global crops, (crops,) int64.

    A share of the crops is masked; ``settings.ratio`` is divided into as many equal strata, each of which gives one
    ratio (its upper edge, or a draw inside it), dealt to the crops in random order.
    """
    masked = int(crops * settings.share)
    edges = np.linspace(settings.ratio[0], settings.ratio[1], masked + 1)
    rng = stream(seed, Purpose.MASK_SHARES, step)
    ratios = edges[1:] if settings.style == "dinov3" else rng.uniform(edges[:-1], edges[1:])
    counts = np.zeros(crops, dtype=np.int64)
    counts[:masked] = (patches * ratios).astype(np.int64)
    return rng.permutation(counts)


def block_mask(grid: int, count: int, rng: np.random.Generator, complete: bool = True) -> np.ndarray:
    """A (grid, grid) bool mask with ``count`` patches set: random blocks, and what is missing at random.

    Without ``complete`` a mask to which no block fits any more stays smaller.
    """
    mask = np.zeros((grid, grid), dtype=bool)
    largest = 0.5 * grid * grid
    log_aspect = math.log(1 / 0.3)
    while (missing := count - int(mask.sum())) > 0:
        cap = min(missing, largest)
        for _ in range(10):
            area = rng.uniform(min(4.0, cap), cap)
            aspect = math.exp(rng.uniform(-log_aspect, log_aspect))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < h < grid and 0 < w < grid):
                continue
            top, left = int(rng.integers(0, grid - h + 1)), int(rng.integers(0, grid - w + 1))
            block = mask[top : top + h, left : left + w]
            if 0 < block.size - int(block.sum()) <= cap:
                block[:] = True
                break
        else:
            break
    missing = count - int(mask.sum())
    if complete and missing > 0:
        free = np.flatnonzero(~mask)
        mask.reshape(-1)[rng.choice(free, size=missing, replace=False)] = True
    return mask


def step_masks(settings: Masks, batch: int, slots: range, grid: int, seed: int, step: int) -> np.ndarray:
    """Masks of this process's global crops at ``step``: (2 * len(slots), grid * grid) bool, crop-major.

    Row c * len(slots) + i belongs to global crop c of slot ``slots[i]``. A pure function of its arguments: the global
    batch is masked the same way however it is divided.
    """
    counts = masked_counts(settings, 2 * batch, grid * grid, seed, step)
    rows = [crop * batch + slot for crop in range(2) for slot in slots]
    masks = np.zeros((len(rows), grid * grid), dtype=bool)
    for i, row in enumerate(rows):
        if counts[row]:
            rng = stream(seed, Purpose.MASK_BLOCKS, step, row)
            complete = settings.style == "dinov3"
            masks[i] = block_mask(grid, int(counts[row]), rng, complete).reshape(-1)
    return masks
