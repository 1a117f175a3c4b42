"""AdamW over one student: parameter groups, schedules, gradient clipping."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from training.recipe import Optimiser

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_EMBEDDINGS = ("patch_embed", "pos_embed", "cls_token", "mask_token", "storage_tokens")


def _rate_factor(name: str, depth: int, settings: Optimiser) -> float:
    """Learning-rate factor of a backbone parameter: layer decay to the power of its distance from the head."""
    block = _BLOCK.search(name)
    if block:
        layer = int(block.group(1)) + 1
    elif any(part in name for part in _EMBEDDINGS):
        layer = 0
    else:
        layer = depth + 1
    factor = settings.layer_decay ** (depth + 1 - layer)
    return factor * settings.patch_embedding_rate if "patch_embed" in name else factor


def build_optimiser(parts: Mapping[str, nn.Module], settings: Optimiser) -> torch.optim.AdamW:
    """AdamW over ``parts`` (backbone, dino_head, ibot_head).

    No weight decay on biases, norms and LayerScale. Parameters with the same factors share a group; each group
    carries ``rate_factor``, ``decay_factor`` and ``is_prototypes`` for :func:`set_schedules`.
    """
    backbone = parts["backbone"]
    depth = len(backbone.blocks) if hasattr(backbone, "blocks") else 0  # type: ignore[arg-type]
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for part, module in parts.items():
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            plain = name.endswith("bias") or "norm" in name or "gamma" in name or "scale" in name
            factor = _rate_factor(name, depth, settings) if part == "backbone" else 1.0
            key = (factor, 0.0 if plain else 1.0, part != "backbone" and "last_layer" in name)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "rate_factor": rate, "decay_factor": decay, "is_prototypes": prototypes}
            for (rate, decay, prototypes), members in groups.items()
        ],
        lr=0.0,
        betas=settings.betas,
        fused=True,
    )


def set_schedules(
    optimiser: torch.optim.Optimizer, learning_rate: float, weight_decay: float, freeze_prototypes: bool
) -> None:
    """Write this step's learning rate and weight decay into every group."""
    for group in optimiser.param_groups:
        frozen = freeze_prototypes and group["is_prototypes"]
        group["lr"] = 0.0 if frozen else learning_rate * group["rate_factor"]
        group["weight_decay"] = weight_decay * group["decay_factor"]


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> torch.Tensor:
    """Scale the gradients of one module so that their joint norm is at most ``largest``; returns the norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm


@torch.no_grad()
def move_average(average: nn.Module, source: nn.Module, momentum: float) -> None:
    """average <- momentum * average + (1 - momentum) * source, over parameters (not buffers)."""
    torch._foreach_lerp_(list(average.parameters()), list(source.parameters()), 1.0 - momentum)
