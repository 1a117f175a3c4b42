"""AdamW over one student: parameter groups, schedules, gradient clipping."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from training.recipe import Optimiser

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_TOKENS = ("pos_embed", "cls_token", "mask_token", "storage_tokens")
_EMBEDDINGS = ("patch_embed", *_TOKENS)


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
    carries ``rate_factor``, ``decay_factor`` and ``kind`` for :func:`set_schedules`.
    """
    backbone = parts["backbone"]
    depth = len(backbone.blocks) if hasattr(backbone, "blocks") else 0  # type: ignore[arg-type]
    groups: dict[tuple[float, float, str], list[nn.Parameter]] = {}
    for part, module in parts.items():
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            plain = name.endswith("bias") or "norm" in name or "gamma" in name or "scale" in name
            plain = plain or (not settings.decay_tokens and any(token in name for token in _TOKENS))
            factor = _rate_factor(name, depth, settings) if part == "backbone" else 1.0
            if part == "backbone":
                kind = "patch_embedding" if "patch_embed" in name else "backbone"
            else:
                kind = "prototypes" if "last_layer" in name else "head"
            groups.setdefault((factor, 0.0 if plain else 1.0, kind), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "rate_factor": rate, "decay_factor": decay, "kind": kind}
            for (rate, decay, kind), members in groups.items()
        ],
        lr=0.0,
        betas=settings.betas,
        fused=True,
    )


def set_schedules(
    optimiser: torch.optim.Optimizer,
    learning_rate: float,
    weight_decay: float,
    freeze_prototypes: bool,
    backbone: float = 1.0,
    patch_embedding: bool = False,
) -> None:
    """Write this step's learning rate and weight decay into every group.

    ``backbone``: factor on both for the backbone, with ``patch_embedding`` all of it but the patch embedding.
    """
    for group in optimiser.param_groups:
        kind, factor = group["kind"], 1.0
        if kind == "backbone" or (kind == "patch_embedding" and not patch_embedding):
            factor = backbone
        elif kind == "prototypes" and freeze_prototypes:
            factor = 0.0
        group["lr"] = learning_rate * group["rate_factor"] * factor
        group["weight_decay"] = weight_decay * group["decay_factor"] * (1.0 if kind == "prototypes" else factor)


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float, each: bool = False) -> torch.Tensor:
    """Scale gradients so that their joint norm (with ``each``: that of every tensor) is at most ``largest``.

    Returns the joint norm before, () float32. Gradients divided among processes are taken as one.
    """
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device)
    norms = torch.stack([_whole(norm) for norm in torch._foreach_norm(gradients)])
    norm = torch.linalg.vector_norm(norms)
    local = [_part(gradient) for gradient in gradients]
    if each:
        torch._foreach_mul_(local, list((largest / (norms + 1e-6)).clamp(max=1.0).unbind()))
    else:
        torch._foreach_mul_(local, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _part(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def move_average(average: nn.Module, source: nn.Module, momentum: float) -> None:
    """average <- momentum * average + (1 - momentum) * source, over parameters (not buffers)."""
    ours, theirs = ([_part(parameter) for parameter in module.parameters()] for module in (average, source))
    torch._foreach_lerp_(ours, theirs, 1.0 - momentum)
