"""Networks from their descriptions, initialised from a seed without touching the global random state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import torch

from foundry.vector_math import settle_vector_math
from training.models.architectures import Architecture, ViTConfig, architecture
from training.models.convnext import ConvNeXt
from training.models.heads import FeatureMap, ProjectionHead
from training.models.vit import VisionTransformer

Backbone = VisionTransformer | ConvNeXt

M = TypeVar("M", VisionTransformer, ConvNeXt, ProjectionHead, FeatureMap)


def build_backbone(
    spec: Mapping[str, Any] | Architecture, *, seed: int = 0, device: str | torch.device = "cpu"
) -> Backbone:
    """The backbone that ``spec`` describes (see :mod:`training.models.architectures`), in float32, in training mode.

    Equal seeds give equal weights on every machine and process. On the ``meta`` device nothing is initialised.
    """
    config = architecture(spec)
    if isinstance(config, ViTConfig):
        return _materialise(lambda: VisionTransformer(config), seed, device)
    return _materialise(lambda: ConvNeXt(config), seed, device)


def build_head(
    dim: int,
    hidden: int,
    bottleneck: int,
    prototypes: int,
    *,
    layers: int = 3,
    weight_norm: bool = False,
    trainable_gain: bool = True,
    init: Literal["published", "fan_in"] = "published",
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> ProjectionHead:
    """A projection head for features ``dim`` wide, initialised from ``seed``."""
    return _materialise(
        lambda: ProjectionHead(
            dim,
            hidden,
            bottleneck,
            prototypes,
            layers=layers,
            weight_norm=weight_norm,
            trainable_gain=trainable_gain,
            init=init,
        ),
        seed,
        device,
    )


def build_feature_map(dim: int, width: int, *, seed: int = 0, device: str | torch.device = "cpu") -> FeatureMap:
    """A linear map of features ``dim`` wide to ``width``, initialised from ``seed``."""
    return _materialise(lambda: FeatureMap(dim, width), seed, device)


def _materialise(make: Callable[[], M], seed: int, device: str | torch.device) -> M:
    settle_vector_math(torch)
    with torch.device("meta"):
        module: M = make()
    if torch.device(device).type == "meta":
        return module
    module.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(float("nan"))  # a tensor that init_weights forgets shows at once
        module.init_weights(torch.Generator().manual_seed(seed))
    return module.to(device)
