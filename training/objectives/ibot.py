"""The iBOT loss: the student predicts, at masked patches, what the teacher says of the visible image.

    L = 1/I sum_i 1/|M_i| sum_{p in M_i} CE(p_t[i, p], p_s[i, p])

with I the number of global crops of the batch, those without any masked patch included (they count as zeros in the
mean). Source: Zhou et al. 2022; Oquab et al. 2023, section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.objectives.cross_entropy import soft_cross_entropy


def ibot_loss(scores: Tensor, targets: Tensor, weights: Tensor, images: float, *, temperature: float = 0.1) -> Tensor:
    """L as a float32 scalar. ``scores`` and ``targets`` (n, K) at the n masked patches; ``weights`` (n,) = 1 / |M_i|.

    ``images``: global crops per process, averaged over processes (2B); then the mean of all processes' values is the
    loss of the whole batch. n may be 0.
    """
    return soft_cross_entropy(scores, targets, weights / images, temperature)


def mask_weights(masks: Tensor) -> Tensor:
    """1 / |M_i| for each true element of ``masks`` (I, N, bool), in row-major order: (n,) float32."""
    counts = masks.sum(dim=-1, keepdim=True).clamp(min=1)
    return (1.0 / counts.to(torch.float32)).expand_as(masks)[masks]
