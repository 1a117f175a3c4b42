"""The DINO loss on image embeddings: every student crop predicts what the teacher says of another crop.

    l(s, t) = - sum_k p_t[k] log softmax(h_s / tau_s)[k]

The local term is the mean of l over the (local crop, global crop) pairs, the global term the mean over pairs of two
different global crops. Together, weighted by their shares of all pairs, they are DINOv2's plain mean over all pairs
(18 for 2 global and 8 local crops). Source: Caron et al. 2021, equation 3; Siméoni et al. 2025, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.objectives.cross_entropy import soft_cross_entropy


def dino_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    ignore_diagonal: bool = False,
    temperature: float = 0.1,
    images: float | None = None,
) -> Tensor:
    """Mean of l over images and over the (student crop, teacher crop) pairs, a float32 scalar.

    ``scores`` (S, B, K) or crop-major (S * B, K) of the student, ``targets`` (T, B, K) probabilities of the teacher.
    ``ignore_diagonal`` leaves out the pairs of a crop with itself (student crop i is teacher crop i). ``images``:
    images per process, averaged over processes, where it is not B; the mean of all processes' values is the loss of
    the whole batch.
    """
    teacher_crops, batch, prototypes = targets.shape
    student_crops = scores.shape[0] if scores.dim() == 3 else scores.shape[0] // max(batch, 1)
    scores = scores.reshape(student_crops, batch, prototypes)
    pairs = student_crops * teacher_crops - (min(student_crops, teacher_crops) if ignore_diagonal else 0)
    if pairs == 0:
        raise ValueError(f"no pair of {student_crops} student and {teacher_crops} teacher crops is left to compare")
    weights = torch.full((batch,), 1.0 / (pairs * (batch if images is None else images)), device=scores.device)
    everything = None if ignore_diagonal and student_crops <= teacher_crops else targets.sum(dim=0)
    total = torch.zeros((), device=scores.device)
    for crop in range(student_crops):
        wanted = everything
        if ignore_diagonal and crop < teacher_crops:
            others = [other for other in range(teacher_crops) if other != crop]
            wanted = targets[others[0]] if len(others) == 1 else targets[others].sum(dim=0)
        assert wanted is not None
        total = total + soft_cross_entropy(scores[crop], wanted, weights, temperature)
    return total


def pair_shares(global_crops: int, local_crops: int, same_crop: bool = False) -> tuple[float, float]:
    """The shares (local, global) of the pairs: 16/18 and 2/18 for 2 global and 8 local crops.

    ``same_crop``: pairs of a crop with itself count too.
    """
    local_pairs, global_pairs = global_crops * local_crops, global_crops * (global_crops - (0 if same_crop else 1))
    return local_pairs / (local_pairs + global_pairs), global_pairs / (local_pairs + global_pairs)
