"""Teacher targets: Sinkhorn-Knopp assignment over the whole batch, or softmax with a running centre."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.distributed import max_over_ranks, sum_over_ranks


@torch.no_grad()
def sinkhorn_knopp(
    scores: Tensor,
    temperature: float,
    *,
    iterations: int = 3,
    valid: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Probabilities (n, K): rows sum to 1, columns share the mass of all processes' rows equally.

    Starting from Q = exp(scores / temperature), ``iterations`` times: divide each column by its sum over all
    processes, then each row by its own. ``scores`` (n, K) of this process; n may differ between processes and be 0.
    Rows where ``valid`` (n, bool) is false take no part and come back as zeros. float32 whatever the input.

    Q is kept as diag(u) E diag(v), with E = exp of the scores less their column maximum over the batch and then less
    their row maximum: the first cancels in the first division, the second is put into u, so nothing overflows however
    large unnormalised prototypes make the scores. Source: Caron et al. 2020 (SwAV); Oquab et al. 2023, section 4.
    """
    with torch.autocast(scores.device.type, enabled=False):
        matrix = scores.to(torch.float32) / temperature
        if valid is not None:
            matrix.masked_fill_(~valid[:, None], -torch.inf)
        columns = matrix.amax(dim=0) if len(matrix) else matrix.new_full(matrix.shape[1:], -torch.inf)
        max_over_ranks(columns, group)
        matrix -= columns.masked_fill_(columns == -torch.inf, 0.0)
        rows = matrix.amax(dim=1).clamp_(min=torch.finfo(torch.float32).min)
        matrix.sub_(rows[:, None]).exp_()
        row_factors = rows.exp_()
        for _ in range(iterations):
            column_factors = _reciprocal(sum_over_ranks(row_factors @ matrix, group))
            row_factors = _reciprocal(matrix @ column_factors)
        return matrix.mul_(row_factors[:, None]).mul_(column_factors)


def _reciprocal(sums: Tensor) -> Tensor:
    """1 / sums, and 0 where there is nothing to divide."""
    return torch.where(sums > 0, sums.reciprocal(), 0.0)


class SoftmaxCentering(nn.Module):
    """softmax((h - c) / tau) with c an exponential average of the teacher's scores over all processes.

    ``center`` (1, K) is a buffer, so it travels with checkpoints. Call :meth:`update` once a step, after the loss.
    Source: Caron et al. 2021, equation 4.
    """

    center: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.momentum = momentum
        self.group = group
        self.register_buffer("center", torch.zeros(1, prototypes))

    @torch.no_grad()
    def forward(self, scores: Tensor, temperature: float) -> Tensor:
        """Probabilities (n, K), float32."""
        return ((scores.float() - self.center) / temperature).softmax(dim=-1)

    @torch.no_grad()
    def update(self, scores: Tensor) -> None:
        """Move the centre towards the mean of ``scores`` (n, K) over the rows of all processes; n may differ."""
        total = torch.cat((scores.float().sum(dim=0), scores.new_full((1,), float(len(scores)), dtype=torch.float32)))
        sum_over_ranks(total, self.group)
        weight = (1 - self.momentum) * (total[-1] > 0)
        self.center.lerp_(total[:-1] / total[-1].clamp(min=1), weight)
