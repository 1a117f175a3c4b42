"""Low-rank updates of frozen linear layers (Hu et al. 2022, "LoRA"): W + (alpha / r) B A, with B zero at the start."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from training.recipe import Recipe

_STORED = re.compile(r"^(?P<layer>.+)\.parametrizations\.weight\.(?P<part>original|0\.a|0\.b)$")


class LowRank(nn.Module):
    """W -> W + factor * b a, for W (out, in), a (r, in), b (out, r)."""

    def __init__(self, outputs: int, inputs: int, rank: int, factor: float, generator: torch.Generator) -> None:
        super().__init__()
        self.factor = factor
        self.a = nn.Parameter(torch.empty(rank, inputs).normal_(std=inputs**-0.5, generator=generator))
        self.b = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight."""
        return weight + self.factor * (self.b @ self.a)


def add_low_rank(backbone: nn.Module, rank: int, alpha: float, seed: int) -> None:
    """Give every linear layer of the blocks an update of ``rank``; nothing else about the network changes."""
    generator = torch.Generator().manual_seed(seed)
    for block in backbone.get_submodule("blocks" if hasattr(backbone, "blocks") else "stages").modules():
        if isinstance(block, nn.Linear) and not parametrize.is_parametrized(block):
            update = LowRank(block.out_features, block.in_features, rank, alpha / rank, generator)
            parametrize.register_parametrization(block, "weight", update)


def has_low_rank(backbone: nn.Module) -> bool:
    """Whether :func:`add_low_rank` was here."""
    return any(isinstance(module, LowRank) for module in backbone.modules())


def merged_state(state: Mapping[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """``state`` of a network with updates, as that of the same network with merged weights."""
    merged: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        stored = _STORED.match(name)
        if stored:
            parts.setdefault(stored["layer"], {})[stored["part"]] = tensor
        else:
            merged[name] = tensor
    if parts:
        assert recipe.warm_start is not None
        factor = recipe.warm_start.lora_alpha / recipe.warm_start.lora_rank
        for layer, each in parts.items():
            merged[f"{layer}.weight"] = each["original"] + factor * (each["0.b"] @ each["0.a"])
    return merged
