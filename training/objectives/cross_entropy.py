"""Cross-entropy between teacher probabilities and student scores, without a prototype-sized copy kept for backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK = 1 << 24  # elements of a float32 temporary: 64 MiB


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
        normalisers = scores.new_empty(len(scores), dtype=torch.float32)
        masses = torch.empty_like(normalisers)
        total = scores.new_zeros((), dtype=torch.float32)
        for rows in _chunks(scores):
            logits = scores[rows].float() / temperature
            probabilities = targets[rows].float()
            normalisers[rows] = logits.logsumexp(dim=-1)
            masses[rows] = probabilities.sum(dim=-1)
            entropies = masses[rows] * normalisers[rows] - torch.linalg.vecdot(probabilities, logits)
            total += torch.dot(entropies, weights[rows])
        ctx.save_for_backward(scores, targets, weights, normalisers, masses)
        ctx.temperature = temperature
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        scores, targets, weights, normalisers, masses = ctx.saved_tensors
        gradient = torch.empty_like(scores)
        factors = outputs[0] * weights / ctx.temperature
        for rows in _chunks(scores):
            softmax = (scores[rows].float() / ctx.temperature).sub_(normalisers[rows, None]).exp_()
            softmax.mul_(masses[rows, None]).sub_(targets[rows].float()).mul_(factors[rows, None])
            gradient[rows] = softmax.to(gradient.dtype)
        return gradient, None, None, None


def _chunks(scores: Tensor) -> list[slice]:
    rows = max(_CHUNK // max(scores.shape[-1], 1), 1)
    return [slice(start, start + rows) for start in range(0, len(scores), rows)]


def soft_cross_entropy(scores: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """sum_i w_i sum_k -p_ik log softmax(s_i / tau)_k, a float32 scalar, computed in float32 whatever the inputs are.

    ``scores`` (n, K) of the student, ``targets`` (n, K) non-negative (rows may sum to anything), ``weights`` (n,). The
    gradient goes to ``scores`` only. n may be 0.
    """
    with torch.autocast(scores.device.type, enabled=False):
        return _SoftCrossEntropy.apply(scores, targets.detach(), weights.detach().float(), temperature)
