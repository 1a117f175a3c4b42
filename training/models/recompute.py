"""Blocks whose activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

_KEPT = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten.convolution.default,
)
"""What ``selective`` keeps: the results that cost most to compute again."""


def run_again(block: nn.Module, how: Literal["selective", "full"], *arguments: Any) -> Tensor:
    """``block(*arguments)``, computed again in the backward pass: all of it, or all but products and attention.

    Nothing in a block draws from the global random state, so both passes are the same.
    """
    extra: dict[str, Any] = {}
    if how == "selective":
        extra["context_fn"] = functools.partial(create_selective_checkpoint_contexts, list(_KEPT))
    return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False, **extra)
