"""Gram anchoring: similarities between a student's patches stay those of an earlier, better teacher.

    L = mean over images and all N^2 pairs of (X_S X_S^T - X_G X_G^T)^2,   rows of X normalised

Source: Siméoni et al. 2025, section 4 and equation 2; the mean (not the sum over pairs, N^2 larger) is what the
published weights belong to.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def gram_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    images: float | None = None,
    negatives: Literal["keep", "remove", "remove_teacher"] = "keep",
) -> Tensor:
    """L for patch features (I, N, D) of the student and (I, N, D') of the Gram teacher, as a float32 scalar.

    ``images``: crops per process, averaged over processes, where it is not I; the mean of all processes' values is
    the loss of the whole batch. ``negatives``: similarities below zero are kept, set to zero on both sides, or set to
    zero in the teacher and, only where both are negative, in the student.
    """
    with torch.autocast(student.device.type, enabled=False):
        ours = _similarities(student)
        with torch.no_grad():
            theirs = _similarities(teacher)
        if negatives == "remove":
            ours, theirs = ours.clamp(min=0), theirs.clamp(min=0)
        elif negatives == "remove_teacher":
            ours = ours.masked_fill((ours < 0) & (theirs < 0), 0.0)
            theirs = theirs.clamp(min=0)
        count = len(student) if images is None else images
        return (ours - theirs).square().sum() / (count * student.shape[1] ** 2)


def _similarities(patches: Tensor) -> Tensor:
    normalised = F.normalize(patches.float(), dim=-1)
    return normalised @ normalised.transpose(1, 2)


def resize_patch_map(patches: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Patch features (I, rows * columns, D) of ``grid`` resampled to ``target`` (bicubic, not antialiased).

    Done before normalisation, so that a Gram teacher may look at larger crops than its student.
    """
    if grid == target:
        return patches
    maps = patches.float().transpose(1, 2).unflatten(2, grid)
    resized = F.interpolate(maps, size=target, mode="bicubic", align_corners=False, antialias=False)
    return resized.flatten(2).transpose(1, 2).to(patches.dtype)
