"""Projection heads of DINO and iBOT: an MLP to a normalised bottleneck, then scores against prototypes.

In their place, where features themselves are matched: a linear map to the teacher's width, and no head at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightNormLinear(nn.Module):
    """Bias-free Linear with rows g v / |v| (DINO, DINOv2): ``weight_g`` (K, 1) and ``weight_v`` (K, b)."""

    def __init__(self, bottleneck: int, prototypes: int, trainable_gain: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(prototypes, 1), requires_grad=trainable_gain)
        self.weight_v = nn.Parameter(torch.empty(prototypes, bottleneck))

    @property
    def weight(self) -> Tensor:
        """The effective weight (K, b), by torch's fused kernel: one pass over the prototypes each way."""
        return torch._weight_norm(self.weight_v, self.weight_g, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(n, b) -> (n, K)."""
        return F.linear(x, self.weight)


class ProjectionHead(nn.Module):
    """C z / |z| with z = MLP(x) and C the prototypes.

    Source: Caron et al. 2021, section 3.1; C without weight norm: Siméoni et al. 2025.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        bottleneck: int,
        prototypes: int,
        *,
        layers: int = 3,
        weight_norm: bool = False,
        trainable_gain: bool = True,
        init: Literal["published", "fan_in"] = "published",
    ) -> None:
        super().__init__()
        self.init = init
        self.dim, self.hidden, self.bottleneck, self.prototypes = dim, hidden, bottleneck, prototypes
        widths = [dim, *[hidden] * (layers - 1), bottleneck]
        modules: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            modules += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*modules[:-1])
        self.last_layer: WeightNormLinear | nn.Linear
        if weight_norm:
            self.last_layer = WeightNormLinear(bottleneck, prototypes, trainable_gain)
        else:
            self.last_layer = nn.Linear(bottleneck, prototypes, bias=False)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Truncated normal weights (0.02, or by ``init``), zero biases, unit gains; draws from ``generator`` only."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = module.in_features**-0.5 if self.init == "fan_in" else 0.02
                nn.init.trunc_normal_(module.weight, std=std, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WeightNormLinear):
                nn.init.trunc_normal_(module.weight_v, std=0.02, generator=generator)
                nn.init.ones_(module.weight_g)

    @overload
    def forward(self, x: Tensor, only: Literal["bottleneck", "prototypes"] | None = None) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, *, rows: Sequence[int]) -> list[Tensor]: ...
    def forward(
        self,
        x: Tensor,
        only: Literal["bottleneck", "prototypes"] | None = None,
        rows: Sequence[int] | None = None,
    ) -> Tensor | list[Tensor]:
        """Scores (n, K) of features (n, D).

        ``only="bottleneck"`` stops at the normalised bottleneck (n, b); ``only="prototypes"`` starts from one. Several
        students share a teacher's pass that way: the bottleneck travels, the scores never do. ``rows``: scores in parts
        of so many rows, which no later step has to cut from one tensor or its gradient.
        """
        if only != "prototypes":
            z = self.mlp(x)
            x = F.normalize(z.float(), dim=-1, eps=1e-12).to(z.dtype)
        if only == "bottleneck":
            return x
        if rows is None:
            return self.last_layer(x)
        weight = self.last_layer.weight  # where it has to be computed, computed once
        return [F.linear(part, weight) for part in x.split(list(rows))]


class FeatureMap(nn.Module):
    """A linear map of features to another width; with ``width`` None the features as they are."""

    def __init__(self, dim: int, width: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Identity() if width is None else nn.Linear(dim, width)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Truncated normal weights of standard deviation 1 / sqrt(dim), zero bias; draws from ``generator`` only."""
        if isinstance(self.linear, nn.Linear):
            nn.init.trunc_normal_(self.linear.weight, std=self.linear.in_features**-0.5, generator=generator)
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, only: Literal["bottleneck", "prototypes"] | None = None) -> Tensor:
        """(n, D) -> (n, width). ``only`` as of :class:`ProjectionHead`: what a bottleneck is there, is here mapped
        already, so ``prototypes`` leaves it as it is."""
        return x if only == "prototypes" else self.linear(x)
