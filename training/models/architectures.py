"""Which networks exist: their typed descriptions and the named ones of the three DINO generations. Imports no torch.

A description is a mapping: ``{"arch": "vit", "dim": 128, "depth": 6, "heads": 4}``, ``{"arch": "convnext", ...}`` or
the name of a published network with, optionally, changes: ``{"arch": "dinov3_vits16", "drop_path": 0.3}``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from foundry.errors import UserError
from foundry.settings import Settings, load_settings


class ViTConfig(Settings):
    """A Vision Transformer of any generation; the defaults are DINOv3's, small."""

    arch: Literal["vit"] = "vit"
    dim: int = Field(384, gt=0)
    """Width of a token."""
    depth: int = Field(12, gt=0)
    """Number of blocks."""
    heads: int = Field(6, gt=0)
    """Attention heads; with rotary positions a head's width is a multiple of 4."""
    patch_size: int = Field(16, gt=0)
    """Side of a patch in pixels."""
    in_channels: int = Field(3, gt=0)
    """Channels of an image."""
    ffn: Literal["mlp", "swiglu"] = "mlp"
    """Feed-forward network: GELU MLP or SwiGLU."""
    ffn_ratio: float = Field(4.0, gt=0)
    """Hidden width over ``dim``; a SwiGLU takes two thirds of it, rounded up to ``swiglu_align``."""
    ffn_hidden: int | None = Field(None, gt=0)
    """Hidden width itself, where the ratio does not give it."""
    swiglu_align: int = Field(8, gt=0)
    """The hidden width of a SwiGLU is a multiple of this."""
    registers: int = Field(4, ge=0)
    """Register (storage) tokens."""
    mask_token: bool = True
    """Whether masked patches can be replaced by a learned token (DINO of 2021 has none)."""
    qkv_bias: bool = True
    """Bias of queries and values."""
    key_bias: bool = False
    """Bias of keys too; without it that third of the bias is masked to zero (it would not change the softmax)."""
    layer_scale: float | None = Field(1e-5, gt=0)
    """Initial value of LayerScale; null for none."""
    norm_eps: float = Field(1e-5, gt=0)
    """Epsilon of every LayerNorm."""
    position: Literal["rope", "learned"] = "rope"
    """Rotary positions (DINOv3) or a learned embedding (DINO, DINOv2)."""
    rope_base: float = Field(100.0, gt=1)
    """Ratio between the longest and the shortest period."""
    rope_rescale: float | None = Field(None, gt=1)
    """In training, both axes are stretched by one factor from exp(U(-ln r, ln r))."""
    rope_jitter: float | None = Field(None, gt=1)
    """In training, each axis is stretched by its own factor from exp(U(-ln j, ln j))."""
    rope_shift: float | None = Field(None, gt=0)
    """In training, each axis is shifted by U(-s, s)."""
    rope_jitter_scope: Literal["step", "block"] = "step"
    """One draw for all blocks of a step, or one for every block (as the released DINOv3 code does)."""
    position_grid: int = Field(14, gt=0)
    """Side of the grid of the learned embedding, in patches."""
    position_offset: float = Field(0.0, ge=0)
    """Learned embedding at other grids: 0.1 in the official DINO and DINOv2 without registers, 0 elsewhere."""
    position_antialias: bool = False
    """Learned embedding at other grids: antialiased in DINOv2 with registers."""
    local_cls_norm: bool = False
    """A second final norm for the CLS and register tokens of local crops, in training only (DINOv3 7B)."""
    init: Literal["published", "fan_in"] = "published"
    """Standard deviation of the first weights: 0.02 as published, or 1 / sqrt(inputs of the layer). A network much
    narrower than the published ones starts almost as the identity under 0.02, and learns late."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth: the share of samples that skip a residual branch."""
    drop_path_uniform: bool = True
    """The same rate in every block; otherwise it grows linearly from 0."""

    @model_validator(mode="after")
    def _consistent(self) -> ViTConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.position == "rope" and (self.dim // self.heads) % 4:
            raise ValueError(f"rotary positions need heads of a width divisible by 4, here {self.dim // self.heads}")
        if self.key_bias and not self.qkv_bias:
            raise ValueError("key_bias needs qkv_bias")
        return self

    @property
    def hidden(self) -> int:
        """Hidden width of the feed-forward network."""
        if self.ffn_hidden is not None:
            return self.ffn_hidden
        hidden = int(self.dim * self.ffn_ratio)
        if self.ffn == "mlp":
            return hidden
        return -(-int(hidden * 2 / 3) // self.swiglu_align) * self.swiglu_align

    @property
    def stride(self) -> int:
        """Pixels between two patch features."""
        return self.patch_size

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """The rate of each block."""
        if self.drop_path_uniform or self.depth == 1:
            return (self.drop_path,) * self.depth
        return tuple(self.drop_path * layer / (self.depth - 1) for layer in range(self.depth))


class ConvNeXtConfig(Settings):
    """A ConvNeXt with DINOv3's readout; the defaults are ConvNeXt-T."""

    arch: Literal["convnext"] = "convnext"
    depths: tuple[int, ...] = Field((3, 3, 9, 3), min_length=1)
    """Blocks of each stage."""
    dims: tuple[int, ...] = Field((96, 192, 384, 768), min_length=1)
    """Width of each stage."""
    in_channels: int = Field(3, gt=0)
    """Channels of an image."""
    layer_scale: float = Field(1e-6, gt=0)
    """Initial value of LayerScale."""
    norm_eps: float = Field(1e-6, gt=0)
    """Epsilon of every LayerNorm."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the last block; it grows linearly from 0."""
    init: Literal["published", "fan_in"] = "published"
    """Standard deviation of the first weights: 0.02 as published, or 1 / sqrt(inputs of the layer). A network much
    narrower than the published ones starts almost as the identity under 0.02, and learns late."""

    @model_validator(mode="after")
    def _consistent(self) -> ConvNeXtConfig:
        if len(self.depths) != len(self.dims):
            raise ValueError(f"{len(self.depths)} depths for {len(self.dims)} dims; give one of each for a stage")
        if min(self.depths) < 1 or min(self.dims) < 1:
            raise ValueError("every stage needs at least one block and one channel")
        return self

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.dims[-1]

    @property
    def registers(self) -> int:
        """A ConvNeXt has no register tokens."""
        return 0

    @property
    def stride(self) -> int:
        """Pixels between two patch features: 4 after the stem, doubled by each later stage."""
        return 4 * 2 ** (len(self.dims) - 1)

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """The rate of each block, over all stages."""
        total = sum(self.depths)
        return tuple(self.drop_path * layer / max(total - 1, 1) for layer in range(total))


Architecture = ViTConfig | ConvNeXtConfig


def _sizes() -> dict[str, dict[str, Any]]:
    """The published networks, as changes to the two configurations' defaults."""
    small = {"arch": "vit", "dim": 384, "depth": 12, "heads": 6}
    base = {"arch": "vit", "dim": 768, "depth": 12, "heads": 12}
    large = {"arch": "vit", "dim": 1024, "depth": 24, "heads": 16}
    huge = {"arch": "vit", "dim": 1280, "depth": 32, "heads": 20}
    giant = {"arch": "vit", "dim": 1536, "depth": 40, "heads": 24}

    learned = {"key_bias": True, "norm_eps": 1e-6, "position": "learned", "position_offset": 0.1, "registers": 0}
    first = {**learned, "layer_scale": None, "mask_token": False, "drop_path": 0.1, "drop_path_uniform": False}
    tiny = {"arch": "vit", "dim": 192, "depth": 12, "heads": 3}
    sizes: dict[str, dict[str, Any]] = {}
    for name, size in {"vitt": tiny, "vits": small, "vitb": base}.items():
        for patch in (16, 8):
            sizes[f"dino_{name}{patch}"] = {**size, **first, "patch_size": patch, "position_grid": 224 // patch}

    second = {**learned, "patch_size": 14, "position_grid": 37}
    registers = {"registers": 4, "position_offset": 0.0, "position_antialias": True}
    for name, size in {"vits14": small, "vitb14": base, "vitl14": large, "vitg14": {**giant, "ffn": "swiglu"}}.items():
        sizes[f"dinov2_{name}"] = {**size, **second}
        sizes[f"dinov2_{name}_reg"] = {**size, **second, **registers}

    gated = {"ffn": "swiglu", "ffn_ratio": 6.0}
    seven_billion = {"arch": "vit", "dim": 4096, "depth": 40, "heads": 32, "qkv_bias": False, "local_cls_norm": True}
    seven_billion |= {"ffn": "swiglu", "ffn_ratio": 3.0, "swiglu_align": 64, "rope_rescale": 2.0}
    sizes |= {
        "dinov3_vits16": small,
        "dinov3_vits16plus": {**small, **gated},
        "dinov3_vitb16": base,
        "dinov3_vitl16": large,
        "dinov3_vitl16_sat": {**large, "local_cls_norm": True},
        "dinov3_vitl16plus": {**large, **gated},
        "dinov3_vith16plus": {**huge, **gated},
        "dinov3_vit7b16": seven_billion,
        "dinov3_vit7b16_sat": seven_billion,
    }
    narrow, wide = (96, 192, 384, 768), (128, 256, 512, 1024)
    sizes |= {
        "dinov3_convnext_tiny": {"arch": "convnext", "depths": (3, 3, 9, 3), "dims": narrow},
        "dinov3_convnext_small": {"arch": "convnext", "depths": (3, 3, 27, 3), "dims": narrow},
        "dinov3_convnext_base": {"arch": "convnext", "depths": (3, 3, 27, 3), "dims": wide},
        "dinov3_convnext_large": {"arch": "convnext", "depths": (3, 3, 27, 3), "dims": (192, 384, 768, 1536)},
    }
    return sizes


NAMED: Mapping[str, Mapping[str, Any]] = _sizes()
"""Published networks by name."""


def architecture(spec: Mapping[str, Any] | Architecture, source: str = "architecture") -> Architecture:
    """The checked description behind ``spec``; ``source`` is what messages call it.

    Raises :class:`UserError` for an unknown name, an unknown or mistyped setting, or sizes that do not fit together.
    """
    if isinstance(spec, ViTConfig | ConvNeXtConfig):
        return spec
    values = dict(spec)
    name = values.pop("arch", None)
    if name in NAMED:
        values = {**NAMED[name], **values}
    else:
        values = {"arch": name, **values}
    if values["arch"] == "vit":
        return load_settings(ViTConfig, values, source)
    if values["arch"] == "convnext":
        return load_settings(ConvNeXtConfig, values, source)
    valid = ["vit", "convnext", *NAMED]
    near = difflib.get_close_matches(str(name), valid, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"valid: {', '.join(valid)}"
    raise UserError(f"{source}: unknown architecture 'arch' = {name!r}; {hint}")


def transformers_class(config: Architecture) -> str:
    """The transformers model class that computes exactly what ``config`` describes."""
    if isinstance(config, ConvNeXtConfig):
        return "DINOv3ConvNextModel"
    if config.position == "rope":
        return "DINOv3ViTModel"
    return "Dinov2WithRegistersModel" if config.registers else "Dinov2Model"


def check_expressible(spec: Mapping[str, Any] | Architecture, source: str = "architecture") -> Architecture:
    """The checked description, a :class:`UserError` where no transformers class computes the same features.

    Exports promise that ``AutoModel.from_pretrained`` gives the network's own features, so this is asked when
    settings load.
    """
    config = architecture(spec, source)
    if isinstance(config, ConvNeXtConfig):
        return config
    problem = None
    if config.position == "learned":
        if config.qkv_bias and not config.key_bias:
            problem = "learned positions and key_bias: false (set key_bias: true)"
        elif dinov2_mlp_ratio(config) is None:
            problem = f"learned positions and a hidden width of {config.hidden}, which no whole ffn_ratio gives"
        elif config.registers and (config.position_offset or not config.position_antialias):
            problem = "learned positions and registers need position_offset: 0 and position_antialias: true"
        elif not config.registers and config.position_antialias:
            problem = "learned positions without registers need position_antialias: false"
    if problem:
        raise UserError(f"{source}: no transformers class expresses a Vision Transformer with {problem}")
    return config


def dinov2_mlp_ratio(config: ViTConfig) -> int | None:
    """The whole ``mlp_ratio`` that gives transformers' DINOv2 classes ``config``'s hidden width, or None."""
    ratio = round(config.hidden / config.dim * (1.5 if config.ffn == "swiglu" else 1.0))
    width = config.dim * ratio if config.ffn == "mlp" else -(-int(config.dim * ratio * 2 / 3) // 8) * 8
    return ratio if width == config.hidden else None
