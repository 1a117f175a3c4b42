"""Matching a teacher's features themselves, for teachers without heads.

    L = 1/I sum_i w_i mean_d huber(z_i,d - LN(t_i)_d)

with z the student's features after a linear map to the teacher's width, LN a layer norm without parameters, which gives
every vector of the teacher mean 0 and variance 1 and so takes the few dimensions of large values their dominance, and
huber(e) = e^2 / 4 for |e| < 2, else |e| - 1. Source: Wei et al. 2022 (feature distillation), section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BETA = 2.0


def whitened(features: Tensor) -> Tensor:
    """LN of a teacher's features (..., D), float32."""
    features = features.float()
    return F.layer_norm(features, features.shape[-1:])


def matching_loss(mapped: Tensor, targets: Tensor, weights: Tensor | None = None, *, images: float) -> Tensor:
    """L as a float32 scalar. ``mapped`` (n, D) of the student, ``targets`` (n, D) whitened, ``weights`` (n,) or 1.

    ``images``: I, images or crops per process, averaged over processes; then the mean of all processes' values is the
    loss of the whole batch. n may be 0.
    """
    with torch.autocast(mapped.device.type, enabled=False):
        distances = F.smooth_l1_loss(mapped.float(), targets.detach().float(), beta=BETA, reduction="none")
        rows = distances.mean(dim=-1)
        return (rows if weights is None else rows * weights).sum() / images
